"""Verdicts: tests and intervals against hand-worked numbers and scipy, and how often they are wrong."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from train.significance import (
    Difference,
    bootstrap_differences,
    holm,
    is_told_apart,
    paired_difference,
    sign_flip_p,
    smallest_detectable,
    verdict,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def difference(mean, low, high, error=0.01, p=0.01, num_tags=100):
    return Difference(mean, low, high, error, p, num_tags)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 1.0, 1.0], 2 / 8),  # only +++ and --- sum to 3
        ([3.0, -1.0], 1.0),  # sums are 2, 4, -4, -2: all as far from 0 as 2
        ([3.0, 1.0], 2 / 4),
        ([0.0, 0.0], 1.0),
        ([0.1, 0.2, 0.3], 2 / 8),  # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floats
    ],
)
def test_few_tags_are_tested_with_all_signs(differences, p):
    assert sign_flip_p(np.array(differences), rng(), 10**5) == p


@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=8))
def test_exact_p_is_scipys(differences):
    found = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=inf, vectorized=False
    )
    assert sign_flip_p(np.array(differences), rng(), 10**5) == pytest.approx(min(found.pvalue, 1))


def test_drawn_signs_give_about_the_p_of_all_signs():
    differences = rng(1).normal(0.1, 0.3, size=14)
    exact = sign_flip_p(differences, rng(), 10**5)
    assert 0.01 < exact < 0.5
    assert sign_flip_p(differences, rng(), 10_000) == pytest.approx(exact, abs=0.02)


def test_p_of_drawn_signs_is_never_zero():
    assert sign_flip_p(np.ones(60), rng(), 999) == 1 / 1000


def test_holm_as_worked_by_hand():
    # ascending 0.005 0.01 0.03 0.04 times 4 3 2 1 is 0.02 0.03 0.06 0.04; none below a lesser one: 0.04 becomes 0.06
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p):
    raw, corrected = np.array(p), holm(np.array(p))
    assert (corrected >= raw).all()
    assert (corrected <= np.minimum(raw * len(raw), 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(raw, kind="stable")]) >= 0).all()


def test_interval_of_single_seeds_is_the_paired_bootstrap_of_scipy():
    ours, theirs = rng(2).uniform(size=(2, 1, 80))
    found = paired_difference(ours, theirs, 20_000)
    scipys = stats.bootstrap(((ours - theirs)[0],), np.mean, method="percentile", n_resamples=20_000, rng=rng())
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx(scipys.confidence_interval, abs=0.004)
    assert found.standard_error == pytest.approx(scipys.standard_error, rel=0.05)


def test_tags_are_paired():
    tags = rng(3).uniform(size=(1, 50))  # they differ much, the systems everywhere by the same
    found = paired_difference(tags + 0.02, tags, 500)
    assert (found.low, found.high) == pytest.approx((0.02, 0.02))


def test_seeds_are_a_second_level():
    # Two seeds at 0.1 and 0.3 on every tag: drawn with replacement their mean is 0.1, 0.2 or 0.3.
    ours = np.repeat([[0.1], [0.3]], 40, axis=1)
    drawn = bootstrap_differences(ours, np.zeros((1, 40)), 2000, rng())
    values, counts = np.unique(drawn.round(6), return_counts=True)
    assert values.tolist() == [0.1, 0.2, 0.3]
    assert counts / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_chunks_do_not_change_what_is_drawn_for_a_comparison(monkeypatch):
    values = rng(4).uniform(size=(2, 1, 300))
    assert paired_difference(*values, 50) == paired_difference(*values, 50)
    monkeypatch.setattr("train.significance.CHUNK_ENTRIES", 5000)
    assert len(bootstrap_differences(*values, 50, rng())) == 50


def test_smallest_detectable_is_two_point_eight_standard_errors_for_many_tags():
    assert smallest_detectable(difference(0, -1, 1, error=0.01, num_tags=10**6), 1) == pytest.approx(0.02802, abs=1e-5)


def test_more_comparisons_need_a_larger_difference():
    one, ten = (smallest_detectable(difference(0, -1, 1), count) for count in (1, 10))
    assert one < ten


def test_five_tags_are_too_few_and_six_are_not():
    # The least p of T tags is 2 in 2^T: 0.0625 for five, 0.03125 for six.
    assert smallest_detectable(difference(0, -1, 1, num_tags=5), 1) == inf
    assert smallest_detectable(difference(0, -1, 1, num_tags=6), 1) < inf


@pytest.mark.parametrize(
    ("found", "corrected", "words"),
    [
        (difference(0.031, 0.012, 0.049), 0.01, "better by 0.031, interval 0.012 to 0.049"),
        (difference(-0.031, -0.049, -0.012), 0.01, "worse by 0.031, interval 0.012 to 0.049"),
        (
            difference(0.004, -0.003, 0.011, error=0.00357, num_tags=10**6),
            0.2,
            "cannot be told apart (difference 0.004, interval -0.003 to 0.011; "
            "a difference of 0.010 would have been seen)",
        ),
        (
            difference(0.012, 0.001, 0.022, error=0.0001),
            0.06,
            "cannot be told apart (difference 0.012, interval 0.001 to 0.022, but the permutation test does not agree)",
        ),
        (
            difference(0.2, -0.1, 0.5, num_tags=4),
            0.3,
            "cannot be told apart (difference 0.200, interval -0.100 to 0.500; "
            "4 tags are too few for any difference to be seen)",
        ),
        (difference(0.0, 0.0, 0.0, error=0.0), 1.0, "cannot be told apart (equal on every tag)"),
    ],
)
def test_verdicts_in_words(found, corrected, words):
    assert verdict(found, corrected, 1) == words


def test_a_verdict_that_the_correction_takes_back_says_so():
    words = verdict(difference(0.012, 0.001, 0.022, error=0.0001), 0.06, 12)
    assert words == "cannot be told apart (difference 0.012, interval 0.001 to 0.022, but not against 12 comparisons)"


def test_one_tag_tells_nothing():
    found = paired_difference(np.array([[0.9]]), np.array([[0.1]]))
    assert (found.p, found.low, found.high) == (1.0, -inf, inf)
    assert verdict(found, found.p, 1) == "cannot be told apart (difference 0.800 on one tag)"


def test_the_same_gain_on_three_tags_is_no_tie():
    found = paired_difference(np.full((1, 3), 0.5), np.full((1, 3), 0.25), 100)
    assert "3 tags are too few" in verdict(found, found.p, 1)


def systems(seed, better=0.0, num_tags=120):
    """Per-tag AP of two systems, skewed as such values are, that differ by noise and by `better`."""
    draw = rng(seed)
    tags = draw.beta(0.7, 1.5, num_tags)
    ours, theirs = (tags + draw.normal(0, 0.08, num_tags) for _ in range(2))
    return np.clip(ours + better, 0, 1), np.clip(theirs, 0, 1)


def flags(ours, theirs):
    """Whether any of five questions tells two systems apart: all tags, three kinds, and few tags."""
    parts = [slice(None), slice(0, 60), slice(60, 110), slice(110, None), slice(0, 12)]
    found = [paired_difference(ours[None, part], theirs[None, part], 500) for part in parts]
    return [is_told_apart(each, p) for each, p in zip(found, holm(np.array([each.p for each in found])), strict=True)]


def test_alike_systems_are_told_apart_in_at_most_five_of_a_hundred_comparisons(monkeypatch):
    monkeypatch.setattr("train.significance.SIGN_FLIPS", 2000)
    assert sum(any(flags(*systems(seed))) for seed in range(400)) <= 20


def test_a_planted_difference_is_found():
    ours, theirs = systems(0, better=0.03, num_tags=300)
    found = paired_difference(ours[None], theirs[None])
    assert verdict(found, found.p, 1).startswith("better by 0.0")


def test_the_smallest_detectable_difference_is_seen_four_times_in_five(monkeypatch):
    monkeypatch.setattr("train.significance.SIGN_FLIPS", 2000)
    detectable = (1.9799 + 0.8446) * 0.1 / np.sqrt(120)  # t with 119 degrees of freedom
    seen = 0
    for seed in range(200):
        values = rng(seed).normal(detectable, 0.1, size=(1, 120))
        found = paired_difference(values, np.zeros((1, 120)), 500)
        seen += is_told_apart(found, found.p)
    assert seen / 200 == pytest.approx(0.8, abs=0.06)
