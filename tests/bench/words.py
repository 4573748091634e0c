"""Open word tables beside gensim, train one, and compare tables on evaluation A: `make bench B=words`.

`table`     400,000 x 200 seeded numbers as GloVe text, word2vec binary and gensim's own file: seconds to open, seconds
            for 1,000 words, and by how much the process grows; each in a process of its own, medians
`training`  words/s of words=train on the collection of --data
`ablation`  mAP of tag -> gallery with the tables carried, trained and GloVe, three seeds each, in copies of the data

Without --glove the GloVe file is made of the first 100 columns of the carried table, which are GloVe 6B 100-d (NOTICE).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import KeyedVectors

from configs.artifacts import open_artifact
from configs.compose import Paths
from configs.generations import current_generation
from crawl.shards import Collection
from features.config import WordsConfig
from features.inverted_index import open_index
from features.tag_vectors import open_words
from features.train_words import sentences, train_table
from features.word_tables import CARRIED
from tests.bench.result import SEEDS, finish, resident_mib, stage, train_and_judge
from train.results import Values, add_values, difference, figure, new_values

NUM_WORDS, DIM = 400_000, 200
NUM_LOOKUPS = 1000
PARTS = ("table", "training", "ablation")
GLOVE_COLUMNS = 100
# Format -> file, our name of the table, and gensim's way to open it.
FORMATS: dict[str, tuple[str, str, Callable[[str], KeyedVectors]]] = {
    "glove text": ("glove.txt", "word2vec", partial(KeyedVectors.load_word2vec_format, no_header=True)),
    "word2vec binary": ("words.bin", "word2vec", partial(KeyedVectors.load_word2vec_format, binary=True)),
    "gensim file": ("words.kv", "keyed_vectors", partial(KeyedVectors.load, mmap="r")),
}


def write_tables(folder: Path) -> None:
    """Write the same seeded table in every format."""
    table = KeyedVectors(DIM)
    rng = np.random.default_rng(0)
    table.add_vectors([f"word{n}" for n in range(NUM_WORDS)], rng.standard_normal((NUM_WORDS, DIM), dtype=np.float32))
    table.save_word2vec_format(str(folder / "glove.txt"), write_header=False)
    table.save_word2vec_format(str(folder / "words.bin"), binary=True)
    table.save(str(folder / "words.kv"))


def open_and_look_up(kind: str, folder: Path, ours: bool) -> dict[str, float]:
    """Open one table, look a thousand words up, and return what it cost; runs in a fresh process."""
    name, reader, load = FORMATS[kind]
    drawn = random.Random(1)
    asked = [f"word{drawn.randrange(NUM_WORDS)}" for _ in range(NUM_LOOKUPS)]
    before, started = resident_mib(), time.perf_counter()
    if ours:
        table = open_words(WordsConfig(name=reader, path=str(folder / name)), Paths(data=str(folder / "data")))
        find = table.vector
    else:
        vectors = load(str(folder / name))
        find = vectors.get_vector
    opened = time.perf_counter()
    found = [find(word) for word in asked]
    done = time.perf_counter()
    assert all(vector is not None for vector in found)
    return {"open_s": opened - started, "lookup_s": done - opened, "resident_mb": resident_mib() - before}


def in_a_fresh_process(kind: str, folder: Path, ours: bool) -> dict[str, float]:
    """Measure where nothing has been opened before."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(open_and_look_up, kind, folder, ours).result()


def measure_tables(repeats: int) -> dict[str, dict[str, float]]:
    """Return the medians of every format and way; the ways take turns."""
    turns: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tagtower-words-") as name:
        folder = Path(name)
        write_tables(folder)
        for _ in range(repeats):
            shutil.rmtree(folder / "data", ignore_errors=True)
            for kind in FORMATS:
                turns[f"{kind}, ours at first"].append(in_a_fresh_process(kind, folder, ours=True))
                turns[f"{kind}, ours"].append(in_a_fresh_process(kind, folder, ours=True))
                turns[f"{kind}, gensim"].append(in_a_fresh_process(kind, folder, ours=False))
    return {way: {key: statistics.median(turn[key] for turn in each) for key in each[0]} for way, each in turns.items()}


def show_tables(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Print the table and return how many times faster ours opens than gensim's."""
    print(f"\n{NUM_WORDS} x {DIM}\n\n| table | open | {NUM_LOOKUPS} words | memory |\n| --- | --- | --- | --- |")
    for way, row in rows.items():
        opened, looked_up = 1000 * row["open_s"], 1000 * row["lookup_s"]
        print(f"| {way} | {opened:.1f} ms | {looked_up:.1f} ms | {row['resident_mb']:.1f} MB |")
    return {
        f"{kind}, gensim's open over ours": rows[f"{kind}, gensim"]["open_s"] / rows[f"{kind}, ours"]["open_s"]
        for kind in FORMATS
    }


def measure_training(data: Path, repeats: int) -> dict[str, float]:
    """Return what words=train costs on a collection."""
    paths, config = Paths(data=str(data)), WordsConfig(name="train")
    index, _ = open_index(paths)
    with tempfile.TemporaryDirectory(prefix="tagtower-words-") as name:
        corpus, started = Path(name) / "sentences.txt", time.perf_counter()
        lines = [" ".join(words) for words in sentences(index, Collection(paths.artifact("collection")))]
        corpus.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        reading, seconds = time.perf_counter() - started, []
        for _ in range(repeats):
            started = time.perf_counter()
            table, num_sentences = train_table(config, corpus)
            seconds.append(time.perf_counter() - started)
    num_words = sum(line.count(" ") + 1 for line in lines)
    print(f"\nwords=train: {len(table.words)} words of {num_sentences} sentences, {num_words} words an epoch")
    rate = config.epochs * num_words / statistics.median(seconds)
    print(f"{num_sentences / reading:.0f} sentences/s read, {rate:.0f} words/s trained in {config.epochs} epochs")
    return {"sentences": num_sentences, "sentences_per_s": num_sentences / reading, "words_per_s": rate}


def write_glove(path: Path) -> None:
    """Write the GloVe half of the carried table as a GloVe file."""
    words = (CARRIED / "words_200d.txt").read_text(encoding="utf-8").splitlines()
    rows = np.load(CARRIED / "words_200d.npy", mmap_mode="r")[:, :GLOVE_COLUMNS]
    scales = np.load(CARRIED / "words_200d_scale.npy").reshape(-1, 1)
    with path.open("w", encoding="utf-8") as stream:
        for word, row in zip(words, rows * scales, strict=True):
            stream.write(f"{word} {' '.join(f'{value:.6g}' for value in row)}\n")


def copy_of(data: Path, target: Path) -> Path:
    """Lay a data folder that shares all but word and tag vectors with another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("collection", "index", "image_features"):
        if not (target / name).is_symlink():
            (target / name).symlink_to((data / name).resolve(), target_is_directory=True)
    return target


def judge(table: str, words: list[str], arguments: argparse.Namespace, values: Values) -> dict[str, int]:
    """Train and evaluate every seed with one table; return how many of the tags it knows."""
    data = copy_of(arguments.data, arguments.work / table / "data")
    runs = arguments.work / table / "runs"
    paths = [f"paths.data={data}", f"paths.runs={runs}"]
    stage("features.embed_tags", *words, paths[0])
    for seed in SEEDS[: arguments.seeds]:
        run = train_and_judge(seed, paths, arguments.overrides)
        add_values(values, runs / run / "evaluation" / "test" / "per_tag.csv", table)
    vectors = current_generation(data / "tag_vectors", make="make tag_vectors")
    facts = open_artifact(vectors, "tag_vectors", make="make tag_vectors").facts
    return {name: facts[name] for name in ("num_tags", "num_known")}


def ablation(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return mAP of tag -> gallery with every table: on its own eligible tags, and on those that all tables know."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    glove, name = arguments.glove, "glove"
    if glove is None:
        glove, name = arguments.work / "glove_100d.txt", "glove_half_of_carried"
        write_glove(glove)
    tables = {
        "carried": ["words=carried"],
        "train": ["words=train"],
        name: ["words=word2vec", f"words.path='{glove}'"],
    }
    values = new_values()
    known = {table: judge(table, words, arguments, values) for table, words in tables.items()}
    found = {table: values["gallery", table, "map"] for table in tables}
    shared = set.intersection(*(set(each) for each in found.values()))
    both = {table: {tag: each[tag] for tag in sorted(shared)} for table, each in found.items()}
    return {
        table: {
            **known[table],
            "own": vars(figure(found[table])),
            "shared": vars(figure(both[table])),
            "over_carried": difference(both[table], both["carried"]).signed(),
        }
        for table in tables
    }


def show_ablation(rows: dict[str, dict[str, Any]]) -> None:
    """Print one row a table, in Markdown."""
    tags = next(iter(rows.values()))["shared"]["tags"]
    print(f"\n| table | tags with a vector | mAP, all its tags | mAP, the {tags} all know | seeds | over carried |")
    print("| --- | --- | --- | --- | --- | --- |")
    for table, row in rows.items():
        own, shared = row["own"], row["shared"]
        print(
            f"| {table} | {row['num_known']} of {row['num_tags']} | {own['mean']:.3f} of {own['tags']} "
            f"| {shared['mean']:.3f} ({shared['low']:.3f}-{shared['high']:.3f}) | +-{shared['spread']:.3f} "
            f"| {row['over_carried']} |"
        )


def main() -> None:
    """Run the parts asked for, print a table of each and the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, comma between")
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="paths.data with features")
    parser.add_argument("--work", type=Path, default=Path("runs/words"), help="for copies and runs of the ablation")
    parser.add_argument("--glove", type=Path, help="a GloVe file for the ablation")
    parser.add_argument("--repeats", type=int, default=5, help="of opening and of training a table")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of the ablation")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {}
    if "table" in parts:
        figures["table"] = measure_tables(arguments.repeats)
        ratios = show_tables(figures["table"])
    if "training" in parts:
        figures["training"] = measure_training(arguments.data, arguments.repeats)
    if "ablation" in parts:
        figures["ablation"] = ablation(arguments)
        show_ablation(figures["ablation"])
    finish("words", ratios, json.loads(json.dumps(figures, default=float)))


if __name__ == "__main__":
    main()
