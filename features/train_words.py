"""Word vectors of the collection's own: word2vec on tags, titles and captions of the train split.

Reads   data/index, data/collection
Writes  data/words/train-<8 hex of the knobs>/<generation>/{words.txt, offsets.npy, order.npy, vectors.npy,
        manifest.json}
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec
from tqdm import tqdm

from configs.artifacts import ArtifactError, Manifest, atomic_open, digest, open_artifact
from configs.compose import Paths
from configs.generations import CURRENT, add_generation, current_generation
from crawl.records import TRAIN
from crawl.shards import Collection
from crawl.tags import normalise_tag
from features.config import TABLES, WordsConfig
from features.inverted_index import InvertedIndex, open_index
from features.word_tables import StoredWords, Table, parts, seal_table, spellings

log = logging.getLogger(__name__)
logging.getLogger("gensim").setLevel(logging.WARNING)  # it tells every step and every epoch
MAKE = 'make tag_vectors ARGS="words=train"'
TRAINING_VERSION = 1  # raised when the same collection and knobs would give other vectors
MAX_TEXT_CHARS = 200  # of a title and of a caption; each word is paired with all others, the square of their number
FEW_SENTENCES = 10_000
# One window over the whole sentence, never drawn smaller: the tags of an image are a set. One worker, as several would
# update in another order each time.
WORD2VEC = {"window": 10_000, "shrink_windows": False, "workers": 1, "sg": 1, "negative": 10}


def words_of(text: str) -> list[str]:
    """Return the words of a title or caption in the spelling of tags.

    A word is a run of letters, marks and digits of any script, so that vowel signs stay with their letters. Scripts
    without blanks are not cut into words: a run of such letters is found where it is the whole of a tag.
    """
    kept = (char if _in_word(char) else " " for char in text[:MAX_TEXT_CHARS])
    return [word for run in "".join(kept).split() if (word := normalise_tag(run))]


def _in_word(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "LMN" or category == "Cf"  # joiners and soft hyphens, which `normalise_tag` drops


def sentence(tags: list[str], texts: list[str]) -> list[str]:
    """Return what word2vec learns from one image: a set of words, ascending.

    A phrase is there whole and in parts, so that it has a vector of its own and one that nobody tagged yet has parts.
    """
    whole = {spellings(tag)[0] for tag in tags}
    pieces = {part for tag in tags for part in parts(tag)}
    return sorted(whole | pieces | {word for text in texts for word in words_of(text)})


def sentences(index: InvertedIndex, collection: Collection) -> Iterator[list[str]]:
    """Yield the sentence of each image of the train split, in crawl order; taken down ones are not in the table."""
    table = collection.table(["title", "caption", "offset"])
    offsets, tag_rows = index.by_image
    with tqdm(total=len(table), desc="sentences", unit="row") as bar:
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                image_row = index.image_row(row["image_id"]) if row["offset"] >= 0 else None
                if image_row is not None and index.splits[image_row] == TRAIN:
                    tags = [index.tags[at] for at in tag_rows[offsets[image_row] : offsets[image_row + 1]]]
                    if words := sentence(tags, [row["title"] or "", row["caption"] or ""]):
                        yield words
            bar.update(len(batch))


class _Progress(CallbackAny2Vec):  # type: ignore[misc]  # gensim is untyped
    """Shows the epochs as they pass."""

    def __init__(self, epochs: int) -> None:
        self._bar = tqdm(total=epochs, desc="word2vec", unit="epoch")

    def on_epoch_end(self, model: Word2Vec) -> None:
        self._bar.update()

    def on_train_end(self, model: Word2Vec) -> None:
        self._bar.close()


def train_table(config: WordsConfig, corpus: Path) -> tuple[Table, int]:
    """Train on a file of sentences, one a line; the same file gives the same bytes.

    Returns:
        The table, and how many sentences it has learnt from.

    Raises:
        ArtifactError: no word is frequent enough.
    """
    model = Word2Vec(vector_size=config.dim, min_count=config.min_count, seed=config.seed, **WORD2VEC)
    model.build_vocab(corpus_file=str(corpus))
    if not len(model.wv):
        raise ArtifactError(
            f"no word occurs words.min_count={config.min_count} times in tags, titles and captions of the train split"
        )
    num_words = model.corpus_total_words
    model.train(
        corpus_file=str(corpus), total_words=num_words, epochs=config.epochs, callbacks=[_Progress(config.epochs)]
    )
    words, vectors = model.wv.index_to_key, np.ascontiguousarray(model.wv.vectors)
    return Table(words, vectors, digest([words, hashlib.sha256(vectors.data).hexdigest()])), model.corpus_count


def _root(config: WordsConfig, paths: Paths) -> Path:
    return paths.artifact("words") / f"train-{digest(_knobs(config))[:8]}"


def _knobs(config: WordsConfig) -> dict[str, int]:
    return {knob: getattr(config, knob) for knob in TABLES["train"]}


def open_trained(config: WordsConfig, paths: Paths) -> StoredWords:
    """Open the table in force for these knobs; it is never trained in passing."""
    return StoredWords(current_generation(_root(config, paths), make=MAKE))


def train_words(config: WordsConfig, paths: Paths, retrain: bool) -> None:
    """Train the table of these knobs where there is none yet, or where asked to.

    Once trained it is kept while the index grows, because a new one is a new word space: runs trained with the old one
    could no longer be published.
    """
    root = _root(config, paths)
    index, manifest = open_index(paths)
    if not retrain and (root / CURRENT).is_file():
        _log_kept(open_artifact(current_generation(root, make=MAKE), "words", make=MAKE), manifest.content_id)
        return
    collection = Collection(paths.artifact("collection"))
    inputs = {"index": manifest.content_id, "collection": collection.content_id}
    recipe = digest([TRAINING_VERSION, _knobs(config), inputs])

    def write(directory: Path) -> Manifest:
        log.info("training word vectors on the train split of %d images", index.num_images)
        corpus = directory / "sentences.txt"
        with atomic_open(corpus) as stream:
            stream.writelines(" ".join(words).encode() + b"\n" for words in sentences(index, collection))
        table, num_sentences = train_table(config, corpus)
        corpus.unlink()
        return seal_table(
            directory,
            table,
            recipe,
            config={"words": _knobs(config)},
            provenance=inputs,
            facts={"num_sentences": num_sentences},
        )

    directory, built = add_generation(root, "words", recipe, write)
    facts = open_artifact(directory, "words", make=MAKE).facts
    learnt = f"{facts['num_words']} words of {facts['num_sentences']} sentences"
    log.info("%s, %s: %s", "trained words" if built else "already trained", learnt, directory)
    if facts["num_sentences"] < FEW_SENTENCES:
        log.warning(
            "%s is little for word2vec, which wants %d sentences or more: expect rough vectors", learnt, FEW_SENTENCES
        )


def _log_kept(table: Manifest, index: str) -> None:
    learnt = f"{table.facts['num_words']} words of {table.facts['num_sentences']} sentences"
    if table.provenance["index"] == index:
        log.info("already trained: %s", learnt)
    else:
        log.info(
            "trained words are kept: %s of index %s, in force is %s. retrain=true trains anew; runs must follow then",
            learnt,
            table.provenance["index"][:12],
            index[:12],
        )
