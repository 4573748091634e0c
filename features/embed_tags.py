"""Stage `tag_vectors`: give each tag of the index a word vector.

Reads   data/index; data/collection where words=train trains
Writes  data/tag_vectors/<generation>/{vectors.npy, known.npy, unknown.txt, manifest.json}; data/words/, tables trained
        here and conversions of files
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from configs.artifacts import (
    Manifest,
    atomic_write,
    digest,
    save_array,
    seal,
)
from configs.compose import register, resolved, run_stage
from configs.generations import add_generation
from features.config import TagVectorsConfig
from features.inverted_index import InvertedIndex, open_index
from features.tag_vectors import open_words, vector_of_tag, word_space
from features.train_words import train_words

log = logging.getLogger(__name__)


def embed(cfg: TagVectorsConfig) -> Path:
    """Look up every tag and return the generation. Callable from tests without Hydra.

    A tag of which no part is known keeps a zero vector and `known` False: it stays searchable by its posting list,
    is left out of training and evaluation, and is listed in unknown.txt.
    """
    index, index_manifest = open_index(cfg.paths)
    if cfg.words.name == "train":
        train_words(cfg.words, cfg.paths, cfg.retrain)
    words = open_words(cfg.words, cfg.paths)
    space = word_space(words)
    recipe = digest([space, index_manifest.content_id])

    def write(directory: Path) -> Manifest:
        log.info("looking up %d tags in words=%s", index.num_tags, cfg.words.name)
        found = [vector_of_tag(tag, words) for tag in index.tags]
        known = np.array([vector is not None for vector in found], dtype=bool)
        vectors = np.zeros((index.num_tags, words.dim), dtype=np.float32)
        for row in np.flatnonzero(known):
            vectors[row] = found[row]
        save_array(directory / "vectors.npy", vectors)
        save_array(directory / "known.npy", known)
        atomic_write(directory / "unknown.txt", "".join(index.tags[row] + "\n" for row in np.flatnonzero(~known)))
        _log_unknown(index, known)
        return seal(
            directory,
            "tag_vectors",
            config=resolved(cfg),
            files=["vectors.npy", "known.npy", "unknown.txt"],
            must_match={"word_space": space, "tag_rules": index_manifest.must_match["tag_rules"]},
            provenance={"index": index_manifest.content_id},
            facts={"num_tags": index.num_tags, "num_known": int(known.sum()), "dim": words.dim},
            recipe=recipe,
        )

    directory, built = add_generation(cfg.paths.artifact("tag_vectors"), "tag_vectors", recipe, write)
    log.info("%s: %s", "tag vectors" if built else "already done", directory)
    return directory


def _log_unknown(index: InvertedIndex, known: np.ndarray) -> None:
    frequency = np.where(known, 0, index.document_frequency)
    worst = [index.tags[row] for row in np.argsort(-frequency, kind="stable")[:5] if frequency[row]]
    log.info(
        "%d of %d tags have no vector (%s); they are searched by their pictures alone",
        int((~known).sum()),
        index.num_tags,
        ", ".join(worst) or "none",
    )


register("tag_vectors", TagVectorsConfig)

if __name__ == "__main__":
    run_stage(embed, TagVectorsConfig, "tag_vectors")
