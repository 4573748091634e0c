"""What a score promises, by hand and against the formula of isotonic regression."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.artifacts import ArtifactError, read_manifest
from crawl.records import TEST, VAL
from tests.synthetic import copy_line, evaluate_config
from train.calibration import (
    LOWEST,
    MIN_RESULTS,
    Counts,
    bins_of,
    count_results,
    filled_bins,
    fit,
    judge,
    open_calibration,
    share_intervals,
)
from train.evaluate import evaluate
from train.galleries import Question, gallery_question, scores_of
from train.ranking import Scorer
from train.runs import open_run
from train.towers import embed, embed_tags


def counts(**by_score):
    """Counts of one tag, as `at_40=(results, right)` for a score of 0.40."""
    results, right = np.zeros((2, 1, len(LOWEST)), dtype=np.int64)
    for name, (many, correct) in by_score.items():
        at = int(np.flatnonzero(np.float32(int(name[3:]) / 100) == LOWEST)[0])
        results[0, at], right[0, at] = many, correct
    return Counts(results, right)


RISING = counts(at_10=(900, 9), at_40=(60, 30), at_80=(40, 36))


def test_where_shares_rise_each_is_its_own_promise():
    found = fit(RISING)
    assert found.scores.tolist() == pytest.approx([0.1, 0.4, 0.8])
    assert found.probability.tolist() == pytest.approx([0.01, 0.5, 0.9])
    assert found.precision.tolist() == pytest.approx([75 / 1000, 66 / 100, 0.9])
    assert found.kept.tolist() == pytest.approx([1, 66 / 75, 36 / 75])


def test_shares_that_fall_are_pooled():
    found = fit(counts(at_10=(100, 10), at_40=(60, 30), at_80=(40, 10)))
    assert found.probability.tolist() == pytest.approx([0.1, 0.4, 0.4])
    assert found.precision.tolist() == pytest.approx([0.25, 0.4, 0.4])


def test_a_few_results_at_the_top_promise_nothing_of_their_own():
    few = counts(at_10=(100, 10), at_60=(MIN_RESULTS - 2, 14), at_80=(1, 1), at_90=(1, 1))
    found = fit(few)
    assert found.scores.tolist() == pytest.approx([0.1, 0.6])
    assert found.probability[-1] == pytest.approx(16 / MIN_RESULTS)


def test_with_few_results_in_all_there_is_one_promise():
    assert fit(counts(at_10=(5, 0), at_40=(5, 5))).probability.tolist() == [0.5]


def test_a_score_has_the_promise_of_the_bin_below_it_and_one_on_the_edge_is_inside():
    scores = np.array([-1.2, 0.1, 0.39, 0.4, 0.799, 0.8, 1.0], dtype=np.float32)
    assert fit(RISING).probability_of(scores).tolist() == pytest.approx([0.01, 0.01, 0.01, 0.5, 0.5, 0.9, 0.9])


@pytest.mark.parametrize(("precision", "score"), [(0.0, 0.1), (0.075, 0.1), (0.08, 0.4), (0.66, 0.4), (0.9, 0.8)])
def test_the_lowest_score_that_keeps_a_promise_is_named(precision, score):
    assert fit(RISING).threshold(precision) == pytest.approx(score)


def test_a_promise_that_no_score_keeps_is_none():
    assert fit(RISING).threshold(0.91) is None


def test_results_at_the_threshold_itself_are_kept():
    scores = np.array([0.4, 0.39999998], dtype=np.float32)
    assert (scores >= fit(RISING).threshold(0.5)).tolist() == [True, False]


def by_formula(results, right):
    """Isotonic regression as max over heads of min over tails of weighted means: Barlow et al. 1972."""
    mean = lambda start, end: right[start:end].sum() / results[start:end].sum()  # noqa: E731
    places = range(len(results))
    return [max(min(mean(a, b + 1) for b in places[at:]) for a in places[: at + 1]) for at in places]


some_counts = st.lists(st.tuples(st.integers(30, 60), st.floats(0, 1)), min_size=1, max_size=12)


@given(some_counts, st.data())
def test_promises_never_fall_and_are_those_of_the_formula(given_counts, data):
    many = np.array([each for each, _ in given_counts])
    right = np.array([round(share * each) for each, share in given_counts])
    at = np.array(sorted(data.draw(st.sets(st.integers(0, 199), min_size=len(many), max_size=len(many)))))
    results, correct = np.zeros((2, 1, len(LOWEST)), dtype=np.int64)
    results[0, at], correct[0, at] = many, right
    found = fit(Counts(results, correct))
    assert found.probability.tolist() == pytest.approx(by_formula(many, right))
    for values in (found.probability, found.precision, -found.kept):
        assert (np.diff(values) >= -1e-12).all()
    counted = [right[place:].sum() / many[place:].sum() for place in range(len(many))]
    steps = [0, *(np.flatnonzero(np.diff(found.probability) > 1e-9) + 1)]
    assert found.precision[steps].tolist() == pytest.approx([counted[step] for step in steps])
    for share in (0.1, 0.5, 0.9):
        score = found.threshold(share)
        kept = found.precision[found.scores >= score] if score is not None else found.precision[:0]
        assert (kept >= share - 1e-9).all()
        assert (found.precision[: len(found.precision) - len(kept)] < share).all()


def test_bins_that_are_empty_are_left_out():
    assert filled_bins(np.array([0, 3, 0, 40, 0, 1, 29, 0])).tolist() == [1, 3, 5]


def test_results_are_counted_in_the_bin_of_their_score():
    scores = np.array([[0.40, 0.409, 0.41, -1.0000001], [0.0, -0.001, 1.0, 0.4]], dtype=np.float32)
    question = Question("q", np.arange(2), np.arange(4), [np.array([1, 3]), np.array([2])])
    found = count_results(question, Scorer("given", scores, np.eye(4, dtype=np.float32)))
    at = lambda score: int(np.flatnonzero(np.float32(score) == LOWEST)[0])  # noqa: E731
    assert found.results[0, [at(0.40), at(0.41), 0]].tolist() == [2, 1, 1]
    assert found.right[0, [at(0.40), at(0.41), 0]].tolist() == [1, 0, 1]
    assert found.results[1, [at(0.0), at(-0.01), len(LOWEST) - 1]].tolist() == [1, 1, 1]
    assert found.results.sum() == 8


def test_every_edge_opens_its_own_bin():
    assert bins_of(LOWEST, LOWEST).tolist() == list(range(len(LOWEST)))
    below = np.nextafter(LOWEST[1:], np.float32(-2))
    assert bins_of(below, LOWEST).tolist() == list(range(len(LOWEST) - 1))


def test_errors_by_hand():
    calibration = fit(RISING)  # promises 0.01, 0.5 and 0.9
    found = judge(calibration, counts(at_10=(100, 3), at_40=(10, 4), at_90=(10, 10)))
    assert found["ece_15_equal_width"] == pytest.approx((2 + 1 + 1) / 120)
    squares = 3 * 0.99**2 + 97 * 0.01**2 + 10 * 0.25 + 10 * 0.1**2
    assert found["brier"] == pytest.approx(squares / 120)
    assert found["brier_of_the_share"] == pytest.approx(17 / 120 * 103 / 120)


def test_intervals_are_over_tags():
    same = Counts(np.full((5, 1), 10), np.full((5, 1), 4))
    assert share_intervals(same, 200)[:, 0].tolist() == [0.4, 0.4]
    apart = Counts(np.full((50, 1), 10), np.repeat([[0], [10]], 25, axis=0))
    low, high = share_intervals(apart, 2000)[:, 0]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 50**0.5, rel=0.1)


def test_a_score_without_results_has_no_interval_and_no_warning():
    assert np.isnan(share_intervals(Counts(np.zeros((3, 1)), np.zeros((3, 1))), 100)).all()


@pytest.fixture(scope="module")
def directory(trained):
    return trained.run("small") / "evaluation" / "test"


def test_an_evaluation_on_test_seals_its_calibration_and_one_on_val_has_none(trained, directory):
    files = {"calibration.json", "calibration.csv", "reliability.svg"}
    assert files <= read_manifest(directory).files.keys()
    assert not files & read_manifest(trained.run("small") / "evaluation" / "val").files.keys()


def test_what_is_promised_is_what_val_has_and_test_is_counted_apart(trained, directory):
    towers, _, inputs = open_run(trained, "small")
    rows = {split: [] for split in (VAL, TEST)}
    for split, found in rows.items():
        question = gallery_question(inputs.index, split, np.asarray(inputs.vectors.known))
        names = [inputs.index.tags[row] for row in question.tag_rows]
        tags = embed_tags(towers, names, torch.from_numpy(np.array(inputs.vectors.vectors[question.tag_rows]))).numpy()
        images = embed(towers.image, torch.from_numpy(np.array(inputs.features[question.gallery]))).numpy()
        scorer = Scorer("trained", tags, images)
        for scores, relevant in zip(scores_of(question, scorer), question.relevant, strict=True):
            found += [(float(score), at in relevant) for at, score in enumerate(scores)]
    with (directory / "calibration.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    for row in table[:: max(1, len(table) // 5)]:
        for split, name in ((VAL, "val"), (TEST, "test")):
            above = [right for score, right in rows[split] if np.float32(score) >= np.float32(float(row["score"]))]
            assert int(row[f"{name}_results"]) == len(above)
            assert float(row[f"{name}_precision"]) == pytest.approx(np.mean(above), abs=1e-6)


def test_what_was_written_reads_back(trained, directory):
    found = open_calibration(trained, "small")
    kept = json.loads((directory / "calibration.json").read_text())
    for row in kept["promises"]:
        assert found.threshold(row["asked"]) == pytest.approx(row["score"])
        assert found.probability_of(np.array([row["score"]])).tolist() == pytest.approx([row["probability"]], abs=1e-6)
    assert kept["judged_on"]["num_results"] == kept["judged_on"]["num_tags"] * 60


def test_a_run_that_was_not_evaluated_is_told_how(trained):
    with pytest.raises(ArtifactError, match=r'make evaluate ARGS="run=none"'):
        open_calibration(trained, "none")


def test_where_val_asks_for_no_tag_there_is_a_warning_and_no_calibration(trained, tmp_path, monkeypatch, caplog):
    own = copy_line(trained, tmp_path)
    monkeypatch.setattr("train.evaluate.calibrate", lambda *_: pytest.fail("there is nothing to fit"))
    monkeypatch.setattr("train.evaluate.choose_ridge", lambda *_: 1.0)
    monkeypatch.setattr("train.evaluate.VAL", 7)  # a split that no image is in
    evaluate(evaluate_config(own, cutoffs=[1]))
    assert "without calibration" in caplog.text
    with pytest.raises(ArtifactError, match=r"has no calibration\.json"):
        open_calibration(own, "small")
