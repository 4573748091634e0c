"""Which addresses may be connected to: one pure decision, made at the moment of connecting."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SCHEMES = {"http": 80, "https": 443}

# Everything that is not the public internet, by the registries of special-purpose addresses (RFC 6890 and later);
# `ipaddress.is_global` has been wrong before and says neither for 100.64.0.0/10.
_CLOSED_4 = (
    "0.0.0.0/8",  # this network; 0.0.0.0 reaches the machine itself
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT, and the metadata service of one cloud (100.100.100.200)
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, and most clouds' metadata service
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "168.63.129.16/32",  # a cloud's host, at a public address
)
_OPEN_6 = "2000::/3"  # global unicast; all else is local, multicast or reserved
_CLOSED_6 = (
    "2001::/23",  # protocol assignments, Teredo among them
    "2001:db8::/32",
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
)
_NETWORKS_4 = tuple(map(ipaddress.IPv4Network, _CLOSED_4))
_NETWORKS_6 = tuple(map(ipaddress.IPv6Network, _CLOSED_6))
_NAT64 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_ISATAP = (0x00005EFE, 0x02005EFE)


def address_allowed(scheme: str, host: str, port: int, address: str, allow_hosts: Sequence[str] = ()) -> bool:
    """Say whether a connection may be made; a pure function of its arguments.

    Args:
        scheme: of the URL; `http` and `https` are allowed.
        host: as the URL names it.
        port: of the URL; other ports than 80 and 443 are allowed to hosts of `allow_hosts` alone.
        address: one of those that `host` resolves to, in any spelling; what is no address is not allowed.
        allow_hosts: hosts of one's own network, `name` or `name:port`. They are meant by the name the URL gives: a
            foreign name that resolves to the address of one of them is not allowed.
    """
    if scheme not in SCHEMES:
        return False
    parsed = parse_address(address)
    if parsed is None:
        return False
    if is_own(host, port, allow_hosts):
        return True
    return port in SCHEMES.values() and is_public(parsed)


def is_own(host: str, port: int, allow_hosts: Sequence[str]) -> bool:
    """Say whether a host stands in `allow_hosts`, with its port or without one."""
    name = host.lower().rstrip(".").strip("[]")
    listed = {entry.lower().rstrip(".") for entry in allow_hosts}
    return bool(listed & {name, f"[{name}]", f"{name}:{port}", f"[{name}]:{port}"})


def is_public(address: Address) -> bool:
    """Say whether an address and all that it carries belong to the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NETWORKS_4)
    inner = list(carried(address))
    if any(not is_public(each) for each in inner):
        return False
    if address.ipv4_mapped or any(address in network for network in _NAT64[:1]):
        return True  # a public IPv4 address under another spelling
    return address in ipaddress.IPv6Network(_OPEN_6) and not any(address in network for network in _NETWORKS_6)


def carried(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses inside an IPv6 address: mapped, compatible, NAT64, 6to4, Teredo and ISATAP."""
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    head = number >> 32
    if address.ipv4_mapped or head == 0 or head == 0xFFFF0000 or any(address in network for network in _NAT64):
        yield last
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if head & 0xFFFFFFFF in _ISATAP:
        yield last


def parse_address(text: str) -> Address | None:
    """Read an address in any spelling that a resolver understands; None where it is none.

    IPv4 comes with one to four parts, decimal, octal or hexadecimal (`0x7f.1`, `2130706433`, `017700000001`), in full
    width digits and with other dots, with a dot at the end; IPv6 in brackets and with a zone.
    """
    plain = unicodedata.normalize("NFKC", text).replace("\u3002", ".").strip("[]")
    if ":" in plain:
        try:
            return ipaddress.IPv6Address(plain.partition("%")[0])
        except ValueError:
            return None
    parts = plain.removesuffix(".").split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    return _from_parts([_number(part) for part in parts])


def _number(part: str) -> int:
    if part[:2].lower() == "0x":
        return int(part[2:] or "0", 16)
    try:
        return int(part, 8 if part.startswith("0") else 10)
    except ValueError:
        return 2**32  # 08 and 09 are no octal numbers; too large for any place


def _from_parts(numbers: list[int]) -> ipaddress.IPv4Address | None:
    """Put together what `inet_aton` accepts: the last part fills all bytes that are left."""
    *heads, tail = numbers
    if any(head > 255 for head in heads) or tail >= 256 ** (4 - len(heads)):
        return None
    return ipaddress.IPv4Address(sum(head << 8 * (3 - place) for place, head in enumerate(heads)) + tail)
