"""Word tables, and the vector of a tag: its own, or the mean of its parts'."""

from __future__ import annotations

import gzip
import http.client
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gensim.downloader
import numpy as np
from gensim.models import KeyedVectors

from configs.artifacts import (
    ArtifactError,
    Manifest,
    digest,
    file_sha256,
    map_array,
    open_artifact,
)
from configs.compose import Paths
from configs.generations import current_generation
from features.config import WordsConfig

CARRIED = Path(__file__).parent / "carried"
WORD2VEC_ERRORS = (ValueError, TypeError, EOFError, IndexError, MemoryError, OverflowError, OSError, zlib.error)
PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError),
    *(MemoryError, OverflowError, RecursionError),
)
PHRASE_RULE = "1"  # version of `vector_of_tag`; part of the word space


class WordTable(Protocol):
    """Word vectors by word."""

    dim: int
    digest: str  # of the table's bytes

    def vector(self, word: str) -> np.ndarray | None:
        """Return the (dim,) float32 vector of a word as it is spelt, or None."""
        ...


class CarriedWords:
    """The table in the repository: 106,321 English words, int8 with a float32 scale a row, mapped."""

    def __init__(self, directory: Path = CARRIED) -> None:
        words = (directory / "words_200d.txt").read_text(encoding="utf-8").splitlines()
        self._row = {word: row for row, word in enumerate(words)}
        self._rows = map_array(directory / "words_200d.npy", "i1", (len(words), 200))
        self._scale = np.load(directory / "words_200d_scale.npy", mmap_mode="r", allow_pickle=False).reshape(-1)
        self.dim = 200
        names = ("words_200d.txt", "words_200d.npy", "words_200d_scale.npy")
        self.digest = digest([file_sha256(directory / name) for name in names])

    def vector(self, word: str) -> np.ndarray | None:
        """Return the vector of a word, or None."""
        row = self._row.get(word)
        return None if row is None else self._rows[row].astype(np.float32) * self._scale[row]


class GensimWords:
    """A table in gensim's KeyedVectors.

    Raises:
        ArtifactError: words and vectors do not belong together, as in a file that was damaged or made to be odd.
    """

    def __init__(self, vectors: KeyedVectors, table_digest: str) -> None:
        table, words = getattr(vectors, "vectors", None), getattr(vectors, "key_to_index", None)
        if not isinstance(table, np.ndarray) or not isinstance(words, dict) or table.ndim != 2:
            raise ArtifactError("the word vectors were written by gensim before 4.0, or are damaged; save them anew")
        if table.shape != (len(words), vectors.vector_size) or table.dtype.kind != "f":
            raise ArtifactError(f"{len(words)} words with vectors {table.dtype} {table.shape}: the file is damaged")
        self._vectors = vectors
        self.dim = int(vectors.vector_size)
        self.digest = table_digest

    def vector(self, word: str) -> np.ndarray | None:
        """Return the vector of a word, with a capital where the table knows it only so, or None."""
        for spelling in (word, word.capitalize()):
            if spelling in self._vectors.key_to_index:
                return np.asarray(self._vectors[spelling], dtype=np.float32)
        return None


def _looks_binary(beginning: bytes) -> bool:
    """Tell word2vec's binary format from its text format by the bytes after the header line."""
    return any(byte < 9 or 13 < byte < 32 for byte in beginning.partition(b"\n")[2])


def read_word2vec(path: Path) -> GensimWords:
    """Read a word2vec file, text or binary, or a GloVe file, which is text without the header line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            beginning = stream.read(65_536)
        if not beginning:
            raise ValueError("it is empty")
        binary = _looks_binary(beginning)
        no_header = not binary and len(beginning.partition(b"\n")[0].split()) != 2
        vectors = KeyedVectors.load_word2vec_format(
            str(path), binary=binary, no_header=no_header, unicode_errors="replace"
        )
    except WORD2VEC_ERRORS as error:
        raise ArtifactError(f"'{path}' is no word2vec or GloVe file: {error}") from error
    return GensimWords(vectors, file_sha256(path))


class _KeyedVectorsUnpickler(pickle.Unpickler):
    """Unpickles what `KeyedVectors.save` writes and nothing that could run code."""

    ALLOWED = re.compile(
        r"gensim\.models\.keyedvectors (KeyedVectors|Word2VecKeyedVectors|Vocab|CompatVocab)"
        r"|numpy (ndarray|dtype|float32|int64|uint32)"
        r"|numpy\._?core\.(multiarray|numeric) (_reconstruct|scalar|_frombuffer)"
        r"|builtins (set|frozenset)|collections (OrderedDict|defaultdict)"
    )

    def find_class(self, module: str, name: str) -> Any:
        if not self.ALLOWED.fullmatch(f"{module} {name}"):
            raise ArtifactError(f"refused to load {module}.{name}: a file of word vectors has no need for it")
        return super().find_class(module, name)


def read_keyed_vectors(path: Path) -> GensimWords:
    """Read what gensim's `KeyedVectors.save` wrote, without running code from the file.

    Large tables lie beside it in `<path>.vectors.npy`, which is mapped.
    """
    try:
        with path.open("rb") as stream:
            vectors = _KeyedVectorsUnpickler(stream).load()
    except PICKLE_ERRORS as error:
        raise ArtifactError(f"'{path}' was not written by KeyedVectors.save: {error}") from error
    if not isinstance(vectors, KeyedVectors):
        raise ArtifactError(f"'{path}' holds a {type(vectors).__name__}, expected KeyedVectors")
    beside = path.with_name(path.name + ".vectors.npy")
    if "vectors" in getattr(vectors, "__numpys", ()):
        vectors.vectors = map_array(beside, "<f4", (None, None))
    table = [file_sha256(each) for each in (path, beside) if each.is_file()]
    return GensimWords(vectors, digest(table))


def download_words(model: str) -> GensimWords:
    """Fetch a table by its name in gensim's downloader; the code that comes with it is not run.

    Raises:
        ArtifactError: no such name, or no network.
    """
    try:
        path = Path(gensim.downloader.load(model, return_path=True))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ArtifactError(
            f"gensim's downloader gave no '{model}' ({error}). Take a name of `python -m gensim.downloader --info`, "
            "or place a word2vec or GloVe file by hand and say words=word2vec words.path=<file>."
        ) from error
    return read_word2vec(path)


def open_words(config: WordsConfig) -> WordTable:
    """Open the word table that a config names."""
    if config.name == "carried":
        return CarriedWords()
    if config.name == "downloader":
        return download_words(config.model)
    readers: dict[str, Callable[[Path], WordTable]] = {
        "word2vec": read_word2vec,
        "keyed_vectors": read_keyed_vectors,
    }
    if config.name not in readers:
        raise ArtifactError(f"words.name must be carried, downloader, {', '.join(readers)}; got '{config.name}'")
    path = Path(config.path)
    if not path.is_file():
        raise ArtifactError(f"words.path '{config.path}' is no file; words={config.name} needs words.path=<file>")
    return readers[config.name](path)


def vector_of_tag(tag: str, words: WordTable) -> np.ndarray | None:
    """Return the unit vector of a normalised tag, or None where no part of it is known.

    A phrase is looked up whole, its blanks as `_` and as `-`, as word2vec tables spell phrases; otherwise it is the
    mean of the unit vectors of its known parts, split at blanks and hyphens.
    """
    whole = [tag] if " " not in tag else [tag.replace(" ", "_"), tag.replace(" ", "-")]
    for spelling in whole:
        vector = words.vector(spelling)
        if vector is not None:
            return _unit(vector)
    parts = (words.vector(part) for part in re.split(r"[ -]+", tag))
    known = [unit for part in parts if part is not None and (unit := _unit(part)) is not None]
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
