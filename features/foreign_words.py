"""Word tables of others: word2vec, GloVe and gensim files, converted once into a table of our own."""

from __future__ import annotations

import gzip
import http.client
import logging
import pickle
import re
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import gensim.downloader
import numpy as np
from gensim.models import KeyedVectors

from configs.artifacts import ArtifactError, Manifest, digest, file_sha256, map_array
from configs.compose import Paths
from configs.generations import add_generation
from features.word_tables import StoredWords, Table, seal_table

log = logging.getLogger(__name__)
CONVERSION_VERSION = 1  # raised when the same file would give another table
WORD2VEC_ERRORS = (ValueError, TypeError, EOFError, IndexError, MemoryError, OverflowError, OSError, zlib.error)
PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError),
    *(MemoryError, OverflowError, RecursionError),
)


def as_table(vectors: KeyedVectors, table_digest: str) -> Table:
    """Take words and vectors out of gensim's class.

    Raises:
        ArtifactError: they do not belong together, as in a file that was damaged or made to be odd.
    """
    table, rows = getattr(vectors, "vectors", None), getattr(vectors, "key_to_index", None)
    if not isinstance(table, np.ndarray) or not isinstance(rows, dict) or table.ndim != 2:
        raise ArtifactError("the word vectors were written by gensim before 4.0, or are damaged; save them anew")
    if not rows or table.shape != (len(rows), vectors.vector_size) or table.dtype.kind != "f":
        raise ArtifactError(f"{len(rows)} words with vectors {table.dtype} {table.shape}: the file is damaged")
    word_of = {row: word for word, row in rows.items() if isinstance(row, int)}
    words = [word for row in range(len(rows)) if isinstance(word := word_of.get(row), str)]
    if len(words) < len(rows):
        raise ArtifactError(f"{len(words)} of {len(rows)} vectors have a word: the file is damaged")
    return Table(words, table, table_digest)


def _looks_binary(beginning: bytes) -> bool:
    """Tell word2vec's binary format from its text format by the bytes after the header line."""
    return any(byte < 9 or 13 < byte < 32 for byte in beginning.partition(b"\n")[2])


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_glove(path: Path) -> Table:
    """Read a GloVe file, whose words may hold blanks (`. . .` of the 840B table), at which gensim gives up.

    A line is split from its right, into as many numbers as the shortest of the first lines has.
    """
    with _opened(path) as stream:
        dim = min(len(line.split()) for line in islice(stream, 100)) - 1
    rows: dict[str, np.ndarray] = {}
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            word, *numbers = line.rstrip().rsplit(b" ", dim)
            if len(numbers) != dim or not dim:
                raise ValueError(f"line {number} has {len(numbers)} numbers, expected {dim}")
            rows.setdefault(word.decode(errors="replace"), np.array(numbers, dtype=np.float32))
    return Table(list(rows), np.stack(list(rows.values())), file_sha256(path))


def read_word2vec(path: Path) -> Table:
    """Read a word2vec file, text or binary, or a GloVe file, which is text without the header line.

    The table is in memory meanwhile, as the file is read only once. Of a word that comes twice the first counts.
    """
    try:
        with _opened(path) as stream:
            beginning = stream.read(65_536)
        if not beginning:
            raise ValueError("it is empty")
        binary = _looks_binary(beginning)
        if not binary and len(beginning.partition(b"\n")[0].split()) != 2:
            return _read_glove(path)
        vectors = KeyedVectors.load_word2vec_format(str(path), binary=binary, unicode_errors="replace")
    except WORD2VEC_ERRORS as error:
        raise ArtifactError(f"'{path}' is no word2vec or GloVe file: {error}") from error
    vectors.vectors = vectors.vectors[: len(vectors.key_to_index)]  # gensim leaves room for those that came twice
    return as_table(vectors, file_sha256(path))


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


def _beside(path: Path) -> Path:
    """Return where `KeyedVectors.save` puts the vectors of a large table."""
    return path.with_name(path.name + ".vectors.npy")


def read_keyed_vectors(path: Path) -> Table:
    """Read what gensim's `KeyedVectors.save` wrote, without running code from the file."""
    try:
        with path.open("rb") as stream:
            vectors = _KeyedVectorsUnpickler(stream).load()
    except PICKLE_ERRORS as error:
        raise ArtifactError(f"'{path}' was not written by KeyedVectors.save: {error}") from error
    if not isinstance(vectors, KeyedVectors):
        raise ArtifactError(f"'{path}' holds a {type(vectors).__name__}, expected KeyedVectors")
    try:
        if "vectors" in getattr(vectors, "__numpys", ()):
            vectors.vectors = map_array(_beside(path), "<f4", (None, None))
        return as_table(vectors, digest([file_sha256(each) for each in (path, _beside(path)) if each.is_file()]))
    except PICKLE_ERRORS as error:
        raise ArtifactError(f"'{path}' was made to be odd, or is damaged: {error}") from error


READERS: dict[str, Callable[[Path], Table]] = {"word2vec": read_word2vec, "keyed_vectors": read_keyed_vectors}


def _identity(path: Path) -> list[list[int]]:
    """Return what changes when a file is written or replaced, so that it need not be hashed at every opening.

    The time of the last change of state is the system's own: an edit that keeps size and modification time shows too.
    """
    found = (each.stat() for each in (path, _beside(path)) if each.is_file())
    return [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for stat in found]


def open_foreign(name: str, path: Path, paths: Paths) -> StoredWords:
    """Open a file of word vectors by way of its conversion, which is made where the file is new or has changed.

    Args:
        name: of the format, a key of `READERS`.
        path: the file.
        paths: data/words/ below it holds the conversions, a folder a file.

    Raises:
        ArtifactError: the file is no table, or changed while it was read.
    """
    identity = _identity(path)
    recipe = digest([CONVERSION_VERSION, name, identity])

    def write(directory: Path) -> Manifest:
        log.info("converting '%s' once, so that it need not be read whole again", path)
        table = READERS[name](path)
        if _identity(path) != identity:
            raise ArtifactError(f"'{path}' changed while it was read; run the same command again when it is finished")
        return seal_table(directory, table, recipe, config={"name": name, "path": str(path)})

    folder = f"{name}-{digest(str(path.resolve()))[:8]}"
    return StoredWords(add_generation(paths.artifact("words") / folder, "words", recipe, write)[0])


def download_words(model: str) -> Path:
    """Fetch a table by its name in gensim's downloader; the code that comes with it is not run.

    Raises:
        ArtifactError: no such name, or no network.
    """
    try:
        return Path(gensim.downloader.load(model, return_path=True))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ArtifactError(
            f"gensim's downloader gave no '{model}' ({error}). Take a name of `python -m gensim.downloader --info`, "
            "or place a word2vec or GloVe file by hand and say words=word2vec words.path=<file>."
        ) from error
