"""Neighbours kept: against a sort of all scores, and by hand."""

import numpy as np
import pytest

import features.neighbours
from features.neighbours import nearest, neighbours_kept


def slow_nearest(features, k):
    """Sort all scores of each image with the others."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    return [
        sorted(set(range(len(rows))) - {row}, key=lambda other: -rows[row] @ rows[other])[:k]
        for row in range(len(rows))
    ]


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_the_nearest_are_those_of_a_full_sort(chunk, monkeypatch):
    monkeypatch.setattr(features.neighbours, "_CHUNK", chunk)
    rows = np.random.default_rng(0).normal(size=(30, 5))
    assert [set(found) for found in nearest(rows, 4).tolist()] == [set(found) for found in slow_nearest(rows, 4)]


def test_equal_features_keep_all_neighbours_whatever_their_length():
    rows = np.random.default_rng(0).normal(size=(30, 5))
    assert neighbours_kept(rows, 3 * rows, 4) == 1


def test_the_share_is_of_neighbours_before_that_are_so_after():
    before = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])  # 0 and 1 belong together, 2 and 3
    after = np.array([[1, 0], [1, 0.1], [1, -0.1], [0.1, 1]])  # 2 went over to 0; 3 finds 1 the nearest
    assert neighbours_kept(before, after, 1) == pytest.approx((0.5 + 0.5) / 2)
