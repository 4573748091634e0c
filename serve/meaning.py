"""What tags, words and prefixes mean: directions among the embeddings.

T tags, D width of an embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from features.tag_vectors import TagVectors, vector_of_tag, word_space
from features.word_tables import WordTable
from serve.generation import TOWERS, Generation
from serve.matching import Matcher
from serve.query import Prefix, Tag
from train.tag_tower import TagTower

log = logging.getLogger(__name__)


class Meaning:
    """Gives the direction of a tag or prefix of a query, and how near a word lies to the tags."""

    def __init__(self, generation: Generation, matcher: Matcher, words: WordTable | None) -> None:
        vectors = TagVectors(generation.directory)
        self._embeddings = generation.tag_embeddings
        self._index = generation.index
        self._matcher = matcher
        self._vectors = vectors.vectors
        self._tower = TagTower(generation.directory / TOWERS)
        self._words = words
        self.known = np.array(vectors.known)  # (T,) bool, tags with a vector
        if words is not None and word_space(words) != generation.manifest.must_match["word_space"]:
            log.warning("unknown words mean nothing: '%s' was made with another word table", generation.directory)
            self._words = None

    def __call__(self, leaf: Tag | Prefix) -> np.ndarray | None:
        """Return the embedding (D,) of a tag, of a word that is none, or of a prefix, or None.

        A prefix means the mean of its tags by how many images they have, and so does a name of which nothing is known
        but the tags it is related to.
        """
        if isinstance(leaf, Prefix):
            return self._mean(self._index.tags_from(leaf.stem))
        row = self._index.tag_row(leaf.name)
        if row is not None:
            return np.asarray(self._embeddings[row]) if self.known[row] else None
        vector = self._word_vector(leaf.name)
        if vector is None:
            return self._mean(self._matcher.tag_rows(leaf.name))
        return np.asarray(self._tower.embed([leaf.name], vector[None])[0])

    def near(self, word: str) -> np.ndarray | None:
        """Return (T,) float32 cosines of a word with the word vectors of all tags, or None where it has none."""
        vector = self._word_vector(word)
        return None if vector is None else np.asarray(self._vectors @ vector)

    def _mean(self, tag_rows: Sequence[int]) -> np.ndarray | None:
        rows = np.array([row for row in tag_rows if self.known[row]], dtype=np.int64)
        if not len(rows):
            return None
        return np.asarray(
            np.average(self._embeddings[rows], axis=0, weights=self._index.document_frequency[rows]), dtype=np.float32
        )

    def _word_vector(self, word: str) -> np.ndarray | None:
        return None if self._words is None else vector_of_tag(word, self._words)
