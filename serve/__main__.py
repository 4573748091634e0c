"""Serve the search page: publish where that is stale, then answer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from configs.artifacts import ArtifactError
from configs.compose import override, register, run_stage
from serve.config import ServeConfig
from serve.generation import is_published

log = logging.getLogger(__name__)


def publish(cfg: ServeConfig, run: str) -> None:
    """Publish a run in a process of its own, so that what this takes is free again when answering begins."""
    overrides = [override("run", run), override("paths.data", cfg.paths.data), override("paths.runs", cfg.paths.runs)]
    done = subprocess.run([sys.executable, "-m", "serve.publish", *overrides], check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise ArtifactError(f"run '{run}' could not be published; the reason stands above")


def serve(cfg: ServeConfig) -> None:
    """Answer searches until stopped."""
    for run in cfg.served:
        if cfg.publish and not is_published(cfg.paths, run):
            publish(cfg, run)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its builds it loads
    with TemporaryDirectory(prefix="tagtower-metrics-") as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # read where the library is imported, so before the app
        from serve.app import create_app
        from serve.searchers.current import open_searchers
        from serve.server import Server, listen

        app = create_app(open_searchers(cfg.paths, cfg.served), cfg.paths)
        listener = listen(cfg.host, cfg.port)
        shown = "localhost" if cfg.host in ("127.0.0.1", "0.0.0.0") else cfg.host  # noqa: S104 - compared, not bound
        port = listener.getsockname()[1]
        log.info("searching run '%s' at http://%s:%s (Ctrl-C stops)", "', '".join(cfg.served), shown, port)
        Server(app, listener, cfg).run()


register("serve", ServeConfig)

if __name__ == "__main__":
    run_stage(serve, ServeConfig, "serve")
