"""Training pairs and their batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.artifacts import ArtifactError
from crawl.records import TEST, TRAIN, VAL
from crawl.tags import related_tags
from features.inverted_index import InvertedIndex
from tests.synthetic import NO_VECTOR
from train.batches import (
    ImageBatches,
    PairBatches,
    ResidentFeatures,
    TrainingSet,
    is_withheld,
    spared_tags,
    training_pairs,
)

CPU = torch.device("cpu")


class ListedIndex(InvertedIndex):
    """An index of posting lists in memory."""

    def __init__(self, lists, num_images, splits=None):
        self.tags = [f"tag{row:03d}" for row in range(len(lists))]
        self.image_ids = np.array([f"{row:016x}" for row in range(num_images)], dtype="S16")
        self.offsets = np.cumsum([0, *map(len, lists)])
        self.postings = np.array([row for rows in lists for row in sorted(rows)], dtype=np.int32)
        self.splits = np.array(splits if splits is not None else [TRAIN] * num_images, dtype=np.uint8)


NO_RELATIONS = {"alias": {}, "broader": {}, "plural": {}}


def training_of(index, known=None, relations=NO_RELATIONS, weighting=0.0):
    pairs = training_pairs(index, np.ones(index.num_tags, bool) if known is None else known, 0.0)
    return TrainingSet(pairs, index.num_tags, index.by_image, spared_tags(index, relations), weighting)


def features_of(index):
    """Features that tell whose they are: image r has (r, r + 0.5)."""
    rows = torch.arange(index.num_images).half()
    return ResidentFeatures(torch.stack([rows, rows + 0.5], dim=1), CPU)


def batches_of(index, known=None, batch_size=2, seed=0, epoch=0, **options):
    return PairBatches(training_of(index, known), features_of(index), batch_size, seed, CPU, lambda: epoch, **options)


def listed_pairs(batches):
    return [
        (int(tag), int(image))
        for batch in batches
        for tag, image in zip(batch.tag_rows, batch.image_rows, strict=False)
    ]


posting_lists = st.lists(st.sets(st.integers(0, 11), max_size=12), min_size=1, max_size=6)


def test_the_image_of_a_pair_is_always_relevant(line):
    index, known = open_line_index(line)
    for batch in batches_of(index, known, batch_size=64):
        assert batch.relevant.table().diagonal().all()


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
    assert batch.relevant.table().shape == (2, 4)


def test_a_batch_has_the_features_of_its_images_as_they_are_stored():
    index = ListedIndex([{0, 1, 2, 3, 4}], num_images=5)
    batch = batches_of(index, fixed_wrong=True).batch(torch.tensor([1, 4]))
    assert batch.features.dtype == torch.float16
    assert batch.features.tolist() == [[1, 1.5], [4, 4.5], [4, 4.5], [2, 2.5]]
    batch = image_batches_of(index).batch(torch.tensor([3]))
    assert batch.features.tolist() == [[3, 3.5]]


def test_too_few_pairs_are_refused_with_the_counts():
    index = ListedIndex([{0, 1}], num_images=2, splits=[TRAIN, VAL])
    with pytest.raises(ArtifactError, match="1 pairs to train on: 1 tags, 1 of them with a vector, 1 train images"):
        training_pairs(index, np.ones(1, bool), 0.0)


RELATIONS = {"alias": {"tag000": {"tag001"}, "tag001": {"tag000"}}, "broader": {"tag002": {"tag000"}}, "plural": {}}
NAMES = [f"tag{row:03d}" for row in range(5)]
named = st.dictionaries(st.sampled_from([*NAMES, "unseen"]), st.sets(st.sampled_from(NAMES), max_size=3), max_size=4)


@settings(deadline=None)
@given(posting_lists, st.fixed_dictionaries({"alias": named, "broader": named, "plural": named}))
def test_spared_tags_are_those_carried_and_all_related_to_one_carried(lists, relations):
    index = ListedIndex(lists, num_images=12)
    offsets, tag_rows = spared_tags(index, relations)
    for image in range(12):
        carried = {tag for row, tag in enumerate(index.tags) if image in lists[row]}
        spared = carried.union(*(related_tags(tag, relations) for tag in carried)) & set(index.tags)
        found = [index.tags[row] for row in tag_rows[offsets[image] : offsets[image + 1]]]
        assert found == sorted(spared)


def test_a_picture_of_an_alias_or_broader_tag_is_blocked_but_not_relevant():
    index = ListedIndex([{0}, {1}, {2}, {3}], num_images=4)  # tags 0 and 1 are aliases, and 0 is broader than 2
    batch = PairBatches(training_of(index, relations=RELATIONS), features_of(index), 4, 0, CPU, lambda: 0).batch(
        torch.arange(4)
    )
    blocked = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(batch.relevant.table(), torch.eye(4, dtype=torch.bool))
    assert torch.equal(batch.blocked.table(), blocked)
    assert batch.false_negatives.item() == pytest.approx(4 / 12)


def test_without_relations_what_is_blocked_is_what_is_relevant():
    batch = batches_of(ListedIndex([{0, 1}, {1}], num_images=2)).batch(torch.tensor([0, 2]))
    assert batch.blocked is batch.relevant


def test_the_meter_counts_the_negatives_that_would_have_been_wrong():
    index = ListedIndex([{0, 1, 2}, {2}], num_images=3)  # pairs (0, 0), (0, 1), (0, 2), (1, 2)
    batch = batches_of(index, batch_size=3).batch(torch.tensor([0, 1, 3]))
    # of six places off the diagonal tag 0 carries image 1, image 0, and image 2 twice
    assert batch.false_negatives.item() == pytest.approx(4 / 6)


def test_the_meter_counts_fixed_wrong_pictures_that_carry_the_tag():
    index = ListedIndex([{0, 1}, {2, 3, 4}], num_images=5)
    batch = batches_of(index, fixed_wrong=True).batch(torch.tensor([0, 1, 2]))  # wrong ones are images 3, 4, 0
    assert batch.false_negatives == 0
    batch = batches_of(index, fixed_wrong=True).batch(torch.tensor([2, 3]))  # wrong ones are images 0 and 1
    assert batch.false_negatives == 0
    batch = batches_of(ListedIndex([{0, 1, 2, 3}], num_images=4), fixed_wrong=True).batch(torch.tensor([0, 1]))
    assert batch.false_negatives == 1


def image_batches_of(index, known=None, batch_size=2, relations=NO_RELATIONS, weighting=0.0):
    return ImageBatches(
        training_of(index, known, relations, weighting), features_of(index), batch_size, 0, CPU, lambda: 0
    )


def test_image_batches_have_every_train_image_with_a_known_tag_once():
    index = ListedIndex([{0, 1, 2}, {3}, {1, 4}], num_images=6, splits=[TRAIN, TRAIN, TRAIN, TRAIN, TEST, TRAIN])
    batches = image_batches_of(index, np.array([True, False, True]), batch_size=1)
    rows = [batch.image_rows.tolist() for batch in batches]
    assert sorted(rows) == [[0], [1], [2]]
    assert batches.batch(torch.tensor([0])).tag_rows.tolist() == [0, 2]


@settings(deadline=None)
@given(posting_lists, st.data())
def test_relevance_in_an_image_batch_is_what_the_posting_lists_say(lists, data):
    index = ListedIndex(lists, num_images=12)
    images = sorted(set().union(*lists))
    if len(index.postings) < 2:
        return
    drawn = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=9))
    batch = image_batches_of(index).batch(torch.tensor(drawn))
    expected = [[images[row] in lists[tag] for row in drawn] for tag in batch.tag_rows.tolist()]
    assert batch.relevant.table().tolist() == expected


def test_the_meter_of_image_batches_counts_all_tags_but_one_an_image():
    index = ListedIndex([{0, 1}, {1}, {2}], num_images=3)
    batch = image_batches_of(index).batch(torch.tensor([1, 2]))  # images of two tags and of one, three tags in all
    assert batch.false_negatives.item() == pytest.approx(1 / 4)


def test_related_tags_are_blocked_beside_images_too():
    batch = image_batches_of(ListedIndex([{0}, {1}], num_images=2), relations=RELATIONS).batch(torch.tensor([0]))
    assert batch.relevant.table().tolist() == [[True], [False]]
    assert batch.blocked.table().tolist() == [[True], [True]]


def test_a_tag_weighs_less_the_more_frequent_it_is_and_the_mean_over_pairs_is_one():
    index = ListedIndex([{0, 1, 2, 3}, {0}], num_images=4)
    training = training_of(index, weighting=0.5)
    # frequencies 4 and 1 to the power of -1/2 are 1/2 and 1; over the five pairs their mean is 3/5
    np.testing.assert_allclose(training.weights, [0.5 / 0.6, 1 / 0.6], rtol=1e-6)
    batches = PairBatches(training, features_of(index), 2, 0, CPU, lambda: 0)
    assert batches.batch(torch.tensor([4, 0])).weights.tolist() == pytest.approx([1 / 0.6, 0.5 / 0.6])


def test_the_prior_of_a_tag_is_its_share_of_the_train_images():
    index = ListedIndex([{0, 1, 4}, {2}, {0, 2, 3}], num_images=5, splits=[TRAIN, TRAIN, TRAIN, TRAIN, TEST])
    training = training_of(index, np.array([True, False, True]))
    assert training.vocabulary.tolist() == [0, 2]
    assert training.prior.tolist() == [2 / 4, 3 / 4]  # test images and tags without a vector count nowhere
