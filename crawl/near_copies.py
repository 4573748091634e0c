"""Copies of pictures: found by a perceptual hash, told from look-alikes by aligning the pictures themselves.

A copy may be scaled, recompressed, a little brighter, mirrored, or cropped by about a tenth of either side. Its hash is
the signs of the lowest frequencies of a small grey picture (Zauner, Implementation and Benchmarking of Perceptual Image
Hash Functions, 2010). A crop moves these, so the other picture is cropped likewise in 36 ways, each a probe, and again
mirrored. What comes close is aligned and compared window by window, since a whole is alike where only a mouth differs.

N pictures, P probes, S side of a grey thumbnail, F side of the block of frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

THUMBNAIL_PX = 16  # S
FREQUENCIES = 8  # F
CROPS = ((0.0, 1.0), (0.0, 0.95), (0.05, 1.0), (0.05, 0.95), (0.0, 0.9), (0.1, 1.0))  # of an axis; of both all pairs
PROBES = 2 * len(CROPS) ** 2  # the second half mirrored
BANDS = 4  # of 16 bits, of which one may differ: all hashes within 7 bits are found, and most within RADIUS
_EVERY_FOURTH = np.uint64(0x1111_1111_1111_1111)
_GATHER = [
    (np.uint64(shift), np.uint64(kept))
    for shift, kept in (
        *((3, 0x0303_0303_0303_0303), (6, 0x000F_000F_000F_000F), (12, 0x0000_00FF_0000_00FF)),
        (24, 0x0000_0000_0000_FFFF),
    )
]
FLIPS = np.array([0, *(1 << bit for bit in range(64 // BANDS))])  # of a band
RADIUS = 12  # bits that hashes of copies may differ by
MIN_COSINE = 0.88  # of the frequencies of copies
FLAT = 4.0  # grey levels: thumbnails that spread less have no frequencies to speak of
CHUNK = 1 << 14  # thumbnails at once
COMPARISONS = 1 << 22  # of hashes at once
TRIED = 3  # best probes of a pair that are aligned

PICTURE_PX = 64  # side of the pictures that are compared
WINDOW_PX = 17
NOISE = 400.0  # variance, in grey levels squared, below which a window's detail does not count
LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B
ALIGNING_STEPS = 15
SETTLED = 1e-3  # of a side, a fifteenth of a pixel
LEAST_BOX, MOST_BOX = np.array([-0.05, 0.7, -0.05, 0.7]), np.array([0.3, 1.05, 0.3, 1.05])  # no smaller part is sought


@cache
def _cosines(size: int, count: int) -> np.ndarray:
    """Return the first `count` rows of the orthonormal DCT-II of `size` points."""
    angles = np.pi * np.outer(np.arange(count), np.arange(size) + 0.5) / size
    scale = np.full((count, 1), np.sqrt(2 / size))
    scale[0] = np.sqrt(1 / size)
    return scale * np.cos(angles)


@cache
def _cropped_axis(low: float, high: float) -> np.ndarray:
    """Return (F, S), from an axis of a thumbnail to the frequencies of its part between two shares."""
    at = low + (np.arange(2 * THUMBNAIL_PX) + 0.5) / (2 * THUMBNAIL_PX) * (high - low)
    scale = np.full(THUMBNAIL_PX, np.sqrt(2 / THUMBNAIL_PX))
    scale[0] = np.sqrt(1 / THUMBNAIL_PX)
    between = scale * np.cos(
        np.pi * np.outer(at, np.arange(THUMBNAIL_PX))
    )  # the thumbnail's own waves, at these points
    return np.asarray(_cosines(len(at), FREQUENCIES) @ between @ _cosines(THUMBNAIL_PX, THUMBNAIL_PX))


def _frequencies(thumbnails: np.ndarray, probe: int) -> np.ndarray:
    """Return (N, F * F - 1) frequencies of thumbnails (N, S, S) as a probe sees them, without the mean: brightness."""
    across, down = (_cropped_axis(*CROPS[at]) for at in (probe % len(CROPS), probe // len(CROPS) % len(CROPS)))
    found = down @ thumbnails.astype(np.float32) @ across.T
    if probe >= PROBES // 2:
        found = found * (-1.0) ** np.arange(FREQUENCIES)
    return np.asarray(found.reshape(len(found), -1)[:, 1:])


def hashes(thumbnails: np.ndarray, probe: int = 0) -> np.ndarray:
    """Return (N,) uint64, the signs of the frequencies of thumbnails (N, S, S); probe 0 is the picture as it is."""
    parts = [np.empty(0, dtype=np.uint64)]
    for start in range(0, len(thumbnails), CHUNK):
        parts.append(_packed(_frequencies(thumbnails[start : start + CHUNK], probe) > 0))
    return np.concatenate(parts)


@cache
def _axes(probes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, F, S) down and (P, S, F) across, from a thumbnail to its frequencies as each probe sees them."""
    signs = (-1.0) ** np.arange(FREQUENCIES)
    down = [_cropped_axis(*CROPS[probe // len(CROPS) % len(CROPS)]) for probe in probes]
    across = [_cropped_axis(*CROPS[probe % len(CROPS)]) for probe in probes]
    mirrored = [each.T * (signs if probe >= PROBES // 2 else 1.0) for each, probe in zip(across, probes, strict=True)]
    return np.array(down), np.array(mirrored)


def probed_hashes(thumbnail: np.ndarray, probes: tuple[int, ...]) -> np.ndarray:
    """Return (P,) uint64, the hashes of one thumbnail (S, S) by several probes."""
    down, across = _axes(probes)
    return _packed((down @ thumbnail.astype(np.float32) @ across).reshape(len(probes), -1)[:, 1:] > 0)


def _packed(positive: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 of the signs of n blocks of frequencies, (n, 63)."""
    return np.packbits(np.pad(positive, ((0, 0), (0, 1))), axis=1).view(">u8")[:, 0].astype(np.uint64)


def cosines(thumbnails: np.ndarray, others: np.ndarray, probe: int) -> np.ndarray:
    """Return (n,) cosines between the frequencies of a probe of thumbnails (n, S, S) and those of others."""
    one, two = _frequencies(thumbnails, probe), _frequencies(others, 0)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray((one * two).sum(axis=1) / np.maximum(norms, 1e-9))


def _band(values: np.ndarray, band: int) -> np.ndarray:
    """Return (N,) the 16 bits of a band, every fourth, because neighbouring frequencies go together."""
    picked = (values >> np.uint64(band)) & _EVERY_FOURTH
    for shift, kept in _GATHER:  # as a Morton code is taken apart: pairs, then fours, eights and sixteens of bits
        picked = (picked | picked >> shift) & kept
    return picked.astype(np.int64)


class HashTable:
    """Hashes to be looked up by those near them."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        keys = [_band(values, band) for band in range(BANDS)]
        self._order = [np.argsort(each, kind="stable").astype(np.int32) for each in keys]
        counts = [np.bincount(each, minlength=1 << 64 // BANDS) for each in keys]
        self._starts = [np.concatenate([[0], np.cumsum(each)]) for each in counts]

    def near(self, asked: np.ndarray) -> np.ndarray:
        """Return (n, 2) int64 pairs of places in `asked` and in the table, of hashes at most RADIUS bits apart."""
        found = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(asked), CHUNK):
            chunk = asked[start : start + CHUNK]
            pairs = [each for band in range(BANDS) for each in self._in_buckets(chunk, band)]
            found.append(np.unique(np.concatenate(pairs), axis=0) + np.array([start, 0]))
        return np.concatenate(found)

    def _in_buckets(self, asked: np.ndarray, band: int) -> Iterator[np.ndarray]:
        """Yield the pairs whose bits of a band are equal but for one at most, after about COMPARISONS each."""
        keys = (_band(asked, band)[:, None] ^ FLIPS).ravel()
        starts = self._starts[band][keys]
        counts = self._starts[band][keys + 1] - starts
        ends = np.cumsum(counts)
        first = 0
        while first < len(keys):
            done = ends[first] - counts[first]
            last = max(first + 1, int(np.searchsorted(ends, done + COMPARISONS, side="right")))
            buckets = np.repeat(np.arange(first, last), counts[first:last])
            within = np.arange(len(buckets)) - (ends[buckets] - counts[buckets] - done)
            rows = self._order[band][starts[buckets] + within]
            places = buckets // len(FLIPS)
            close = np.bitwise_count(asked[places] ^ self._values[rows]) <= RADIUS
            yield np.stack([places[close], rows[close]], axis=1)
            first = last


def candidates(asked: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return pairs of pictures of which the first, or a part of it, may be a copy of the second.

    Args:
        asked: (N, S, S) thumbnails, none of them flat.
        others: (M, S, S), likewise.

    Returns:
        (n, 3) int64, places in `asked` and `others`, and a probe; of each pair the TRIED best probes, best first.
    """
    plain = hashes(others)
    table = HashTable(plain)
    found, alike = [np.empty((0, 3), dtype=np.int64)], [np.empty(0)]
    for probe in range(PROBES):
        probed = hashes(asked, probe)
        # Few looked up among many are cheaper than many among few.
        pairs = table.near(probed) if len(asked) <= len(others) else HashTable(probed).near(plain)[:, ::-1]
        for start in range(0, len(pairs), CHUNK):
            near = pairs[start : start + CHUNK]
            cosine = cosines(asked[near[:, 0]], others[near[:, 1]], probe)
            kept = cosine >= MIN_COSINE
            found.append(np.column_stack([near[kept], np.full(int(kept.sum()), probe)]))
            alike.append(cosine[kept])
    pairs, cosine = np.concatenate(found), np.concatenate(alike)
    pairs = pairs[np.lexsort((pairs[:, 2], -cosine, pairs[:, 1], pairs[:, 0]))]
    starts = np.flatnonzero(np.r_[True, (pairs[1:, :2] != pairs[:-1, :2]).any(axis=1)][: len(pairs)])
    rank = np.arange(len(pairs)) - np.repeat(starts, np.diff(np.r_[starts, len(pairs)]))
    return np.asarray(pairs[rank < TRIED])


def is_flat(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N,) bool, True for thumbnails without detail, of which a hash would be noise."""
    spreads = [
        thumbnails[at : at + CHUNK].astype(np.float32).std(axis=(1, 2)) for at in range(0, len(thumbnails), CHUNK)
    ]
    return np.concatenate([np.empty(0, dtype=bool), *(spread < FLAT for spread in spreads)])


def _sampled(low: float, high: float) -> np.ndarray:
    """Return (S, S), from an axis of a picture to the pixels of its part between two shares, bilinear."""
    at = (low + (np.arange(PICTURE_PX) + 0.5) / PICTURE_PX * (high - low)) * PICTURE_PX - 0.5
    return np.asarray(
        np.maximum(1 - np.abs(np.arange(PICTURE_PX) - np.minimum(np.maximum(at, 0), PICTURE_PX - 1)[:, None]), 0)
    )


def _part(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the part (..., S, S) of a picture within a box (left, right, top, bottom), in shares of its sides."""
    return np.asarray(_sampled(box[2], box[3]) @ picture @ _sampled(box[0], box[1]).T)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two pictures, 0 where one is flat."""
    one, other = one - one.mean(), other - other.mean()
    norms = np.sqrt((one * one).sum() * (other * other).sum())
    return float((one * other).sum() / norms) if norms else 0.0


def align(whole: np.ndarray, part: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the box of a grey picture (S, S) that shows what another one shows, from a box near it.

    Gauss-Newton on the four sides, with gain and offset between the pictures left free: Lucas and Kanade, 1981.
    """
    slopes = np.stack([whole, *np.gradient(whole * PICTURE_PX)])
    to_high = (np.arange(PICTURE_PX) + 0.5) / PICTURE_PX
    by_side = np.stack([1 - to_high, to_high])
    columns = np.empty((6, PICTURE_PX, PICTURE_PX))
    columns[4:] = -part, -np.ones_like(part)
    best, best_box = -1.0, box
    for _ in range(ALIGNING_STEPS):
        seen, down, right = _part(slopes, box)
        if (found := _correlation(seen, part)) > best:
            best, best_box = found, box
        columns[:2] = right * by_side[:, None, :]
        columns[2:4] = down * by_side[:, :, None]
        design = columns.reshape(6, -1)
        step = np.linalg.solve(design @ design.T + 1e-3 * np.eye(6), -(design @ seen.ravel()))[:4]
        if np.abs(step).max() < SETTLED:
            break
        box = np.minimum(np.maximum(box + step, LEAST_BOX), MOST_BOX)
    return best_box


@cache
def _windows() -> np.ndarray:
    """Return (S - WINDOW_PX + 1, S), from an axis of a picture to its means over windows."""
    past_start = np.arange(PICTURE_PX) - np.arange(PICTURE_PX - WINDOW_PX + 1)[:, None]
    return np.asarray(((past_start >= 0) & (past_start < WINDOW_PX)) / WINDOW_PX)


@cache
def _smooth() -> np.ndarray:
    """Return (S, S), from an axis of a picture to its means over five pixels by binomial weights.

    What a copy loses by scaling and compression is mostly finer than that.
    """
    offsets = np.arange(PICTURE_PX) - np.arange(PICTURE_PX)[:, None]
    weights = sum(weight * (np.abs(offsets) == distance) for distance, weight in enumerate((6, 4, 1)))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def similarity(picture: np.ndarray, other: np.ndarray, probe: int) -> float:
    """Return how alike two pictures are in the window where they are least, 1 where they are the same.

    The measure is contrast and structure of SSIM (Wang et al., 2004) over the three channels together, so that another
    colour is another picture while more light is not.

    Args:
        picture: (3, S, S) RGB in grey levels, of which the other may be a part.
        other: (3, S, S), likewise.
        probe: by which the hash of `picture` came close to that of `other`.
    """
    one, two = picture.astype(np.float64), other.astype(np.float64)
    if probe >= PROBES // 2:
        two = two[..., ::-1]
    box = np.array([*CROPS[probe % len(CROPS)], *CROPS[probe // len(CROPS) % len(CROPS)]])
    one = _part(one, align(np.tensordot(LUMA, one, 1), np.tensordot(LUMA, two, 1), box))
    places = PICTURE_PX - WINDOW_PX + 1
    window = (
        np.array([[0 <= at - start < WINDOW_PX for at in range(PICTURE_PX)] for start in range(places)]) / WINDOW_PX
    )

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(window @ values.mean(axis=0) @ window.T)

    one, two = (_smooth() @ each @ _smooth().T for each in (one, two))
    mean_one, mean_two = mean(one), mean(two)
    covariance = mean(one * two) - mean_one * mean_two
    variances = mean(one * one) - mean_one**2 + mean(two * two) - mean_two**2
    return float(((2 * covariance + NOISE) / (variances + NOISE)).min())
