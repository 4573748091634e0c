"""A published generation of any size, made on the spot by a seed: for benches and trials of the server.

Tags are English words, so that other words are unknown and yet mean something; how often they come falls as Zipf has
it. An image's embedding lies near those of its tags.

    python -m tests.bench.synthetic_served <folder> [--images 1700000] [--tags 20000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from configs.artifacts import Manifest, atomic_write, digest, save_array, seal
from configs.compose import Paths
from configs.generations import add_generation
from crawl.records import Record
from crawl.shards import LOCATION
from features.config import WordsConfig
from features.inverted_index import InvertedIndex
from features.tag_vectors import vector_of_tag, word_space
from features.word_tables import CarriedWords
from serve.gallery import write_gallery
from serve.generation import (
    KIND,
    PUBLISH_VERSION,
    RELATED,
    SCHEMA_VERSION,
    TOWERS,
    write_columns,
    write_embeddings,
    write_records,
)
from train.tag_tower import TagTower
from train.towers import TwoTowers, save_towers

RUN = "synthetic"
IMAGES, TAGS = 1_700_000, 20_000
TAGS_AN_IMAGE = 4.2
DIM = 128
LICENCES, KINDS = ("CC BY 4.0", "CC BY-SA 4.0", "CC0", "public domain"), ("photo", "drawing", "clipart")
CHUNK = 100_000


def words_of(table: CarriedWords, count: int, rng: np.random.Generator) -> list[str]:
    """Choose words as tags, ascending."""
    words = Path("features/carried/words_200d.txt").read_text(encoding="utf-8").splitlines()
    plain = [word for word in words if word.isalpha() and len(word) > 2 and word == word.casefold()]
    return sorted(rng.choice(plain, size=count, replace=False).tolist())


def write_index(directory: Path, tags: list[str], num_images: int, rng: np.random.Generator) -> InvertedIndex:
    """Write an index whose tags come as often as Zipf has it."""
    chances = 1 / (np.arange(len(tags)) + 3.7)
    chances = chances[rng.permutation(len(tags))] / chances.sum()
    drawn = np.searchsorted(np.cumsum(chances), rng.random(int(num_images * TAGS_AN_IMAGE)))
    images = rng.integers(0, num_images, len(drawn))
    pairs = np.unique(np.minimum(drawn, len(tags) - 1) * num_images + images)
    offsets = np.searchsorted(pairs, np.arange(len(tags) + 1) * num_images)
    atomic_write(directory / "image_ids.txt", b"".join(b"%016x\n" % (row * 1_000_003) for row in range(num_images)))
    atomic_write(directory / "tags.txt", "".join(tag + "\n" for tag in tags))
    save_array(directory / "offsets.npy", offsets.astype(np.int64))
    save_array(directory / "postings.npy", (pairs % num_images).astype(np.int32))
    save_array(directory / "splits.npy", np.zeros(num_images, np.uint8))
    locations = np.zeros(num_images, LOCATION)
    locations["offset"] = np.arange(num_images)
    save_array(directory / "locations.npy", locations)
    return InvertedIndex(directory)


def embeddings_near(index: InvertedIndex, tag_embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (N, D) float16 of length 1: the sum of each image's tags, and as much noise as one tag."""
    offsets, tag_rows = index.by_image
    carried = sparse.csr_array((np.ones(len(tag_rows), np.float32), tag_rows, offsets))
    found = np.empty((index.num_images, DIM), np.float16)
    for start in range(0, index.num_images, CHUNK):
        part = slice(start, start + CHUNK)
        near = carried[part] @ tag_embeddings
        near += rng.standard_normal(near.shape, dtype=np.float32) / np.sqrt(DIM)
        found[part] = near / np.linalg.norm(near, axis=1, keepdims=True)
    return found


def records_of(index: InvertedIndex) -> Iterator[Record]:
    """Yield a record for each image."""
    offsets, tag_rows = index.by_image
    ids = np.asarray(index.image_ids).astype("U16").tolist()
    for row, image_id in enumerate(ids):
        tags = tuple(index.tags[tag] for tag in tag_rows[offsets[row] : offsets[row + 1]])
        yield Record(
            image_id,
            image_id,
            tags,
            kind=KINDS[row % 3],
            title=f"Picture {row}",
            width=320,
            height=240,
            page_url=f"https://pictures.example/{row}",
            licence=LICENCES[row % 4],
            author=f"author {row % 1000}",
            original_format="JPEG",
            original_bytes=20_000,
        )


def write_served(root: Path, num_images: int = IMAGES, num_tags: int = TAGS, seed: int = 0) -> Paths:
    """Publish a synthetic run below a folder, and return the paths to serve it from."""
    paths = Paths(data=str(root / "data"), runs=str(root / "runs"))

    def write(directory: Path) -> Manifest:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        table = CarriedWords()
        index = write_index(directory, words_of(table, num_tags, rng), num_images, rng)
        vectors = np.stack([vector_of_tag(tag, table) for tag in index.tags])
        save_towers(TwoTowers(table.dim, 8, hidden_dim=1, embed_dim=DIM, depth=1), directory / TOWERS)
        tag_embeddings = TagTower(directory / TOWERS).embed(index.tags, vectors)
        save_array(directory / "vectors.npy", vectors.astype(np.float32))
        save_array(directory / "known.npy", np.ones(num_tags, dtype=bool))
        embeddings = embeddings_near(index, tag_embeddings, rng)
        write_embeddings(directory, index, embeddings, tag_embeddings)
        gallery = write_gallery(directory, embeddings, tag_embeddings)
        write_records(directory, records_of(index))
        licences, kinds = ([names[row % len(names)] for row in range(num_images)] for names in (LICENCES, KINDS))
        write_columns(directory, licences, kinds, [""] * num_images, index.locations)
        atomic_write(directory / RELATED, "{}")
        return seal(
            directory,
            KIND,
            config={"run": RUN},
            files=[path.name for path in directory.iterdir()],
            must_match={"word_space": word_space(table)},
            facts={
                "num_images": num_images,
                "num_tags": num_tags,
                "gallery_index": gallery,
                "words": vars(WordsConfig(name="carried")),
            },
            recipe=recipe,
            schema_version=SCHEMA_VERSION,
        )

    recipe = digest([PUBLISH_VERSION, SCHEMA_VERSION, num_images, num_tags, seed])
    add_generation(paths.artifact(KIND) / RUN, KIND, recipe, write)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--tags", type=int, default=TAGS)
    asked = parser.parse_args()
    started = time.perf_counter()
    print(write_served(asked.folder, asked.images, asked.tags), f"{time.perf_counter() - started:.0f} s")
