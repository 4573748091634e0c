"""The vector of a tag: its own in a word table, or the mean of its parts'."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.artifacts import ArtifactError, Manifest, digest, map_array, open_artifact
from configs.compose import Paths
from configs.generations import current_generation
from features.config import TABLES, WordsConfig
from features.word_tables import PHRASE_RULE, CarriedWords, WordTable, parts, spellings


def open_words(config: WordsConfig, paths: Paths) -> WordTable:
    """Open the word table that a config names.

    Args:
        config: the table.
        paths: data/words/ below it holds tables trained here and conversions of files.

    Raises:
        ArtifactError: there is no such table, or it was not trained yet.
    """
    if config.name not in TABLES:
        raise ArtifactError(f"words.name must be one of {', '.join(TABLES)}; got '{config.name}'")
    if config.name == "carried":
        return CarriedWords()
    from features.train_words import open_trained  # and gensim, which takes seconds where none of it is needed

    if config.name == "train":
        return open_trained(config, paths)
    from features.foreign_words import download_words, open_foreign

    if config.name == "downloader":
        return open_foreign("word2vec", download_words(config.model), paths)
    if not Path(config.path).is_file():
        raise ArtifactError(f"words.path '{config.path}' is no file; words={config.name} needs words.path=<file>")
    return open_foreign(config.name, Path(config.path), paths)


def vector_of_tag(tag: str, words: WordTable) -> np.ndarray | None:
    """Return the unit vector of a normalised tag, or None where no part of it is known.

    A phrase is looked up whole, its blanks as `_` and as `-`, as word2vec tables spell phrases; otherwise it is the
    mean of the unit vectors of its known parts, split at blanks and hyphens.
    """
    for spelling in spellings(tag):
        vector = words.vector(spelling)
        if vector is not None:
            return _unit(vector)
    found = (words.vector(part) for part in parts(tag))
    known = [unit for vector in found if vector is not None and (unit := _unit(vector)) is not None]
    return _unit(np.mean(known, axis=0)) if known else None


def _unit(vector: np.ndarray) -> np.ndarray | None:
    length = float(np.linalg.norm(vector))
    return (vector / length).astype(np.float32) if np.isfinite(length) and length > 0 else None


def word_space(words: WordTable) -> str:
    """Fingerprint of a word table and the rule for phrases."""
    return digest([words.digest, PHRASE_RULE])


class TagVectors:
    """The stage's artifact: a unit vector for each tag row, zero where `known` is False."""

    def __init__(self, directory: Path) -> None:
        self.vectors = map_array(directory / "vectors.npy", "<f4", (None, None))  # (T, dim)
        self.known = map_array(directory / "known.npy", "?", (len(self.vectors),))  # (T,)


def open_tag_vectors(paths: Paths, index: str) -> tuple[TagVectors, Manifest]:
    """Open the generation in force.

    Args:
        paths: where artifacts lie.
        index: content_id of the index whose tag rows the vectors must have.

    Raises:
        ArtifactError: the vectors were made for another index.
    """
    directory = current_generation(paths.artifact("tag_vectors"), make="make tag_vectors")
    manifest = open_artifact(directory, "tag_vectors", make="make tag_vectors")
    if manifest.provenance["index"] != index:
        raise ArtifactError(
            f"'{directory}' holds vectors of index {manifest.provenance['index'][:12]}, the index in force is "
            f"{index[:12]}. Run `make tag_vectors`."
        )
    return TagVectors(directory), manifest
