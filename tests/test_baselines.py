"""Floors by hand and against a direct solution."""

import numpy as np
import pytest

import train.evaluate
from crawl.records import VAL
from tests.synthetic import GATE, evaluate_config
from train.baselines import RIDGE_STRENGTHS, Ridge, Standardiser, choose_ridge, class_mean, conse, unit_rows
from train.ranking import Scorer
from train.runs import open_run


def plain(width):
    """A standardiser that leaves features as they are."""
    return Standardiser(np.array([[-1.0] * width, [1.0] * width]), np.arange(2))


def test_unit_rows_leave_a_zero_row_zero():
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [pytest.approx([0.6, 0.8]), [0, 0]]


def test_standard_units_have_mean_zero_and_spread_one_over_the_train_rows():
    features = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float16)
    train_rows = np.arange(40)
    scaled = Standardiser(features, train_rows, chunk=7)(features[train_rows])
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)


def test_a_column_that_never_changes_does_not_divide_by_zero():
    features = np.ones((5, 2), np.float16)
    assert np.isfinite(Standardiser(features, np.arange(5))(features)).all()


def test_class_mean_by_hand():
    features = np.array([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0], [-1.0, 1.0]])
    scorer = class_mean("class_mean", features, plain(2), [np.array([0, 1])], np.array([2, 3]))
    # the mean of (1, 0) and (0, 1) points to (1, 1)
    assert scorer.scores(0).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_class_mean_by_chunks_is_class_mean_at_once(monkeypatch):
    features = np.random.default_rng(1).normal(size=(30, 5))
    lists = [np.arange(20), np.array([3, 7])]
    whole = class_mean("m", features, plain(5), lists, np.arange(20, 30))
    monkeypatch.setattr("train.baselines.CHUNK", 3)
    chunked = class_mean("m", features, plain(5), lists, np.arange(20, 30))
    np.testing.assert_allclose(chunked.queries, whole.queries, rtol=1e-5)


def test_conse_puts_an_image_between_the_words_of_the_tags_it_looks_like():
    means = Scorer("class_mean", np.eye(2, dtype=np.float32), np.array([[1, 0], [0, 1], [0.6, 0.6]], np.float32))
    words = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    scorer = conse(means, words, np.array([[2.0, 0.0]], np.float32))
    share = 1 / (1 + np.exp(-10))  # a softmax of cosines 1 and 0 at temperature 0.1
    expected = [share, 1 - share] / np.hypot(share, 1 - share)
    assert scorer.scores(0).tolist() == pytest.approx([*expected, 0.5**0.5], abs=1e-6)


def test_conse_by_chunks_is_conse_at_once():
    rng = np.random.default_rng(2)
    means = Scorer("class_mean", unit_rows(rng.normal(size=(6, 4))), unit_rows(rng.normal(size=(11, 4))))
    words, asked = rng.normal(size=(6, 3)), rng.normal(size=(2, 3))
    whole, chunked = conse(means, words, asked), conse(means, words, asked, chunk=4)
    np.testing.assert_allclose(list(chunked.each()), list(whole.each()), atol=1e-6)


@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0])
def test_ridge_is_the_solution_of_its_normal_equations(strength):
    rng = np.random.default_rng(0)
    features = rng.normal(1, 2, size=(60, 6)).astype(np.float32)
    train_rows, gallery = np.arange(50), np.arange(50, 60)
    lists = [np.array([1, 5, 9]), np.array([0, 2, 4, 6])]
    centred = (features - features[train_rows].mean(axis=0)).astype(np.float64)
    x = centred[train_rows]
    targets = np.zeros((50, 2))
    for tag, rows in enumerate(lists):
        targets[rows, tag] = 1
    penalty = strength * np.trace(x.T @ x) / 6
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ targets)
    scorer = Ridge(features, train_rows, chunk=7).scorers(lists, gallery, [strength])[strength]
    np.testing.assert_allclose(list(scorer.each()), (centred[gallery] @ weights).T, rtol=1e-3, atol=1e-5)


class FixedRidge:
    """Stands in for `Ridge`; its scorers are told apart by their queries."""

    def scorers(self, train_lists, gallery):
        return {strength: Scorer("ridge", np.array([[strength]]), np.empty((0, 1))) for strength in RIDGE_STRENGTHS}


def test_the_strength_liked_best_is_chosen():
    chosen = choose_ridge(FixedRidge(), [], np.empty(0), lambda scorer: -abs(scorer.queries[0, 0] - 3.0))
    assert chosen == 3.0


def test_the_weaker_of_two_strengths_liked_equally_is_chosen():
    assert choose_ridge(FixedRidge(), [], np.empty(0), lambda scorer: 0.5) == min(RIDGE_STRENGTHS)


def test_the_strength_is_chosen_on_val_images_alone(trained, monkeypatch):
    galleries = []
    choose = train.evaluate.choose_ridge

    def watched(ridge, train_lists, gallery, judge):
        galleries.append(gallery)
        return choose(ridge, train_lists, gallery, judge)

    monkeypatch.setattr(train.evaluate, "choose_ridge", watched)
    towers, run, inputs = open_run(trained, "small")
    seen = train.evaluate.seen_tags(inputs, 0.0)
    train.evaluate.open_systems(evaluate_config(trained), run, towers, inputs, seen, GATE)
    assert (inputs.index.splits[galleries[0]] == VAL).all()
