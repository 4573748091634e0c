"""What takes pictures out of judgements and of what is served, as `make takedown` asks.

Reads   data/collection/tombstones
Writes  runs/.judgements without what was said of the pictures; of every run that serves one of them a new generation in
        data/served, the older ones go. A run that cannot be published again is served no more.
"""

from __future__ import annotations

import logging

from configs.artifacts import ArtifactError
from configs.compose import Paths, register, run_stage
from configs.generations import drop_all, drop_others
from crawl.config import ForgetConfig
from crawl.tombstones import Tombstones
from crawl.traces import files_below, tells
from serve.config import JudgementsConfig, PublishConfig
from serve.judgements import EXPORT, QRELS, STORE, Judgements, export
from serve.publish import publish

log = logging.getLogger(__name__)


def forget(cfg: ForgetConfig) -> None:
    """Take down here what the tombstones name. Callable from tests without Hydra."""
    gone = Tombstones(cfg.paths.artifact("collection")).image_ids
    if not gone:
        return
    _forget_judgements(cfg.paths, gone)
    for root in sorted(path for path in cfg.paths.artifact("served").glob("*") if path.is_dir()):
        if any(tells(path, gone) for path in files_below([root])):
            _serve_without(cfg.paths, root.name)


def _forget_judgements(paths: Paths, gone: frozenset[str]) -> None:
    judgements = Judgements(paths)
    telling = [path.name for path in files_below([judgements.directory]) if tells(path, gone)]
    if any(name.startswith(STORE) for name in telling):  # its log is a file beside it
        log.info("%d judgements and votes were deleted", judgements.forget(gone))
    if {QRELS, EXPORT} & set(telling):
        export(JudgementsConfig(paths))


def _serve_without(paths: Paths, run: str) -> None:
    root = paths.artifact("served") / run
    try:
        publish(PublishConfig(paths, run))
    except ArtifactError as error:
        log.warning("run '%s' is served no more, because it cannot be published without the picture: %s", run, error)
        drop_all(root)
    else:
        drop_others(root)


register("forget", ForgetConfig)

if __name__ == "__main__":
    run_stage(forget, ForgetConfig, "forget")
