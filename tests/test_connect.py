"""The address that is checked is the one that is connected to, whatever a name answers later."""

import pytest
from twisted.internet import defer
from twisted.internet.error import ConnectionDone, DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from crawl.fetch.connect import MAX_HEAD_BYTES, GuardedEndpoint, Limits, Watched, WatchedFactory
from crawl.fetch.faults import Refusal

LIMITS = Limits(connect_s=5, read_s=3, max_bytes=1000, allow_hosts=("own.test",))


class Names:
    """A resolver that answers otherwise each time."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host):
        self.asked += 1
        return defer.succeed(self.answers[min(self.asked, len(self.answers)) - 1])


def connect(names, host="example.org", port=80, scheme="http"):
    reactor = MemoryReactorClock()
    pending = GuardedEndpoint(reactor, names, LIMITS, scheme, host, port).connect(Factory.forProtocol(Protocol))
    failures = []
    pending.addErrback(failures.append)
    return [client[:2] for client in reactor.tcpClients], [failure.value for failure in failures]


def test_a_name_is_asked_once_and_its_answer_connected_to():
    names = Names(["93.184.216.34"], ["127.0.0.1"])
    assert connect(names) == ([("93.184.216.34", 80)], [])
    assert names.asked == 1


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], ["::ffff:169.254.169.254"], ["fe80::1%eth0"]]
)
def test_a_name_that_leads_inside_is_not_connected_to(addresses):
    clients, failures = connect(Names(addresses))
    assert clients == []
    assert [(type(each), each.kind) for each in failures] == [(Refusal, "address")]


def test_a_rebound_name_is_refused_at_its_next_connection():
    names = Names(["93.184.216.34"], ["127.0.0.1"])
    assert connect(names)[0] == [("93.184.216.34", 80)]
    clients, failures = connect(names)
    assert clients == []
    assert failures[0].kind == "address"


def test_a_host_of_ones_own_may_be_anywhere():
    assert connect(Names(["127.0.0.1"]), "own.test", 8080)[0] == [("127.0.0.1", 8080)]


def test_other_ports_are_refused_before_a_name_is_asked():
    names = Names(["93.184.216.34"])
    assert connect(names, port=25)[1][0].kind == "port"
    assert names.asked == 0


def test_a_name_without_address_is_no_connection():
    clients, failures = connect(Names([]))
    assert clients == []
    assert isinstance(failures[0], DNSLookupError)


class Transport:
    aborted = False

    def abortConnection(self):
        self.aborted = True

    def write(self, data):
        pass


class Reader(Protocol):
    received = b""
    reason = None

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.reason = reason.value


@pytest.fixture
def watched():
    clock = MemoryReactorClock()
    watch = Watched(WatchedFactory(clock, Factory(), LIMITS), Reader())
    watch.makeConnection(Transport())
    watch.write(b"GET / HTTP/1.1\r\n\r\n")
    return clock, watch


def kind_of_end(watch):
    reader = watch.wrappedProtocol
    watch.connectionLost(Failure(ConnectionDone()))
    return reader.reason.kind


def test_an_answer_that_stands_still_is_ended(watched):
    clock, watch = watched
    clock.advance(2.9)
    watch.dataReceived(b"HTTP/1.1 200 OK\r\n")
    clock.advance(2.9)
    assert not watch.transport.aborted
    clock.advance(0.2)
    assert watch.transport.aborted
    assert kind_of_end(watch) == "stall"


def test_an_endless_head_is_ended(watched):
    _, watch = watched
    for _ in range(MAX_HEAD_BYTES // 16 + 1):
        watch.dataReceived(b"X-Padding: 0123\n"[:16])
    assert watch.transport.aborted
    assert kind_of_end(watch) == "too_large_head"


def test_a_body_is_counted_apart_from_its_head_and_ended_when_too_large(watched):
    _, watch = watched
    watch.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_HEAD_BYTES))
    assert not watch.transport.aborted
    watch.dataReceived(bytes(LIMITS.max_bytes + 1))
    assert watch.transport.aborted
    assert kind_of_end(watch) == "too_many_bytes"
