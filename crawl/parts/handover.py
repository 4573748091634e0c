"""Redirects from one part of a crawl to a host of another: who has the host asks for it, in the next round."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from crawl.fetch.database import HANDED_OVER, HANDING_OVER, transaction
from crawl.fetch.found import About
from crawl.fetch.register import Bounds, Register
from crawl.fetch.shares import Share, part_of
from crawl.fetch.urls import host_of

_NEXT = "SELECT next.url FROM urls JOIN urls AS next ON next.id = urls.target WHERE urls.url = ?"
_MAX_OPEN = 16  # databases at a time, of three files each


class Registers:
    """The databases of all parts, of which few are open at a time. Only while no worker writes to them."""

    def __init__(self, databases: list[Path], bounds: Bounds) -> None:
        self.databases = databases
        self._bounds = bounds
        self._open: OrderedDict[int, Register] = OrderedDict()

    def __getitem__(self, number: int) -> Register:
        """Return the register of a part, good until another 15 were asked for."""
        if number not in self._open:
            self._open[number] = Register(self.databases[number], self._bounds, Share(number, len(self.databases)))
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def number_of(self, url: str) -> int:
        """Return the number of the part that may ask for an address."""
        return part_of(host_of(url), len(self.databases))

    def owner(self, url: str) -> Register:
        """Return its register."""
        return self[self.number_of(url)]

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._open.popitem()[1].close()


def hand_over(databases: list[Path], bounds: Bounds) -> int:
    """Give every address that a part was redirected to, and may not ask for, to the part that may.

    Done twice, after a kill in between, it does the same.

    Returns:
        The number of addresses.
    """
    registers = Registers(databases, bounds)
    count = 0
    try:
        while handed := sum(_hand_over(registers, number) for number in range(len(databases))):
            count += handed  # what arrives may go on to a third part
    finally:
        registers.close()
    return count


def _hand_over(registers: Registers, number: int) -> int:
    waiting = registers[number].db.execute("SELECT id, url, hops FROM urls WHERE reason = ?", (HANDING_OVER,))
    rows = sorted(waiting, key=lambda row: registers.number_of(row[1]))  # each owner's together, so that it stays open
    for url_id, url, hops in rows:
        passed = _passed(registers, url)
        sender = registers[number]
        sources = sender.db.execute("SELECT id, url FROM urls WHERE target = ?", (url_id,)).fetchall()
        loops = [source for source, address in sources if address in passed]
        if len(loops) < len(sources):
            _deliver(registers, number, url_id, url, hops)
        sender = registers[number]
        with transaction(sender.db):
            for source in loops:
                sender.refuse_loop(source, url)
            sender.db.execute("UPDATE urls SET reason = ? WHERE id = ?", (HANDED_OVER, url_id))
    return len(rows)


def _passed(registers: Registers, url: str) -> set[str]:
    """Return all addresses that a chain of redirects leads through, as far as it is known."""
    passed: set[str] = set()
    while url not in passed:
        passed.add(url)
        row = registers.owner(url).db.execute(_NEXT, (url,)).fetchone()
        if row is None:
            break
        url = row[0]
    return passed


def _deliver(registers: Registers, number: int, url_id: int, url: str, hops: int) -> None:
    mentions = registers[number].db.execute("SELECT page, about FROM mentions WHERE url = ?", (url_id,)).fetchall()
    owner = registers.owner(url)
    with transaction(owner.db):
        owner.receive(url, hops, [(page, About.from_json(about)) for page, about in mentions])
