"""What a crawl did: tables by outcome, host, status, tag and licence, and how politely; as text and as a page."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from configs.artifacts import atomic_write
from crawl.fetch.database import DONE, FAILED, REFUSED, STATES, TODO, WOULD_ASK, Database, get_meta
from crawl.fetch.faults import TRANSIENT
from crawl.fetch.found import KINDS, PICTURE

SHOWN = 50  # rows of a table in the report; the database has all
_NUMBERS = {"picture": PICTURE, "done": DONE, "refused": REFUSED, "failed": FAILED, "asked": WOULD_ASK}
_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


@dataclass(frozen=True)
class Table:
    """One table of a report."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""

    @property
    def numeric(self) -> set[int]:
        """The columns that hold numbers alone."""
        columns = range(len(self.header))
        return {at for at in columns if all(isinstance(row[at], int | float | None) for row in self.rows)} - {0}


def tables(db: Database) -> list[Table]:
    """Count what became of all addresses, and how hosts were asked."""
    return [_outcomes(db), _hosts(db), _statuses(db), _tags(db), _licences(db), politeness(db)]


def _outcomes(db: Database) -> Table:
    rows = db.execute(
        "SELECT kind, state, reason, COUNT(*) FROM urls GROUP BY kind, state, reason ORDER BY 1, 2, 4 DESC, 3"
    )
    counted = [
        (KINDS[kind], STATES[state], reason, count, _way_out(state, reason)) for kind, state, reason, count in rows
    ]
    position = get_meta(db, "position")
    if position and not get_meta(db, "listed"):  # a bound on pictures was reached before
        line = f"from line {position + 1}"
        counted.append(("list", STATES[TODO], "", line, _way_out(TODO, "")))
    return Table("By outcome", ("kind", "outcome", "reason", "addresses", "what can be done"), counted)


def _way_out(state: int, reason: str) -> str:
    if state == FAILED:
        return f"retry={reason}" if reason in TRANSIENT else "asked once: it stays so"
    return "fetch.max_pictures=0" if state == TODO else ""


def _first(db: Database, title: str, header: tuple[str, ...], query: str) -> Table:
    """Return the first rows of a query as a table, which says how many there are."""
    rows = db.execute(f"{query} LIMIT {SHOWN}", _NUMBERS).fetchall()
    num_rows = len(rows) if len(rows) < SHOWN else db.execute(f"SELECT COUNT(*) FROM ({query})", _NUMBERS).fetchone()[0]  # noqa: S608
    note = f"The first {SHOWN} of {num_rows:,}; the database has all." if num_rows > SHOWN else ""
    return Table(title, header, rows, note)


def _hosts(db: Database) -> Table:
    query = (
        "SELECT host, SUM(kind != :picture AND state = :done), SUM(image_id IS NOT NULL AND state = :done), "
        "SUM(state = :refused), SUM(state = :failed), SUM(state < :done), ROUND(SUM(num_bytes) / 1048576.0, 1) "
        "FROM urls WHERE host != '' GROUP BY host ORDER BY COUNT(*) DESC, host"
    )
    return _first(db, "By host", ("host", "pages", "pictures", "refused", "failed", "to do", "MiB of pictures"), query)


def _statuses(db: Database) -> Table:
    query = "SELECT status, COUNT(*) FROM urls WHERE status > 0 GROUP BY status ORDER BY COUNT(*) DESC, status"
    return Table("By status of HTTP", ("status", "addresses"), db.execute(query).fetchall())


def _tags(db: Database) -> Table:
    query = (
        "SELECT tag.value, COUNT(DISTINCT urls.id) FROM mentions JOIN urls ON urls.id = mentions.url, "
        "json_each(about, '$[0]') AS tag WHERE state = :done AND image_id IS NOT NULL "
        "GROUP BY tag.value ORDER BY 2 DESC, 1"
    )
    return _first(db, "By tag", ("tag as given", "pictures"), query)


def _licences(db: Database) -> Table:
    query = (
        "SELECT COALESCE(json_extract(about, '$[2].licence'), '(not told)'), COUNT(DISTINCT urls.id) FROM mentions "
        "JOIN urls ON urls.id = mentions.url WHERE state = :done AND image_id IS NOT NULL "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return _first(db, "By licence", ("licence", "pictures"), query)


def politeness(db: Database) -> Table:
    """Say how each host was asked: what gap it was owed and which was kept, and how long it had us wait."""
    query = (
        "SELECT host, requests, ROUND(delay, 3), ROUND(gap, 3), ROUND(min_gap, 3), waits, ROUND(waited, 1) FROM asked "
        "ORDER BY requests DESC, host"
    )
    header = ("host", "requests", "crawl-delay s", "gap owed s", "least gap kept s", "waits asked for", "waited s")
    return _first(db, "Politeness", header, query)


def rehearsal(db: Database) -> Table:
    """Say what would be asked of whom, after a dry run."""
    query = (
        "SELECT urls.host, SUM(reason = :asked), SUM(state = :refused), SUM(state = :failed), COALESCE(MAX(gap), 0), "
        "ROUND(SUM(reason = :asked) * COALESCE(MAX(gap), 0) / 3600, 2) "
        "FROM urls LEFT JOIN asked ON asked.host = urls.host "
        "WHERE urls.host != '' GROUP BY urls.host ORDER BY 2 DESC, 1"
    )
    header = ("host", "would be asked", "forbidden", "out of reach", "gap s", "hours at least")
    return _first(db, "What would be asked of whom", header, query)


def as_text(table: Table) -> str:
    """Return a table in columns."""
    cells = [table.header, *([_shown(value) for value in row] for row in table.rows)]
    widths = [min(60, max(len(str(row[column])) for row in cells)) for column in range(len(table.header))]
    lines = ("  ".join(str(cell)[:60].ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    head = [table.title, *filter(None, [table.note])]
    return "\n".join([*head, *(line.rstrip() for line in lines)]) + "\n"


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _summary(db: Database) -> list[tuple[str, int]]:
    """Return the figures that a reader wants first."""
    count = "SUM(kind = :picture AND state = :done AND image_id IS NOT NULL), SUM(kind != :picture AND state = :done), "
    count += "SUM(state = :refused), SUM(state = :failed), SUM(state < :done), COUNT(DISTINCT NULLIF(host, ''))"
    values = db.execute(f"SELECT {count} FROM urls", _NUMBERS).fetchone()  # noqa: S608 - ours
    names = ("pictures", "pages", "refused", "failed", "to do", "hosts")
    return [(name, value or 0) for name, value in zip(names, values, strict=True)]


def as_page(title: str, summary: Sequence[tuple[str, int]], shown: Sequence[Table]) -> str:
    """Return tables as one HTML page that asks no host for anything."""
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["shown"] = _shown
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    style_digest = b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    page = environment.get_template("report.html")
    return page.render(title=title, summary=summary, tables=shown, style=Markup(style), style_digest=style_digest)  # noqa: S704 - our own file


def write_report(directory: Path, db: Database, title: str) -> Path:
    """Write `report.txt` and `report.html` for a crawl's database into a directory; return the page."""
    shown = tables(db)
    atomic_write(directory / "report.txt", "\n".join(map(as_text, shown)))
    atomic_write(directory / "report.html", as_page(title, _summary(db), shown))
    return directory / "report.html"
