"""Order, ranks and tie rule against full sorts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.metrics import average_precision
from train.ranking import Scorer, ranks_of, strictly_falling, top_k

few_values = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]), min_size=1, max_size=40)


def full_order(scores):
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


@given(few_values, st.integers(0, 45))
def test_top_k_is_the_head_of_a_stable_full_sort(scores, k):
    assert top_k(np.array(scores), k).tolist() == full_order(scores)[:k]


def test_top_k_of_no_candidates_is_empty():
    assert top_k(np.empty(0), 5).tolist() == []


@given(few_values, st.data())
def test_ranks_are_places_in_a_stable_full_sort(scores, data):
    rows = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
    order = full_order(scores)
    assert ranks_of(np.array(scores), np.array(rows)).tolist() == [order.index(row) + 1 for row in rows]


def test_equal_scores_are_ordered_by_ascending_row():
    assert top_k(np.array([0.5, 0.9, 0.5, 0.9]), 4).tolist() == [1, 3, 0, 2]


def test_constant_scores_do_not_beat_chance():
    rng = np.random.default_rng(0)
    found = [average_precision(ranks_of(np.ones(50), rng.permutation(50)[:5])) for _ in range(400)]
    chance = [average_precision(rng.permutation(50)[:5] + 1) for _ in range(400)]
    assert np.mean(found) == pytest.approx(np.mean(chance), abs=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_with_the_system_named(bad):
    scorer = Scorer("ridge", np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [bad, 0.0]]))
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match="ridge: 1 of 2 scores are not finite"),
    ):
        scorer.scores(0)


def test_a_scorer_scores_chosen_rows_as_it_scores_all():
    rng = np.random.default_rng(1)
    scorer = Scorer("any", rng.normal(size=(3, 4)), rng.normal(size=(9, 4)))
    rows = np.array([7, 0, 3])
    np.testing.assert_allclose(scorer.scores(2, rows), scorer.scores(2)[rows])


def test_scores_in_blocks_are_those_of_each_query():
    rng = np.random.default_rng(2)
    scorer = Scorer("any", rng.normal(size=(7, 4)), rng.normal(size=(5, 4)))
    blocks = list(scorer.each(entries=12))
    np.testing.assert_allclose(blocks, [scorer.scores(query) for query in range(7)])


@given(st.lists(st.floats(-2, 2, width=32), max_size=60))
def test_falling_scores_fall_strictly_and_stay_near(values):
    scores = np.sort(np.array(values, dtype=np.float32))[::-1]
    falling = strictly_falling(scores)
    assert falling.dtype == np.float32
    assert (np.diff(falling) < 0).all()
    np.testing.assert_allclose(falling, scores, atol=1e-5)


@given(st.lists(st.floats(-2, 2, width=32), max_size=60))
def test_falling_scores_equal_a_loop_that_steps_down_one_float_at_a_time(values):
    scores = np.sort(np.array(values, dtype=np.float32))[::-1]
    expected = scores.copy()
    for at in range(1, len(expected)):
        if expected[at] >= expected[at - 1]:
            expected[at] = np.nextafter(expected[at - 1], np.float32(-np.inf))
    np.testing.assert_array_equal(strictly_falling(scores), expected)
