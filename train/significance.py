"""Whether one system is better than another: paired by tag, over tags and seeds, corrected for many comparisons.

T tags, S seeds of a system, M comparisons. Pure functions on arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy import stats

ALPHA = 0.05  # chance of a verdict, over all comparisons shown, where nothing differs
POWER = 0.8  # with which the smallest detectable difference would have been seen
SIGN_FLIPS = 100_000  # p-values down to 1e-5 outlive a correction for hundreds of comparisons
CHUNK_ENTRIES = 2**22  # numbers held at once: 32 MiB


@dataclass(frozen=True)
class Difference:
    """How far a system is above another, as a mean over tags."""

    mean: float
    low: float  # 95 % bootstrap interval over tags, and over seeds where a system has several
    high: float
    standard_error: float  # spread of the bootstrap means
    p: float  # of the paired permutation test, two-sided, not corrected
    num_tags: int


def chunks(resamples: int, width: int) -> Iterator[int]:
    """Yield how many of `resamples` rows of a width to draw at a time."""
    size = max(1, CHUNK_ENTRIES // max(1, width))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def sign_flip_p(differences: np.ndarray, rng: np.random.Generator, flips: int) -> float:
    """Paired permutation test of a mean: how often random signs give one as far from 0, two-sided.

    Fisher's randomisation test, as Smucker et al. (CIKM 2007) recommend it for retrieval: were both systems alike,
    each tag's difference could as well have the other sign. All 2^T signs are tried where they are no more than
    `flips`; else random ones, and the observed signs count among them.

    Args:
        differences: (T,) one value a tag.
        rng: draws signs.
        flips: most signs to try.
    """
    num_tags = len(differences)
    total, reach = differences.sum(), np.abs(differences).sum()
    least = abs(total) - 1e-12 * reach  # equal sums in another order of adding count as equal
    if 2**num_tags <= flips:
        every = (np.arange(2**num_tags)[:, None] >> np.arange(num_tags)) & 1
        return float((np.abs(total - 2 * (every @ differences)) >= least).mean())
    hits = 0
    for size in chunks(flips, num_tags):
        drawn = np.frombuffer(rng.bytes(size * -(-num_tags // 8)), np.uint8).reshape(size, -1)
        signs = np.unpackbits(drawn, axis=1, count=num_tags)
        hits += int((np.abs(total - 2 * (signs @ differences)) >= least).sum())
    return (1 + hits) / (1 + flips)


def bootstrap_differences(ours: np.ndarray, theirs: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return (resamples,) mean differences over tags drawn with replacement, the same for both, and seeds likewise.

    Args:
        ours: (S, T) values of a system.
        theirs: (S', T) values of the other for the same tags; its seeds are drawn on their own.
        resamples: how many.
        rng: draws tags and seeds.
    """
    num_tags = ours.shape[1]
    found = []
    for size in chunks(resamples, num_tags * (len(ours) + len(theirs))):
        tags = rng.integers(num_tags, size=(size, num_tags))
        sides = []
        for values in (ours, theirs):
            by_seed = values[:, tags].mean(axis=2)  # (S, size)
            seeds = rng.integers(len(values), size=(len(values), size))
            sides.append(np.take_along_axis(by_seed, seeds, axis=0).mean(axis=0))
        found.append(sides[0] - sides[1])
    return np.concatenate(found)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000, rng: np.random.Generator | None = None
) -> Difference:
    """Compare two systems on the same tags; a tag's value is its mean over the seeds.

    The test is over tags alone, the interval over tags and seeds: seeds are too few to permute.

    Args:
        ours: (S, T) values of a system, one row a seed.
        theirs: (S', T) values of the other.
        resamples: of the bootstrap.
        rng: seeded with 0 where None, so that a comparison does not depend on those before it.
    """
    rng = rng or np.random.default_rng(0)
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    num_tags = len(differences)
    mean = float(differences.mean())
    if num_tags < 2:
        return Difference(mean, -inf, inf, inf, 1.0, num_tags)
    drawn = bootstrap_differences(ours, theirs, resamples, rng)
    low, high = np.percentile(drawn, [50 * ALPHA, 100 - 50 * ALPHA])
    p = sign_flip_p(differences, rng, SIGN_FLIPS)
    return Difference(mean, float(low), float(high), float(drawn.std()), p, num_tags)


def holm(p: np.ndarray) -> np.ndarray:
    """Return (M,) p-values corrected for M comparisons after Holm (1979), in the given order.

    The least is multiplied by M, the next by M - 1, and so on; none comes out below a lesser one, or above 1.
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


def smallest_detectable(difference: Difference, comparisons: int) -> float:
    """Return the difference that would have been seen four times in five, at the strictest step of Holm's correction.

    Infinite where the tags are so few that no outcome of the test falls below ALPHA.
    """
    if 2.0 ** (1 - difference.num_tags) > ALPHA:
        return inf
    free = difference.num_tags - 1
    reach = stats.t.isf(ALPHA / 2 / comparisons, free) + stats.t.isf(1 - POWER, free)
    return float(reach * difference.standard_error)


def is_told_apart(difference: Difference, corrected_p: float) -> bool:
    """Tell whether test and interval both say that the systems differ."""
    return corrected_p <= ALPHA and (difference.low > 0 or difference.high < 0)


def verdict(difference: Difference, corrected_p: float, comparisons: int) -> str:
    """Say in words which system is better and by how much, or that it cannot be told, and what could have been."""
    mean, low, high = difference.mean, difference.low, difference.high
    if is_told_apart(difference, corrected_p):
        word, low, high = ("better", low, high) if mean > 0 else ("worse", -high, -low)
        return f"{word} by {abs(mean):.3f}, interval {low:.3f} to {high:.3f}"
    if difference.num_tags < 2:
        return f"cannot be told apart (difference {mean:.3f} on one tag)"
    if low == high == 0:
        return "cannot be told apart (equal on every tag)"
    detectable = smallest_detectable(difference, comparisons)
    notes = [f"difference {mean:.3f}, interval {low:.3f} to {high:.3f}"]
    if low > 0 or high < 0:
        doubt = "the permutation test does not agree" if comparisons == 1 else f"not against {comparisons} comparisons"
        notes[0] += f", but {doubt}"
    if detectable == inf:
        notes.append(f"{difference.num_tags} tags are too few for any difference to be seen")
    elif abs(mean) < detectable:
        notes.append(f"a difference of {detectable:.3f} would have been seen")
    return f"cannot be told apart ({'; '.join(notes)})"
