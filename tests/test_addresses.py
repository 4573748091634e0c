"""Which addresses may be connected to: one table, and the spellings of IPv4 against the system's own reader."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawl.fetch.addresses import address_allowed, parse_address

PUBLIC = [
    "93.184.216.34",
    "1.1.1.1",
    "223.255.255.254",
    "0x5db8d822",  # 93.184.216.34
    "2606:2800:220:1:248:1893:25c8:1946",
    "2a00:1450:4001:81b::200e",
    "::ffff:93.184.216.34",
    "64:ff9b::5db8:d822",
]
CLOSED = [
    # the machine itself, in all spellings
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001"),
    *("127.0.0.1.", "１２７.0.0.1", "127。0。0。1", "127.255.255.255", "0", "0.0.0.0", "0x0", "0.1.2.3"),  # noqa: RUF001
    # one's own network, carriers, link-local and metadata services
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.254"),
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "169.254.170.2", "100.100.100.200", "168.63.129.16"),
    # documentation, benchmarks, multicast, reserved, broadcast
    *("192.0.0.192", "192.0.2.1", "198.51.100.1", "203.0.113.9", "198.18.0.1", "198.19.255.255", "192.88.99.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    # IPv6 of its own
    *("::", "::1", "[::1]", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("100::1", "3fff::1", "4000::1", "5f00::1"),
    # IPv6 that carries IPv4: mapped, compatible, translated, NAT64, 6to4, Teredo (server, client), ISATAP
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:0:10.0.0.1", "::127.0.0.1", "::a00:1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::10.0.0.1", "64:ff9b:1::5db8:d822"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:5db8:d822::1", "2001:0:7f00:1::1", "2001::f5ff:fffe"),
    *("2606:2800::5efe:127.0.0.1", "2606:2800::200:5efe:10.0.0.1"),
    # no addresses at all
    *(
        "",
        "example.org",
        "256.0.0.1",
        "1.2.3.4.5",
        "08.0.0.1",
        "0x100000000",
        "1..2",
        "127.0.0.1 ",
        "::1::",
        "localhost",
    ),
]
# scheme, host as written, port, address, allow_hosts, whether
RULES = [
    ("http", "example.org", 80, "93.184.216.34", (), True),
    ("https", "example.org", 443, "93.184.216.34", (), True),
    ("http", "example.org", 443, "93.184.216.34", (), True),
    ("http", "example.org", 8080, "93.184.216.34", (), False),
    ("http", "example.org", 22, "93.184.216.34", (), False),
    ("ftp", "example.org", 80, "93.184.216.34", (), False),
    ("file", "", 80, "93.184.216.34", (), False),
    ("data", "", 80, "93.184.216.34", (), False),
    ("http", "127.0.0.1", 80, "127.0.0.1", ("127.0.0.1",), True),
    ("http", "127.0.0.1", 8080, "127.0.0.1", ("127.0.0.1",), True),
    ("http", "127.0.0.1", 8080, "127.0.0.1", ("127.0.0.1:8080",), True),
    ("http", "127.0.0.1", 8081, "127.0.0.1", ("127.0.0.1:8080",), False),
    ("ftp", "127.0.0.1", 8080, "127.0.0.1", ("127.0.0.1:8080",), False),
    ("http", "Gallery.Lan.", 80, "192.168.1.7", ("gallery.lan",), True),
    ("http", "[::1]", 8080, "::1", ("[::1]:8080",), True),
    ("http", "evil.example", 8080, "127.0.0.1", ("127.0.0.1",), False),  # a name that resolves to what is allowed
    ("http", "127.1", 80, "127.0.0.1", ("127.0.0.1",), False),
    ("http", "gallery.lan", 80, "nonsense", ("gallery.lan",), False),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_connected_to(address):
    assert address_allowed("http", "example.org", 80, address)


@pytest.mark.parametrize("address", CLOSED)
def test_no_other_address_may_be_connected_to(address):
    assert not address_allowed("http", "example.org", 80, address)


@pytest.mark.parametrize(("scheme", "host", "port", "address", "allow_hosts", "allowed"), RULES)
def test_schemes_ports_and_hosts_of_ones_own(scheme, host, port, address, allow_hosts, allowed):
    assert address_allowed(scheme, host, port, address, allow_hosts) is allowed


NUMBERS = st.integers(0, 2**33).flatmap(
    lambda n: st.sampled_from([str(n), hex(n), f"0{n:o}", f"0X{n:X}"])
) | st.integers(0, 300).map(str)


@given(st.lists(NUMBERS, min_size=1, max_size=5).map(".".join))
def test_spellings_of_ipv4_are_read_as_the_system_reads_them(text):
    try:
        expected = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        expected = None
    assert (str(parse_address(text)) if parse_address(text) else None) == expected
