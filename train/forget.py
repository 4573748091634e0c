"""What takes pictures out of audits, evaluations and comparisons, as `make takedown` asks.

Reads   data/collection/tombstones
Writes  a new generation of data/audit; evaluations, reverse searches and comparisons that name one of the pictures,
        made again as they were asked for. What cannot be made again is removed, and the log says so.

Towers, checkpoints and exports stay: weights are sums over all pictures they were trained on. Only training anew makes
them forget what one picture added.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from configs.artifacts import MANIFEST, ArtifactError, atomic_write, read_manifest
from configs.compose import ConfigError, Paths, register, restored, run_stage
from configs.generations import CURRENT, current_generation, drop_all, drop_others
from configs.verify import artifacts
from crawl.config import ForgetConfig
from crawl.tombstones import Tombstones
from crawl.traces import files_below, tells
from train.audit import audit
from train.card import write_card
from train.compare import compare
from train.config import AuditConfig, CompareConfig, EvaluateConfig, ReverseConfig
from train.evaluate import evaluate
from train.reverse import reverse

log = logging.getLogger(__name__)
# What can be made again, in this order, because comparisons read evaluations.
REMADE: dict[str, tuple[type, Callable[[Any], Path]]] = {
    "evaluation": (EvaluateConfig, evaluate),
    "reverse": (ReverseConfig, reverse),
    "comparison": (CompareConfig, compare),
}
AGAIN = ".again.json"  # lies beside an artifact from before it is made again until it is
OURS = ("evaluation", ".comparisons", "reverse")  # folders whose files no one but these stages writes


def forget(cfg: ForgetConfig) -> None:
    """Take down here what the tombstones name. Callable from tests without Hydra."""
    gone = Tombstones(cfg.paths.artifact("collection")).image_ids
    if not gone:
        return
    _forget_audit(cfg.paths, gone)
    roots = [Path(cfg.paths.runs), cfg.paths.artifact("reverse")]
    for directory in artifacts(roots):
        _note(directory, gone)
    notes = [path for root in roots for path in files_below([root]) if path.name == AGAIN]
    made = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in notes]
    for kind in REMADE:
        for directory, note in made:
            if note["kind"] == kind:
                _make_again(directory, kind, note["config"], cfg.paths)
    _remove_leftovers(roots, gone)


def _note(directory: Path, gone: frozenset[str]) -> None:
    """Write beside an artifact that names any of some images how to make it again, whatever a kill leaves of it."""
    manifest = read_manifest(directory)
    if manifest is None or manifest.kind not in REMADE:
        return
    if any(tells(directory / name, gone) for name in manifest.files):
        atomic_write(directory / AGAIN, json.dumps({"kind": manifest.kind, "config": manifest.config}))


def _forget_audit(paths: Paths, gone: frozenset[str]) -> None:
    root = paths.artifact("audit")
    if not any(tells(path, gone) for path in files_below([root])):
        return
    if (root / CURRENT).is_file() and (paths.artifact("index") / CURRENT).is_file():
        made = read_manifest(current_generation(root, make="make audit"))
        audit(AuditConfig(paths, made.config["similarity"]) if made else AuditConfig(paths))
        drop_others(root)
    else:
        drop_all(root)


def _make_again(directory: Path, kind: str, config: dict[str, Any], paths: Paths) -> None:
    """Run the stage of an artifact again on what is left; where that cannot be, remove the artifact."""
    schema, stage = REMADE[kind]
    try:
        made_on = Path(config["paths"]["data"])
        if made_on.is_dir() and made_on.resolve() != Path(paths.data).resolve():  # not ours that was moved
            raise ArtifactError(f"it was made on '{made_on}'; take the picture down there, too")
        stage(restored(config, schema, Paths(paths.data, str(_runs_of(directory, kind, paths)))))
        log.info("made again: %s", directory)
    except (ArtifactError, ConfigError) as error:
        log.warning("removed: '%s', which names a picture that was taken down and cannot be made again: %s",
                    directory, error)  # fmt: skip
        manifest = read_manifest(directory)
        for name in (MANIFEST, *(manifest.files if manifest else ())):
            (directory / name).unlink(missing_ok=True)
        if kind == "evaluation":
            write_card(directory.parent.parent)
    (directory / AGAIN).unlink()


def _runs_of(directory: Path, kind: str, paths: Paths) -> Path:
    """Return the folder of runs that an artifact lies below, which of sweeps is not that of the others."""
    if directory.is_relative_to(paths.artifact("reverse")):
        return Path(paths.runs)
    return directory.parent.parent if kind == "comparison" else directory.parent.parent.parent


def _remove_leftovers(roots: Iterable[Path], gone: frozenset[str]) -> None:
    """Remove files of an artifact that a killed stage left unsealed."""
    for path in (each for root in roots for each in files_below([root])):
        if set(path.parts) & set(OURS) and not (path.parent / MANIFEST).is_file() and tells(path, gone):
            log.warning("removed: '%s', which a killed stage left; make it again where it is wanted", path)
            path.unlink()


register("forget", ForgetConfig)

if __name__ == "__main__":
    run_stage(forget, ForgetConfig, "forget")
