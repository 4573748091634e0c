"""Serve the search page: publish where that is stale, then answer."""

from __future__ import annotations

import logging

import waitress

from configs.artifacts import ArtifactError
from configs.compose import register, run_stage
from serve.app import create_app
from serve.config import PublishConfig, ServeConfig
from serve.publish import publish
from serve.searchers.current import open_searchers

log = logging.getLogger(__name__)
# Every request is a GET, so a body is a mistake or worse; idle connections go after half a minute.
LIMITS = {"max_request_body_size": 1024, "connection_limit": 1000, "channel_timeout": 30, "ident": None}


def serve(cfg: ServeConfig) -> None:
    """Answer searches until stopped."""
    for run in cfg.served:
        publish(PublishConfig(cfg.paths, run))
    app = create_app(open_searchers(cfg.paths, cfg.served), cfg.paths)
    try:
        server = waitress.create_server(app, host=cfg.host, port=cfg.port, threads=cfg.threads, **LIMITS)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot listen on {cfg.host}:{cfg.port} ({error}); choose another with PORT=<port> or host=<address>"
        ) from error
    shown = "localhost" if cfg.host in ("127.0.0.1", "0.0.0.0") else cfg.host  # noqa: S104 - compared, not bound
    port = getattr(server, "effective_port", cfg.port)  # a name with two addresses has no single one
    log.info("searching run '%s' at http://%s:%s (Ctrl-C stops)", "', '".join(cfg.served), shown, port)
    server.run()


register("serve", ServeConfig)

if __name__ == "__main__":
    run_stage(serve, ServeConfig, "serve")
