"""The WSGI server: worker processes forked from one that has everything open, behind one listening socket.

Granian reads and writes HTTP outside Python's interpreter lock: with two workers on two cores it answered three times
as many requests of a small Flask app as gunicorn's threads did, and six times as many as two of waitress. Slow heads
and idle connections end after half a minute; a body is read by the one route that takes it.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder  # type: ignore[attr-defined] # for pickling, which is all it names it for
from granian.server.mp import MPServer

from configs.artifacts import ArtifactError
from serve.config import ServeConfig

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)
BACKLOG = 1024
IDLE_S = 30  # of a connection on which nothing comes, or a head that does not end
DRAIN_S = 30  # that a worker may take for its last answers
MAX_DEFAULT_WORKERS = 4


class Server(MPServer):
    """Granian on a socket of ours.

    Its own way, a listener a worker on one port, would let a second server share the port unnoticed, takes no port 0,
    and loses what waits before a worker that ends.
    """

    def __init__(self, app: WSGIApplication, listener: socket.socket, cfg: ServeConfig) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            "serve.app",
            address=host,
            port=port,
            interface=Interfaces.WSGI,
            workers=cfg.workers or min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1),
            blocking_threads=cfg.threads,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_S * 1000),
            websockets=False,
            backlog=BACKLOG,
            backpressure=cfg.connections,
            log_level=LogLevels.warning,
            respawn_failed_workers=True,
            workers_kill_timeout=DRAIN_S,
        )
        self._app = whole(app)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._ssp, self._sso = None, self._listener
        self._shd = SocketHolder(self._listener.fileno(), False, BACKLOG)  # type: ignore[call-arg, assignment] # left out of its stub

    def _drop_shared_socket(self) -> None:
        self._listener.close()

    def run(self) -> None:
        """Answer until SIGTERM or SIGINT; then workers take no more connections and finish what they have."""
        gc.collect()
        gc.freeze()  # so that workers do not copy the pages of objects that the collector would only look at
        self.serve(target_loader=lambda: self._app, wrap_loader=False)


def whole(app: WSGIApplication) -> WSGIApplication:
    """Let an app give its bodies in one piece, which granian writes with the head at once; none of ours is large."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with closing(app(environ, start_response)) as parts:  # type: ignore[type-var]
            return [b"".join(parts)]

    return answer


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ArtifactError: the address is in use, or none of this machine.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it; without, 40 ms wait
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ArtifactError(
            f"cannot listen on {host}:{port} ({error}); choose another with PORT=<port> or host=<address>"
        ) from error
    listener.setblocking(False)
    return listener
