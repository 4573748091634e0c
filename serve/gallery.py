"""Ranking of the whole gallery by meaning: exact while that is quick, beyond that by an index, exact at its end.

N images, D width of an embedding, K directions of a query.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from configs.artifacts import ArtifactError, atomic_write
from serve.generation import GALLERY, Generation, as_float32, cosines
from train.ranking import top_k

log = logging.getLogger(__name__)
EXACT_ENTRIES = 2**24  # N times D of a gallery that one thread scans in some 10 ms
LISTS = 1024  # at least; four times the root of N, as faiss advises
RECALL = 0.99  # of the first RECALL_AT for tags, which decides how many lists are looked at
RECALL_AT = 60
_ASKED = 32  # tags that the recall is measured with
_TRAINED_WITH = 64  # images for each list
_SPARE = 200  # candidates beyond those wanted, for what 8 bits put in the wrong order
_ADDED_AT_ONCE = 65536


def write_gallery(directory: Path, embeddings: np.ndarray, tag_embeddings: np.ndarray) -> dict[str, float]:
    """Write an index of embeddings (N, D) float16 where a scan would be slow; return facts about it, empty without one.

    It is an inverted file over k-means, Jegou, Douze and Schmid, Product Quantization for Nearest Neighbor Search,
    TPAMI 2011, with embeddings in 8 bits a value. As many lists are looked at as RECALL takes for tags (T, D).
    """
    if embeddings.size <= EXACT_ENTRIES:
        return {}
    faiss.omp_set_num_threads(1)  # for the same lists on every machine
    num_images, dim = embeddings.shape
    num_lists = max(LISTS, 2 ** round(math.log2(4 * math.sqrt(num_images))))
    num_lists = min(num_lists, num_images // 40)  # fewer images a list teach k-means nothing
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, dim, num_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.cp.max_points_per_centroid = 10, _TRAINED_WITH
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(num_images, min(num_images, num_lists * _TRAINED_WITH), replace=False))
    log.info("indexing %d embeddings in %d lists", num_images, num_lists)
    index.train(as_float32(embeddings[sample]))
    for start in range(0, num_images, _ADDED_AT_ONCE):
        index.add(as_float32(embeddings[start : start + _ADDED_AT_ONCE]))
    asked = tag_embeddings[np.flatnonzero(tag_embeddings.any(axis=1))]
    asked = asked[rng.choice(len(asked), min(_ASKED, len(asked)), replace=False)]
    facts = tune(index, embeddings, asked)
    atomic_write(directory / GALLERY, faiss.serialize_index(index).tobytes())
    return facts


def tune(index: Any, embeddings: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Set how many lists are looked at, and return that with the recall it gives."""
    best = [top_k(cosines(embeddings, slice(None), each[None])[:, 0], RECALL_AT) for each in asked]
    index.nprobe, recall = max(1, index.nlist // 64), 0.0
    while True:
        found = index.search(asked, RECALL_AT + _SPARE)[1]
        exact = [
            _nearest(partial(cosines, embeddings), rows, each[None], RECALL_AT)[0]
            for rows, each in zip(found, asked, strict=True)
        ]
        hit = [len(np.intersect1d(*pair)) / len(pair[0]) for pair in zip(best, exact, strict=True)]
        recall = float(np.mean(hit))
        if recall >= RECALL or index.nprobe >= index.nlist:
            facts = {"lists": index.nlist, "looked_at": index.nprobe, f"recall_at_{RECALL_AT}": round(recall, 4)}
            log.info("gallery index: %s", facts)
            return facts
        index.nprobe = min(index.nlist, 2 * index.nprobe)


def _nearest(
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray], rows: np.ndarray, vectors: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and exact scores of the k best of some candidates, best first, ties by ascending row."""
    candidates = np.unique(rows[rows >= 0])  # -1 where a list ended
    scores = exact(candidates, vectors).max(axis=1)
    best = top_k(scores, k)
    return candidates[best], scores[best]


class Gallery:
    """Finds the images whose embeddings lie nearest to the directions of a query; safe from several threads."""

    def __init__(self, generation: Generation) -> None:
        self._on = generation
        self._index: Any = None
        if GALLERY in generation.manifest.files:
            faiss.omp_set_num_threads(1)  # one thread a request
            path = generation.directory / GALLERY
            try:
                self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            except RuntimeError as error:
                raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists damage") from error

    @property
    def exact(self) -> bool:
        """Tell whether a ranking of the whole gallery is exact."""
        return self._index is None

    def best(self, vectors: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores (n,) of at most k images, best first, ties by ascending row.

        Args:
            vectors: (K, D) float32; the best product of an image's embedding with one of them is its score.
            allowed: (N,) bool, the images that may be among them; few of them are scanned, because an index loses them.
            k: how many are wanted.
        """
        num_allowed = int(allowed.sum())
        if self._index is None and num_allowed == len(allowed):
            scores = self._on.cosines(slice(None), vectors).max(axis=1)
            best = top_k(scores, k)
            return best, scores[best]
        if self._index is None or num_allowed * vectors.shape[1] <= EXACT_ENTRIES:
            rows = np.flatnonzero(allowed)
            scores = self._on.cosines(rows, vectors).max(axis=1)
            best = top_k(scores, k)
            return rows[best], scores[best]
        bits = np.packbits(allowed, bitorder="little")
        selected = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))  # looks at the bits where they lie
        asked = faiss.SearchParametersIVF()
        asked.nprobe, asked.sel = self._index.nprobe, selected
        found = self._index.search(np.ascontiguousarray(vectors), k + _SPARE, params=asked)[1]
        return _nearest(self._on.cosines, found, vectors, k)
