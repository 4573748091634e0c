"""Connections that are checked when they are made, and watched while they last.

Twisted's agent asks an endpoint for each new connection. This one resolves the name once, looks at every address it
gets, and connects to one of these very addresses, so that a name cannot answer otherwise a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionDone, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from crawl.fetch.addresses import address_allowed, is_own, parse_address
from crawl.fetch.faults import Fault, Refusal

MAX_HEAD_BYTES = 64 * 2**10  # of all header lines together
_CLEANLY = Failure(ConnectionDone())
_CLOSED_AS = "{} resolves to {}, which is no public address"

Resolve = Callable[[str], "defer.Deferred[list[str]]"]


@dataclass(frozen=True)
class Limits:
    """What a connection may take, and whom it may reach."""

    connect_s: float
    read_s: float  # between two pieces of an answer
    max_bytes: int  # of one answer, header and body
    allow_hosts: Sequence[str] = ()


class SystemResolver:
    """Resolves names on the reactor's threads, after a table of names that are answered here."""

    def __init__(self, reactor: Any, table: dict[str, list[str]]) -> None:
        self._reactor = reactor
        self._table = table

    def __call__(self, host: str) -> defer.Deferred[list[str]]:
        """Return all addresses of a host."""
        if host in self._table:
            return defer.succeed(self._table[host])
        if literal := parse_address(host):
            return defer.succeed([str(literal)])
        receiver = _Receiver()
        self._reactor.nameResolver.resolveHostName(receiver, host)
        return receiver.finished


class TwistedNames:
    """Leaves Twisted's own resolver in place, which tells all addresses of a name; Scrapy's tells a single IPv4 one."""

    @classmethod
    def from_crawler(cls, crawler: object, reactor: object) -> TwistedNames:
        """Return one, as Scrapy asks for it."""
        return cls()

    def install_on_reactor(self) -> None:
        """Do nothing."""


class _Receiver:
    """Gathers what a resolver of Twisted finds."""

    def __init__(self) -> None:
        self.finished: defer.Deferred[list[str]] = defer.Deferred()
        self._found: list[str] = []

    def resolutionBegan(self, resolution: object) -> None:
        pass

    def addressResolved(self, address: Any) -> None:
        self._found.append(address.host)

    def resolutionComplete(self) -> None:
        self.finished.callback(self._found)


@implementer(IAgentEndpointFactory)
class GuardedEndpoints:
    """Gives Twisted's agent endpoints that connect to allowed addresses alone."""

    def __init__(self, reactor: Any, resolve: Resolve, limits: Limits) -> None:
        self._reactor = reactor
        self._resolve = resolve
        self._limits = limits
        self._tls = BrowserLikePolicyForHTTPS()

    def endpointForURI(self, uri: URI) -> GuardedEndpoint:
        """Return an endpoint for one address."""
        scheme, host = uri.scheme.decode(), uri.host.decode()
        options = self._tls.creatorForNetloc(uri.host, uri.port) if scheme == "https" else None
        return GuardedEndpoint(self._reactor, self._resolve, self._limits, scheme, host, uri.port, options)


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """One host and port of a URL, reached only at an address that is allowed."""

    def __init__(
        self, reactor: Any, resolve: Resolve, limits: Limits, scheme: str, host: str, port: int, tls: Any = None
    ) -> None:
        self._reactor = reactor
        self._resolve = resolve
        self._limits = limits
        self._scheme, self._host, self._port = scheme, host.strip("[]"), port
        self._tls = tls

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        """Connect and return the protocol that `factory` builds, behind a watch on what comes in."""
        return defer.ensureDeferred(self._connect(factory))

    async def _connect(self, factory: Any) -> Any:
        watched = WatchedFactory(self._reactor, factory, self._limits)
        last: Exception = DNSLookupError(f"{self._host} has no address")
        for address in self.checked(await self._addresses()):
            kind: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            plain = kind(self._reactor, address, self._port, timeout=self._limits.connect_s)
            endpoint: Any = wrapClientTLS(self._tls, plain) if self._tls else plain
            try:
                connection = await endpoint.connect(watched)
            except ConnectError as error:
                last = error
                continue
            return getattr(connection, "wrappedProtocol", connection)
        raise last

    async def _addresses(self) -> list[str]:
        if self._port not in (80, 443) and not is_own(self._host, self._port, self._limits.allow_hosts):
            raise Refusal("port", f"port {self._port} is not asked")
        found = self._resolve(self._host)
        found.addTimeout(self._limits.connect_s, self._reactor, lambda *_: Failure(DNSLookupError("took too long")))
        return await found

    def checked(self, addresses: Sequence[str]) -> list[str]:
        """Return the addresses in a spelling without ambiguity, IPv4 first.

        Raises:
            Refusal: one of them may not be connected to; a name that resolves to both kinds is not trusted at all.
        """
        for address in addresses:
            if not address_allowed(self._scheme, self._host, self._port, address, self._limits.allow_hosts):
                raise Refusal("address", _CLOSED_AS.format(self._host[:80], address[:60]))
        parsed = [parse_address(address) for address in addresses]
        return [str(each) for each in sorted(filter(None, parsed), key=lambda each: each.version)]


class WatchedFactory(WrappingFactory):
    """Puts a watch before each connection of a factory."""

    noisy = False

    def __init__(self, reactor: Any, factory: Any, limits: Limits) -> None:
        super().__init__(factory)
        self.reactor = reactor
        self.limits = limits

    def buildProtocol(self, address: Any) -> Watched:
        """Build the protocol of one connection."""
        return Watched(self, self.wrappedFactory.buildProtocol(address))


class Watched(ProtocolWrapper):
    """Ends a connection whose answer stands still, has an endless head, or is larger than anything we would keep.

    An idle connection of the pool ends so, too, which costs nothing.
    """

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._limits = factory.limits
        self._clock = factory.reactor
        self._timer: Any = None
        self._fault: Fault | None = None
        self._received = 0
        self._tail = b""  # of the head, while it is not complete

    def makeConnection(self, transport: Any) -> None:
        """Start watching."""
        self._timer = self._clock.callLater(self._limits.read_s, self._stalled)
        super().makeConnection(transport)

    def writeSequence(self, data: Any) -> None:
        """Send a request, whose answer is counted from zero."""
        self._asked()
        super().writeSequence(data)

    def write(self, data: bytes) -> None:
        """Send a request, whose answer is counted from zero."""
        self._asked()
        super().write(data)

    def _asked(self) -> None:
        self._received, self._tail = 0, b"\n"
        if self._timer.active():
            self._timer.reset(self._limits.read_s)

    def dataReceived(self, data: bytes) -> None:
        """Count what comes in and pass it on."""
        self._received += len(data)
        if self._timer.active():
            self._timer.reset(self._limits.read_s)
        if self._tail:
            self._tail = self._unfinished(self._tail[-3:] + data)
        if self._tail and self._received > MAX_HEAD_BYTES:
            self._end(Fault("too_large_head", f"more than {MAX_HEAD_BYTES} bytes of header"))
        elif self._received > self._limits.max_bytes + MAX_HEAD_BYTES:
            self._end(Fault("too_many_bytes", f"more than {self._limits.max_bytes} bytes"))
        else:
            super().dataReceived(data)

    @staticmethod
    def _unfinished(head: bytes) -> bytes:
        return b"" if b"\r\n\r\n" in head or b"\n\n" in head else head

    def _stalled(self) -> None:
        self._end(Fault("stall", f"nothing came for {self._limits.read_s:g} s"))

    def _end(self, fault: Fault) -> None:
        self._fault = self._fault or fault
        self.abortConnection()

    def connectionLost(self, reason: Failure = _CLEANLY) -> None:
        """Pass on why the connection ended, by our own reason where we ended it."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(Failure(self._fault) if self._fault else reason)
