"""Stage `compare`: tell which of some finished runs is better, by how much, on which tags, and how sure that is.

Reads   runs/<run>, runs/<run>/evaluation/<split> (made where missing or stale), data/index, data/collection (pictures)
Writes  runs/.comparisons/<name>/{comparison.json, comparison.html, table.txt, manifest.json}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import is_name, recipe_config, register, resolved, run_stage
from crawl.shards import Collection
from features.inverted_index import open_index
from train.audit import left_out_images
from train.comparison import compared
from train.comparison_page import page, shown_pictures
from train.comparison_text import text
from train.config import CompareConfig
from train.systems import System, open_systems

log = logging.getLogger(__name__)
COMPARE_VERSION = 1  # raised when the same runs would get another page
FOUND, PAGE, TABLE = "comparison.json", "comparison.html", "table.txt"
MAX_NAME_CHARS = 100


def comparison_name(cfg: CompareConfig, systems: Sequence[System]) -> str:
    """Return the name of the directory: that asked for, else of the systems, and of a split other than test."""
    if cfg.name:
        return cfg.name
    shown = "-vs-".join(system.name for system in systems) + ("" if cfg.split == "test" else f"-{cfg.split}")
    name = "".join(letter if is_name(f"_{letter}") else "-" for letter in shown)  # of patterns, where two share a name
    return name if len(name) <= MAX_NAME_CHARS else f"{name[:80]}-{digest(name)[:8]}"


def require_same_runs(directory: Path, earlier: Manifest, cfg: CompareConfig) -> None:
    """Refuse to replace a comparison of other runs; of the same ones it is made anew, since that takes seconds."""
    was = {key: earlier.config.get(key) for key in ("runs", "split")}
    if was != {"runs": cfg.runs, "split": cfg.split}:
        raise ArtifactError(
            f"'{directory}' compares {', '.join(was['runs'] or ())} on {was['split']}. "
            "Choose another name with name=<name>, or delete that directory."
        )


def compare(cfg: CompareConfig) -> Path:
    """Compare runs and return the comparison's directory. Callable from tests without Hydra."""
    log.info("comparing %s on %s", ", ".join(cfg.runs), cfg.split)
    systems = open_systems(cfg)
    index, index_manifest = open_index(cfg.paths)
    index = index.without(left_out_images(cfg.paths, index)[0])
    collection = Collection(cfg.paths.artifact("collection"))
    members = {member.name: member for system in systems for member in system.members}
    content = {name: [member.run.content_id, member.evaluation.content_id] for name, member in members.items()}
    recipe = digest([COMPARE_VERSION, recipe_config(cfg), content, collection.content_id])
    directory = cfg.paths.run(".comparisons") / comparison_name(cfg, systems)
    with exclusive(directory):
        earlier = read_manifest(directory)
        if earlier is not None and earlier.recipe == recipe:
            log.info("already done: %s\n%s", directory / PAGE, (directory / TABLE).read_text(encoding="utf-8"))
            return directory
        if earlier is not None:
            require_same_runs(directory, earlier, cfg)
        (directory / MANIFEST).unlink(missing_ok=True)
        remove_partials(directory)
        found = {"name": directory.name, **compared(cfg, systems, index)}
        pictures = shown_pictures(found, index, collection)
        texts = {
            FOUND: json.dumps(found, indent=1, allow_nan=False) + "\n",
            PAGE: page(found, pictures),
            TABLE: text(found),
        }
        for name, content_of in texts.items():
            atomic_write(directory / name, content_of)
        seal(
            directory,
            "comparison",
            config=resolved(cfg),
            files=texts,
            provenance={"index": index_manifest.content_id, "collection": collection.content_id},
            facts={"runs": {name: ids[0] for name, ids in content.items()}},
            recipe=recipe,
        )
    log.info("comparison: %s\n%s", directory / PAGE, (directory / TABLE).read_text(encoding="utf-8"))
    return directory


register("compare", CompareConfig)

if __name__ == "__main__":
    run_stage(compare, CompareConfig, "compare")
