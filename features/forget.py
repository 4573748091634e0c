"""What takes pictures out of index, features and calibrations, as `make takedown` asks.

Reads   data/collection/tombstones
Writes  a new generation of data/index and data/tag_vectors; parts of data/image_features and data/thumbnails without
        the pictures; data/calibrations/*/judged.txt. Older generations of the index go.

Tables of words, bases of PCA and quantised networks stay: they are sums over many pictures, of which none can be read
from them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from configs.artifacts import MANIFEST, atomic_write, describe_file, read_manifest
from configs.compose import Paths, register, run_stage
from configs.generations import CURRENT, current_generation, drop_all, drop_others
from crawl.config import ForgetConfig
from crawl.shards import Collection
from crawl.tombstones import Tombstones
from crawl.traces import files_below, tells
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.image_features import forget_features
from features.inverted_index import open_index

log = logging.getLogger(__name__)
STORES = ("image_features", "thumbnails")
OF_AN_INDEX = ("index", "tag_vectors", "audit")  # what cannot be without a picture
JUDGED = "judged.txt"


def forget(cfg: ForgetConfig) -> None:
    """Take down here what the tombstones name. Callable from tests without Hydra."""
    gone = Tombstones(cfg.paths.artifact("collection")).image_ids
    for kind in STORES:
        for directory in sorted(path for path in cfg.paths.artifact(kind).glob("*") if path.is_dir()):
            forget_features(directory, gone)
    for directory in sorted(cfg.paths.artifact("calibrations").glob(f"*/{JUDGED}")):
        _forget_calibration(directory.parent, gone)
    if gone and names_any(cfg.paths.artifact("index"), gone):
        _forget_index(cfg.paths)
    if gone and (cfg.paths.artifact("index") / CURRENT).is_file():
        _renew_tag_vectors(cfg.paths)


def names_any(root: Path, image_ids: frozenset[str]) -> bool:
    """Tell whether a file below a folder names any of some images."""
    return any(tells(path, image_ids) for path in files_below([root]))


def _forget_index(paths: Paths) -> None:
    """Build the index anew as it was asked for, and drop the older ones."""
    root = paths.artifact("index")
    if not Collection(paths.artifact("collection")).manifest.facts["num_images"]:
        log.warning("no picture is left, so there is no index any more")
        for name in OF_AN_INDEX:
            drop_all(paths.artifact(name))
        return
    if not (root / CURRENT).is_file():
        drop_all(root)
        return
    asked = read_manifest(current_generation(root, make="make index"))
    build(IndexConfig(paths, tag2picid=bool(asked and asked.config["tag2picid"])))
    drop_others(root)


def _renew_tag_vectors(paths: Paths) -> None:
    """Give the tags that are left their rows; there are fewer where a picture was the last of its tag."""
    root = paths.artifact("tag_vectors")
    made = read_manifest(current_generation(root, make="make tag_vectors")) if (root / CURRENT).is_file() else None
    if made is not None and made.provenance["index"] != open_index(paths)[1].content_id:
        embed(TagVectorsConfig(paths, words=WordsConfig(**made.config["words"])))


def _forget_calibration(directory: Path, gone: frozenset[str]) -> None:
    """Take pictures out of the list of those that judged; the verdict, and so the feature space, stays."""
    path, manifest = directory / JUDGED, read_manifest(directory)
    judged = path.read_text(encoding="ascii").split()
    if not gone.isdisjoint(judged):
        atomic_write(path, "".join(f"{image_id}\n" for image_id in judged if image_id not in gone))
    if manifest is not None and gone and (described := describe_file(path)) != manifest.files[JUDGED]:
        files = {**manifest.files, JUDGED: described}
        atomic_write(directory / MANIFEST, replace(manifest, files=files).sealed().text())


register("forget", ForgetConfig)

if __name__ == "__main__":
    run_stage(forget, ForgetConfig, "forget")
