"""What can go wrong with a request: a kind to count by, and whether another time may help."""

from __future__ import annotations

# The server's or the network's doing, and it may pass: asked again after a while, and with retry=<kind>.
TRANSIENT = {
    "dns",  # the name does not resolve
    "connect",  # nobody accepts the connection
    "reset",  # the connection ended before the answer
    "stall",  # nothing came for fetch.read_s
    "timeout",  # the whole took longer than fetch.total_s
    "half_body",  # fewer bytes than announced
    "busy",  # an API asks in its answer to come back later
    "robots_unreachable",  # robots.txt answers 5xx or not at all, so everything is closed
    "status_408",
    "status_425",
    "status_429",
    "status_500",
    "status_502",
    "status_503",
    "status_504",
}
# What the server asks for with Retry-After.
WAITING = {"status_429", "status_503", "busy"}
# What can be done where a rule of ours closes a whole host.
CLOSED_TO_US = {
    "port": "80 and 443 alone are asked, others of hosts of your own with fetch.allow_hosts",
    "address": "its host has no public address; fetch.allow_hosts opens hosts of your own network",
}


class Fault(Exception):
    """A request that brought no usable answer."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class Refusal(Fault):
    """A request that is not made, or whose answer is not used, because of a rule of ours or of the site."""
