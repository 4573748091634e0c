"""Training pairs and their batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.artifacts import ArtifactError
from crawl.records import TEST, TRAIN, VAL
from features.inverted_index import InvertedIndex
from tests.synthetic import NO_VECTOR
from train.batches import PairBatches, is_withheld, training_pairs

CPU = torch.device("cpu")


class ListedIndex(InvertedIndex):
    """An index of posting lists in memory."""

    def __init__(self, lists, num_images, splits=None):
        self.tags = [f"tag{row:03d}" for row in range(len(lists))]
        self.image_ids = np.array([f"{row:016x}" for row in range(num_images)], dtype="S16")
        self.offsets = np.cumsum([0, *map(len, lists)])
        self.postings = np.array([row for rows in lists for row in sorted(rows)], dtype=np.int32)
        self.splits = np.array(splits if splits is not None else [TRAIN] * num_images, dtype=np.uint8)


def batches_of(index, known=None, batch_size=2, seed=0, epoch=0, **options):
    pairs = training_pairs(index, np.ones(index.num_tags, bool) if known is None else known, 0.0)
    return PairBatches(index, pairs, batch_size, seed, CPU, lambda: epoch, **options)


def listed_pairs(batches):
    return [
        (int(tag), int(image))
        for batch in batches
        for tag, image in zip(batch.tag_rows, batch.image_rows, strict=False)
    ]


posting_lists = st.lists(st.sets(st.integers(0, 11), max_size=12), min_size=1, max_size=6)


@settings(deadline=None)
@given(posting_lists, st.data())
def test_relevance_is_what_the_posting_lists_say(lists, data):
    index = ListedIndex(lists, num_images=12)
    if len(index.postings) < 2:
        return
    batches = batches_of(index)
    tags = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=8))
    images = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=9))
    for _ in range(2):  # what it keeps between calls must be clean again
        relevant = batches.relevance(torch.tensor(tags), torch.tensor(images))
        assert relevant.tolist() == [[image in lists[tag] for image in images] for tag in tags]


def test_the_image_of_a_pair_is_always_relevant(line):
    index, known = open_line_index(line)
    for batch in batches_of(index, known, batch_size=64):
        assert batch.relevant.diagonal().all()


def open_line_index(line):
    index = InvertedIndex(line.artifact("index") / (line.artifact("index") / "current").read_text().strip())
    return index, np.array([tag != NO_VECTOR for tag in index.tags])


def test_an_epoch_has_every_pair_once():
    index = ListedIndex([{0, 1, 2}, {1, 3}, {0}], num_images=4)
    expected = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 3), (2, 0)]
    assert sorted(listed_pairs(batches_of(index, batch_size=3))) == expected


def test_a_last_batch_that_is_not_full_is_left_out():
    index = ListedIndex([{0, 1, 2}, {1, 3}], num_images=4)
    batches = batches_of(index, batch_size=2)
    assert len(batches) == 2
    assert len(set(listed_pairs(batches))) == 4


def test_a_batch_is_never_larger_than_the_pairs():
    index = ListedIndex([{0, 1, 2}], num_images=3)
    assert len(batches_of(index, batch_size=512)) == 1


def test_the_order_depends_on_seed_and_epoch_alone():
    index = ListedIndex([set(range(20)), set(range(5, 15))], num_images=20)
    orders = {
        (seed, epoch): tuple(listed_pairs(batches_of(index, seed=seed, epoch=epoch)))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    torch.manual_seed(99)  # says nothing to the order
    again = tuple(listed_pairs(batches_of(index, seed=1, epoch=1)))
    assert len(set(orders.values())) == 4
    assert again == orders[1, 1]


def test_no_image_of_val_or_test_is_trained_on(line):
    index, known = open_line_index(line)
    for fixed_wrong in (False, True):
        for batch in batches_of(index, known, batch_size=32, fixed_wrong=fixed_wrong):
            assert (index.splits[batch.image_rows] == TRAIN).all()


def test_pairs_are_the_train_postings_of_known_tags():
    index = ListedIndex([{0, 1, 2}, {0, 1}], num_images=3, splits=[TRAIN, TRAIN, TEST])
    tag_rows, image_rows = training_pairs(index, np.array([True, False]), 0.0)
    assert tag_rows.tolist() == [0, 0]
    assert image_rows.tolist() == [0, 1]


def test_withheld_tags_are_in_no_pair():
    index = ListedIndex([{0, 1}] * 200, num_images=2)
    tag_rows, _ = training_pairs(index, np.ones(200, bool), 0.3)
    withheld = {row for row, tag in enumerate(index.tags) if is_withheld(tag, 0.3)}
    assert withheld
    assert set(tag_rows.tolist()) == set(range(200)) - withheld


def test_the_share_of_withheld_tags_is_about_right_and_grows_by_adding():
    names = [f"name {number}" for number in range(5000)]
    tenth = {name for name in names if is_withheld(name, 0.1)}
    third = {name for name in names if is_withheld(name, 0.3)}
    assert len(tenth) == pytest.approx(500, abs=80)
    assert len(third) == pytest.approx(1500, abs=120)
    assert tenth < third
    assert not any(is_withheld(name, 0.0) for name in names)


def test_the_fixed_wrong_picture_is_that_of_pair_i_plus_3():
    index = ListedIndex([{0, 1, 2, 3, 4}], num_images=5)
    batch = batches_of(index, fixed_wrong=True).batch(torch.tensor([1, 4]))
    assert batch.image_rows.tolist() == [1, 4, 4, 2]  # pair 4 + 3 comes round to pair 2
    assert batch.relevant.shape == (2, 4)


def test_too_few_pairs_are_refused_with_the_counts():
    index = ListedIndex([{0, 1}], num_images=2, splits=[TRAIN, VAL])
    with pytest.raises(ArtifactError, match="1 pairs to train on: 1 tags, 1 of them with a vector, 1 train images"):
        training_pairs(index, np.ones(1, bool), 0.0)
