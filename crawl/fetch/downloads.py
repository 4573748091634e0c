"""Scrapy's download handler for http and https: one request, within limits, without following anything."""

from __future__ import annotations

import logging
from typing import Any

from OpenSSL.SSL import Error as TlsError
from scrapy.core.downloader.handlers.base import BaseDownloadHandler
from scrapy.http import Request, Response
from scrapy.utils.defer import maybe_deferred_to_future
from service_identity import VerificationError
from twisted.internet import defer, error
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web import _newclient as wire
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from crawl.fetch.codings import decoded
from crawl.fetch.connect import MAX_HEAD_BYTES, GuardedEndpoints, Limits, SystemResolver
from crawl.fetch.faults import Fault
from crawl.fetch.found import MAX_SITEMAP_BYTES

log = logging.getLogger(__name__)

_IDLE_S = 4  # an unused connection is kept this long, less than most servers keep theirs (Apache and Node 5)
wire.HTTPParser.MAX_LENGTH = MAX_HEAD_BYTES  # of one line, for which Twisted has a quarter and no name
_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (error.DNSLookupError, "dns"),
    ((TlsError, VerificationError), "tls"),
    ((error.ConnectError, error.TimeoutError, error.ConnectionRefusedError), "connect"),
    ((wire.ParseError, wire.BadResponseVersion, ValueError), "bad_answer"),
    ((defer.CancelledError, defer.TimeoutError), "timeout"),
    ((error.ConnectionLost, error.ConnectionDone, error.ConnectionAborted, ResponseFailed), "reset"),
    ((wire.ConnectionAborted, wire.ResponseNeverReceived, wire.RequestNotSent), "reset"),
)


class GuardedDownloads(BaseDownloadHandler):
    """Makes the requests of a crawl; what it raises is always a `Fault`.

    `meta["max_bytes"]` of a request bounds its body, before and after decoding.
    """

    lazy = True

    def __init__(self, crawler: Any) -> None:
        super().__init__(crawler)
        from twisted.internet import reactor  # installed by Scrapy before

        self._reactor: Any = reactor
        options = crawler.settings["FETCH"]
        self._total_s = options.total_s
        most = max(options.max_bytes, options.max_page_bytes, MAX_SITEMAP_BYTES)  # a request may bring less
        limits = Limits(options.connect_s, options.read_s, most, tuple(options.allow_hosts))
        self._pool = HTTPConnectionPool(reactor)
        self._pool.retryAutomatically = False  # when and how often is decided in one place
        self._pool.maxPersistentPerHost = options.per_host
        self._pool.cachedConnectionTimeout = _IDLE_S
        endpoints = GuardedEndpoints(reactor, SystemResolver(reactor, options.names), limits)
        self._agent = Agent.usingEndpointFactory(reactor, endpoints, pool=self._pool)

    async def download_request(self, request: Request) -> Response:
        """Ask once and return the whole answer, decoded.

        Raises:
            Fault: there is no whole answer within the limits.
        """
        exchange = _Exchange(request, self._agent)
        timer = self._reactor.callLater(self._total_s, exchange.cancel)
        try:
            return await maybe_deferred_to_future(exchange.run())
        except Exception as problem:  # Twisted's are many; whatever it is becomes one kind
            raise _fault(problem, exchange.cancelled, self._total_s) from None
        finally:
            if timer.active():
                timer.cancel()

    async def close(self) -> None:
        """Close what idles in the pool; what is in use ends with the process."""
        self._pool.closeCachedConnections()


class _Exchange:
    """One request and its answer."""

    def __init__(self, request: Request, agent: Agent) -> None:
        self._request = request
        self._agent = agent
        self._pending: Any = None
        self.cancelled = False

    def run(self) -> defer.Deferred[Response]:
        return defer.ensureDeferred(self._run())

    def cancel(self) -> None:
        self.cancelled = True
        if self._pending is not None:
            self._pending.cancel()

    async def _run(self) -> Response:
        request = self._request
        headers = Headers({name: values for name, values in request.headers.items()})
        self._pending = self._agent.request(b"GET", request.url.encode("ascii"), headers)
        answer = await self._pending
        body = b""
        if answer.length:
            self._pending = reader = _Body(answer, request.meta["max_bytes"]).finished
            body = await reader
        coding = ",".join(value.decode("latin-1") for value in answer.headers.getRawHeaders(b"content-encoding", []))
        if coding:
            body = decoded(body, coding, request.meta["max_bytes"])
        given = {name: values for name, values in answer.headers.getAllRawHeaders()}
        return Response(request.url, status=answer.code, headers=given, body=body, request=request)


class _Body(Protocol):
    """Gathers a body up to a limit; fewer bytes than announced are none."""

    def __init__(self, answer: Any, max_bytes: int) -> None:
        self.finished: defer.Deferred[bytes] = defer.Deferred(lambda _: self._end())
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._answer = answer
        if isinstance(answer.length, int) and answer.length > max_bytes:
            self._end()
            self._fail(Fault("too_many_bytes", f"{answer.length} bytes announced, limit {max_bytes}"))
        else:
            answer.deliverBody(self)

    def _end(self) -> None:
        connection = self._answer._transport._producer  # as Scrapy does; the proxy in between cannot abort
        if connection is not None:
            connection.abortConnection()

    def _fail(self, fault: BaseException) -> None:
        if not self.finished.called:
            self.finished.errback(fault)

    def dataReceived(self, data: bytes) -> None:
        self._pieces.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes and not self.finished.called:
            self._pieces.clear()
            self._fail(Fault("too_many_bytes", f"more than {self._max_bytes} bytes"))
            self._end()

    def connectionLost(self, reason: Failure = Failure(error.ConnectionDone())) -> None:  # noqa: B008
        if self.finished.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.finished.callback(b"".join(self._pieces))
            return
        ours = _ours(reason.value)
        self._fail(ours or Fault("half_body", f"the connection ended after {self._num_bytes} bytes"))


def _ours(problem: BaseException | None) -> Fault | None:
    """Find our own reason inside what Twisted wraps around it."""
    if isinstance(problem, Fault):
        return problem
    for reason in getattr(problem, "reasons", ()):
        if found := _ours(reason.value):
            return found
    return None


def _fault(problem: Exception, cancelled: bool, total_s: float) -> Fault:
    if cancelled:
        return Fault("timeout", f"not done after {total_s:g} s")
    if ours := _ours(problem):
        return ours
    inner = [reason.value for reason in getattr(problem, "reasons", ())]
    for each in [*inner, problem]:
        for types, kind in _KINDS:
            if isinstance(each, types):
                return Fault(kind, f"{type(each).__name__}: {each}"[:200])
    log.warning("an unexpected end of a request: %r", problem)
    return Fault("bad_answer", f"{type(problem).__name__}: {problem}"[:200])
