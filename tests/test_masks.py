"""Which images of a batch carry which of its tags."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.masks import TagLists

CPU = torch.device("cpu")
by_image = st.lists(st.sets(st.integers(0, 5), max_size=6), min_size=12, max_size=12).filter(any)


def lists_of(carried):
    """Tags of twelve images, given as sets of rows."""
    offsets = np.cumsum([0, *map(len, carried)])
    return TagLists((offsets, np.array([tag for tags in carried for tag in sorted(tags)], dtype=np.int32)), 6, CPU)


def drawn(data):
    """Some tags and images, both with repetitions."""
    tags = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    return tags, data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=9))


@settings(deadline=None)
@given(by_image, st.data())
def test_a_table_is_what_the_lists_say(carried, data):
    lists = lists_of(carried)
    for _ in range(2):  # what it keeps between calls must be clean again
        tags, images = drawn(data)
        mask = lists.mask(torch.tensor(tags), torch.tensor(images))
        assert mask.table().tolist() == [[tag in carried[image] for image in images] for tag in tags]


@settings(deadline=None)
@given(by_image, st.data())
def test_a_part_of_a_mask_is_that_part_of_its_table(carried, data):
    tags, images = drawn(data)
    mask = lists_of(carried).mask(torch.tensor(tags), torch.tensor(images))
    rows, columns = (slice(*sorted(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9))))) for _ in range(2))
    assert torch.equal(mask.part(rows, columns).table(), mask.table()[rows, columns])


@settings(deadline=None)
@given(by_image, st.data())
def test_a_mask_counts_without_its_table(carried, data):
    tags, images = drawn(data)
    mask = lists_of(carried).mask(torch.tensor(tags), torch.tensor(images))
    assert mask.counts().tolist() == mask.table().sum(dim=1).tolist()


def test_a_mask_is_filled_with_the_numbers_asked_for():
    mask = lists_of([{0}, {1, 2}] + [set()] * 10).mask(torch.tensor([1, 0]), torch.tensor([0, 1, 5]))
    assert mask.filled(0, -2, torch.float64).tolist() == [[0, -2, 0], [-2, 0, 0]]
