"""What the server counts for Prometheus: requests and latencies by endpoint, over all workers.

Several workers count into files of one directory, which prometheus-client finds in PROMETHEUS_MULTIPROC_DIR when it is
imported; without that variable one process counts in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
REQUESTS = Counter("tagtower_requests", "Answers by endpoint and status.", ["endpoint", "status"])
SECONDS = Histogram("tagtower_request_seconds", "Seconds to an answer by endpoint.", ["endpoint"], buckets=BUCKETS)


def _start() -> None:
    g.started = time.perf_counter()


def _count(response: Response) -> Response:
    endpoint = request.endpoint or "none"
    REQUESTS.labels(endpoint, response.status_code).inc()
    if "started" in g:
        seconds = time.perf_counter() - g.started
        SECONDS.labels(endpoint).observe(seconds)
        steps = response.headers.get("Server-Timing")
        total = server_timing({"total": 1000 * seconds})
        response.headers["Server-Timing"] = f"{steps}, {total}" if steps else total
    return response


def server_timing(timing: Mapping[str, float]) -> str:
    """Write milliseconds by step as the header Server-Timing has them."""
    return ", ".join(f"{step};dur={ms:.3f}" for step, ms in timing.items())


def register_metrics(app: Flask) -> None:
    """Count every answer of an app, and let it tell how long it took."""
    app.before_request(_start)
    app.after_request(_count)


def exposition() -> bytes:
    """Return all counts as Prometheus reads them."""
    if DIRECTORY not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
