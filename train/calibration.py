"""What a score is worth: the probability that a result carries the tag, and the score above which a share is right.

A result is a pair of a tag and an image of its gallery (A): every image of the split is a result of every eligible tag.
Right means that the image carries the tag; where people tag sparingly, a viewer would call more results right.

Q tags, B bins of scores, M of them with results.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from configs.artifacts import ArtifactError, open_artifact
from configs.compose import Paths
from train.calibrated import CALIBRATION, Calibration, bins_of, read_calibration
from train.galleries import Question, scores_of
from train.panels import Line, Panel, svg
from train.ranking import Scorer

# A result belongs to the last of these bins whose lowest score is at most its own; cosines below -1 by rounding to the
# first. Bins keep what is held small for any gallery, and a hundredth is finer than any slider.
LOWEST = (np.arange(-100, 100) / 100).astype(np.float32)
MIN_RESULTS = 30  # on val above a score, for it to be a bin of its own: fewer tell little
ECE_BINS = 15  # of equal width, as Guo et al., ICML 2017, have them
ECE = f"ece_{ECE_BINS}_equal_width"
PROMISES = (0.5, 0.6, 0.7, 0.8, 0.9)
FILES = (CALIBRATION, "calibration.csv", "reliability.svg")
POPULATION = (
    "pairs of an eligible tag and an image of the split's gallery; right where the image carries the tag; counted over "
    "all pairs, so that tags with more results weigh more; intervals by bootstrap over tags"
)


@dataclass(frozen=True)
class Counts:
    """Results by tag and bin."""

    results: np.ndarray  # (Q, B) int64
    right: np.ndarray  # (Q, B) int64

    def above(self) -> Counts:
        """Return the results (Q, B) in each bin and all higher ones."""
        return Counts(*(np.cumsum(each[:, ::-1], axis=1)[:, ::-1] for each in (self.results, self.right)))

    def grouped(self, starts: np.ndarray) -> Counts:
        """Return the results (Q, M) of neighbouring bins together; group m starts at bin `starts[m]`."""
        return Counts(*(np.add.reduceat(each, starts, axis=1) for each in (self.results, self.right)))

    @property
    def share(self) -> float:
        """Return the share of all results that is right."""
        return float(self.right.sum() / self.results.sum())


def count_results(question: Question, scorer: Scorer) -> Counts:
    """Count every tag's results by score."""
    results = np.zeros((len(question.tag_rows), len(LOWEST)), dtype=np.int64)
    right = np.zeros_like(results)
    for query, scores in enumerate(scores_of(question, scorer)):
        bins = bins_of(scores, LOWEST)
        results[query] = np.bincount(bins, minlength=len(LOWEST))
        right[query] = np.bincount(bins[question.relevant[query]], minlength=len(LOWEST))
    return Counts(results, right)


def fit(counts: Counts) -> Calibration:
    """Fit probabilities that never fall with the score: isotonic regression, Zadrozny and Elkan, KDD 2002.

    Precision at or above a score is the mean of these probabilities there, which cannot fall either; where they step up
    it is the plain share that was counted.
    """
    results, right = counts.results.sum(axis=0), counts.right.sum(axis=0)
    starts = filled_bins(results)
    grouped = Counts(results[None], right[None]).grouped(starts)
    results, right = grouped.results[0], grouped.right[0]
    probability = isotonic_regression(right / results, weights=results).x
    above = np.cumsum(results[::-1])[::-1]
    precision = np.cumsum((probability * results)[::-1])[::-1] / above
    kept = np.cumsum(right[::-1])[::-1] / max(right.sum(), 1)
    return Calibration(LOWEST[starts], probability, np.maximum.accumulate(precision), kept)  # of rounding alone


def filled_bins(results: np.ndarray) -> np.ndarray:
    """Return the bins (M,) with results, of which the last holds MIN_RESULTS with all that lie above it."""
    above = np.cumsum(results[::-1])[::-1]
    last = int(np.flatnonzero(above >= min(MIN_RESULTS, above[0]))[-1])
    return np.append(np.flatnonzero(results[:last]), last)


def share_intervals(counts: Counts, resamples: int, seed: int = 0) -> np.ndarray:
    """Return 95 % intervals (2, M) of the share of right results in each column, by bootstrap over the Q tags."""
    num_tags = len(counts.results)
    weights = np.random.default_rng(seed).multinomial(num_tags, [1 / num_tags] * num_tags, size=resamples)
    weights = weights.astype(np.float64)  # which multiplies faster than whole numbers
    results = weights @ counts.results
    share = np.divide(weights @ counts.right, results, out=np.full(results.shape, np.nan), where=results > 0)
    known = ~np.isnan(share).all(axis=0)
    found = np.full((2, share.shape[1]), np.nan)
    found[:, known] = np.nanpercentile(share[:, known], [2.5, 97.5], axis=0)
    return found


def probability_bins(calibration: Calibration, counts: Counts) -> tuple[np.ndarray, np.ndarray, Counts]:
    """Group results by promised probability, in up to 15 bins of equal width.

    Returns:
        Promise of each score bin (B,), mean promise of the results of each probability bin (G,), and these results.
    """
    promised = calibration.probability_of(LOWEST)
    bins = np.minimum((promised * ECE_BINS).astype(int), ECE_BINS - 1)  # never falling, as the promises
    starts = np.unique(bins, return_index=True)[1]
    grouped = counts.grouped(starts)
    results = grouped.results.sum(axis=0)
    sums = np.add.reduceat(promised * counts.results.sum(axis=0), starts)
    return promised, np.divide(sums, results, out=np.zeros(len(starts)), where=results > 0), grouped


def judge(calibration: Calibration, counts: Counts) -> dict[str, float]:
    """Return errors of the probabilities on other results: ECE over 15 bins of equal width, and the Brier score."""
    promised, means, grouped = probability_bins(calibration, counts)
    gaps = grouped.right.sum(axis=0) - means * grouped.results.sum(axis=0)
    results, right = counts.results.sum(axis=0), counts.right.sum(axis=0)
    squares = right * (1 - promised) ** 2 + (results - right) * promised**2
    return {
        ECE: float(np.abs(gaps).sum() / results.sum()),
        "brier": float(squares.sum() / results.sum()),
        "brier_of_the_share": counts.share * (1 - counts.share),
    }


def rows_of(calibration: Calibration, splits: Mapping[str, Counts], resamples: int) -> list[dict[str, Any]]:
    """Return a row a score: what it promises, and what each split has at or above it, with intervals over tags."""
    starts = np.searchsorted(LOWEST, calibration.scores)
    promises = zip(calibration.scores, calibration.probability, calibration.precision, strict=True)
    rows: list[dict[str, Any]] = [
        {"score": round(float(score), 2), "probability": _number(probability), "promise": _number(precision)}
        for score, probability, precision in promises
    ]
    for split, counts in splits.items():
        whole = counts.above()
        above = Counts(whole.results[:, starts], whole.right[:, starts])
        results, right = above.results.sum(axis=0), above.right.sum(axis=0)
        share = np.divide(right, results, out=np.full(len(rows), np.nan), where=results > 0)
        columns = {"precision": share, **dict(zip(("low", "high"), share_intervals(above, resamples), strict=True))}
        columns["kept"] = right / max(int(counts.right.sum()), 1)
        for at, row in enumerate(rows):
            row[f"{split}_results"] = int(results[at])
            row |= {f"{split}_{name}": _number(column[at]) for name, column in columns.items()}
    return rows


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def calibrate(val: Counts, test: Counts, resamples: int) -> tuple[dict[str, str], str]:
    """Fit on val and judge on test; return the texts of the files by name, and a table for the terminal."""
    calibration = fit(val)
    rows = rows_of(calibration, {"val": val, "test": test}, resamples)
    scores = {share: calibration.threshold(share) for share in PROMISES}
    promises = [
        {"asked": share, **rows[int(np.searchsorted(calibration.scores, np.float32(score)))]}
        for share, score in scores.items()
        if score is not None
    ]
    summary = {
        "population": POPULATION,
        "fitted_on": {"split": "val", **_facts(val)},
        "judged_on": {"split": "test", **_facts(test), **judge(calibration, test)},
        "promises": promises,
        "scores": [row["score"] for row in rows],
        **{name: getattr(calibration, name).tolist() for name in ("probability", "precision", "kept")},
    }
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    drawn = reliability_svg(calibration, test, rows, promises, resamples)
    texts = (json.dumps(summary, indent=1) + "\n", stream.getvalue(), drawn)
    return dict(zip(FILES, texts, strict=True)), table(summary)


def _facts(counts: Counts) -> dict[str, float | int]:
    return {"num_tags": len(counts.results), "num_results": int(counts.results.sum()), "share_right": counts.share}


def table(summary: Mapping[str, Any]) -> str:
    """Return the terminal's table of what scores promise and what test has."""
    fitted, judged = summary["fitted_on"], summary["judged_on"]
    lines = [
        f"\ncalibration: {fitted['num_results']} results of {fitted['num_tags']} tags on val, "
        f"{fitted['share_right']:.1%} right; on test {ECE} {judged[ECE]:.4f}, Brier {judged['brier']:.4f} "
        f"(of the bare share {judged['brier_of_the_share']:.4f})",
        f"{'promised right':16}{'from score':>12}{'right on test (95 % interval)':>32}{'of all right ones kept':>24}",
    ]
    for row in summary["promises"]:
        found = "nothing so high"
        if row["test_precision"] is not None:
            found = f"{row['test_precision']:.1%} ({row['test_low']:.1%}-{row['test_high']:.1%})"
        lines.append(f"{row['asked']:<16.0%}{row['score']:>12.2f}{found:>32}{row['test_kept']:>24.1%}")
    return "\n".join(lines) + "\n"


def reliability_svg(
    calibration: Calibration,
    test: Counts,
    rows: Sequence[Mapping[str, Any]],
    promises: Sequence[Mapping[str, Any]],
    resamples: int,
) -> str:
    """Draw whether probabilities hold on test, and what a cut-off promises and costs."""
    _, means, grouped = probability_bins(calibration, test)
    results = grouped.results.sum(axis=0)
    some = results > 0
    low, high = share_intervals(grouped, resamples)[:, some]
    share = grouped.right.sum(axis=0)[some] / results[some]
    probabilities = [Line("on test", means[some], share, low, high)]
    score = [row["score"] for row in rows]
    held = [row for row in promises if row["test_precision"] is not None]
    marks = ([row[name] for row in held] for name in ("score", "test_precision", "test_low", "test_high"))
    cuts = [
        Line("right, as promised on val", score, [row["promise"] for row in rows]),
        Line("on test", *marks),
        Line("of all right ones kept", score, [row["val_kept"] for row in rows]),
    ]
    panels = [
        Panel("One result", "probability promised", "share right", probabilities, diagonal=True),
        Panel("All results above a score", "score", "share", cuts),
    ]
    return svg(panels, "reliability", "What the score promises and what test pictures have")


def open_calibration(paths: Paths, run: str) -> Calibration:
    """Return the calibration of a run's scores.

    Raises:
        ArtifactError: the run was not evaluated on test, or on too few tags to calibrate.
    """
    make = f'make evaluate ARGS="run={run}"'
    directory = paths.run(run) / "evaluation" / "test"
    manifest = open_artifact(directory, "evaluation", make=make)
    if CALIBRATION not in manifest.files:
        raise ArtifactError(
            f"'{directory}' has no {CALIBRATION}; run `{make}`, which writes it where val has tags to judge"
        )
    return read_calibration(directory / CALIBRATION)
