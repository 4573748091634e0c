"""How the API answers: JSON with an ETag of the generation, cursors that name it, and where the time went."""

from __future__ import annotations

import hashlib
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Response, abort, current_app, request

from configs.compose import Paths
from configs.generations import CURRENT
from serve.api.request_values import MAX_NUMBER, current_searcher, forget_searcher
from serve.metrics import server_timing
from serve.searchers.base import Searcher

JSON = "application/json"
SWAP_S = 2.0  # a generation that was just published is waited for at most so long
_CURSOR = re.compile(r"([\w.-]{1,100}):([0-9]{1,8})", re.ASCII)


def reply(body: Any, searcher: Searcher | None = None, timing: Mapping[str, float] | None = None) -> Response:
    """Return a body as JSON.

    Args:
        body: dataclasses and plain values.
        searcher: that answered; the answer may then be kept, and asked again with its ETag.
        timing: milliseconds by step, told as Server-Timing.
    """
    response = Response(orjson.dumps(body), content_type=JSON)
    if searcher is None:
        response.headers["Cache-Control"] = "no-store"
    else:
        keep(response, etag_of(searcher))
    if timing:
        response.headers["Server-Timing"] = server_timing(timing)
    return response


def keep(response: Response, etag: str) -> None:
    """Let a response be kept, and asked for again each time it is used, because a generation may follow."""
    response.headers["ETag"] = f'"{etag}"'
    response.headers["Cache-Control"] = "no-cache"


def etag_of(*searchers: Searcher) -> str:
    """Return the ETag of what this address answers: the generation and the question say all, so nothing is searched."""
    told = [f"{each.run}:{each.generation}" for each in searchers]
    digest = hashlib.blake2b("\n".join([current_app.extensions["api_version"], *told]).encode(), digest_size=12)
    digest.update(request.full_path.encode())
    return digest.hexdigest()


def unchanged(*searchers: Searcher) -> Response | None:
    """Return a 304 where the client has the answer already, else None."""
    if "If-None-Match" not in request.headers or not request.if_none_match.contains(etag := etag_of(*searchers)):
        return None
    response = Response(status=304)
    keep(response, etag)
    return response


def cursor_of(searcher: Searcher, offset: int) -> str:
    """Return an opaque text from which the list goes on."""
    return urlsafe_b64encode(f"{searcher.generation}:{offset}".encode()).decode().rstrip("=")


def offset_of(cursor: str, run: str) -> int:
    """Return where a cursor goes on, 0 for none; 400 where it is none of ours, 410 where its generation is gone."""
    if not cursor:
        return 0
    try:
        found = _CURSOR.fullmatch(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
    except ValueError:  # neither base64 nor UTF-8
        found = None
    if found is None or int(found[2]) > MAX_NUMBER:
        abort(400, f"cursor must be the `next` of an earlier answer, got {cursor[:40]!r}")
    if current_searcher(run).generation != found[1] and not _arrives(found[1], run):
        abort(
            410, "The run was published anew since that page, so its list cannot go on; search again without a cursor"
        )
    return int(found[2])


def _arrives(generation: str, run: str) -> bool:
    """Wait for a generation that is in force already and that another worker serves before this one."""
    paths: Paths = current_app.extensions["paths"]
    pointer = paths.artifact("served") / current_searcher(run).run / CURRENT
    end = time.monotonic() + SWAP_S
    while pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == generation and time.monotonic() < end:
        time.sleep(0.02)
        forget_searcher(run)
        if current_searcher(run).generation == generation:
            return True
    return False
