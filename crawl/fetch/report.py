"""What a crawl did: tables by outcome, host, status, tag and licence, and how politely; as text and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write
from crawl.fetch.database import DONE, FAILED, REFUSED, STATES, TODO, WOULD_ASK, Database, get_meta
from crawl.fetch.faults import TRANSIENT
from crawl.fetch.found import KINDS, PICTURE

SHOWN = 50  # rows of a table in the report; the database has all
_NUMBERS = {"picture": PICTURE, "done": DONE, "refused": REFUSED, "failed": FAILED, "shown": SHOWN, "asked": WOULD_ASK}
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 2em } th, td { padding: .2em .8em; border-bottom: 1px solid #ddd }
th { text-align: left } td { font-variant-numeric: tabular-nums } td.number { text-align: right }
"""


@dataclass(frozen=True)
class Table:
    """One table of a report."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


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


def _hosts(db: Database) -> Table:
    rows = db.execute(
        "SELECT host, SUM(kind != :picture AND state = :done), SUM(image_id IS NOT NULL AND state = :done), "
        "SUM(state = :refused), SUM(state = :failed), SUM(state < :done), ROUND(SUM(num_bytes) / 1048576.0, 1) "
        "FROM urls WHERE host != '' GROUP BY host ORDER BY COUNT(*) DESC, host LIMIT :shown",
        _NUMBERS,
    )
    header = ("host", "pages", "pictures", "refused", "failed", "to do", "MiB of pictures")
    return Table("By host", header, rows.fetchall())


def _statuses(db: Database) -> Table:
    query = "SELECT status, COUNT(*) FROM urls WHERE status > 0 GROUP BY status ORDER BY COUNT(*) DESC, status"
    return Table("By status of HTTP", ("status", "addresses"), db.execute(query).fetchall())


def _tags(db: Database) -> Table:
    rows = db.execute(
        "SELECT tag.value, COUNT(*) FROM mentions JOIN urls ON urls.id = mentions.url, json_each(about, '$[0]') AS tag "
        "WHERE state = :done AND image_id IS NOT NULL GROUP BY tag.value ORDER BY COUNT(*) DESC, 1 LIMIT :shown",
        _NUMBERS,
    )
    return Table("By tag", ("tag as given", "pictures"), rows.fetchall())


def _licences(db: Database) -> Table:
    rows = db.execute(
        "SELECT COALESCE(json_extract(about, '$[2].licence'), '(not told)'), COUNT(DISTINCT urls.id) FROM mentions "
        "JOIN urls ON urls.id = mentions.url WHERE state = :done AND image_id IS NOT NULL "
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :shown",
        _NUMBERS,
    )
    return Table("By licence", ("licence", "pictures"), rows.fetchall())


def politeness(db: Database) -> Table:
    """Say how each host was asked: what gap it was owed and which was kept, and how long it had us wait."""
    rows = db.execute(
        "SELECT host, requests, ROUND(delay, 3), ROUND(gap, 3), ROUND(min_gap, 3), waits, ROUND(waited, 1) FROM asked "
        "ORDER BY requests DESC, host LIMIT ?",
        (SHOWN,),
    )
    header = ("host", "requests", "crawl-delay s", "gap owed s", "least gap kept s", "waits asked for", "waited s")
    return Table("Politeness", header, rows.fetchall())


def rehearsal(db: Database) -> Table:
    """Say what would be asked of whom, after a dry run."""
    rows = db.execute(
        "SELECT urls.host, SUM(reason = :asked), SUM(state = :refused), SUM(state = :failed), COALESCE(MAX(gap), 0), "
        "ROUND(SUM(reason = :asked) * COALESCE(MAX(gap), 0) / 3600, 2) "
        "FROM urls LEFT JOIN asked ON asked.host = urls.host "
        "WHERE urls.host != '' GROUP BY urls.host ORDER BY 2 DESC, 1 LIMIT :shown",
        _NUMBERS,
    )
    header = ("host", "would be asked", "forbidden", "out of reach", "gap s", "hours at least")
    return Table("What would be asked of whom", header, rows.fetchall())


def as_text(table: Table) -> str:
    """Return a table in columns."""
    cells = [table.header, *([_shown(value) for value in row] for row in table.rows)]
    widths = [min(60, max(len(str(row[column])) for row in cells)) for column in range(len(table.header))]
    lines = ("  ".join(str(cell)[:60].ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join([table.title, *(line.rstrip() for line in lines)]) + "\n"


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def as_page(title: str, shown: Iterable[Table]) -> str:
    """Return tables as one HTML page that asks no host for anything."""
    body = "".join(f"<h2>{escape(table.title)}</h2>{_html(table)}" for table in shown)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>\n'


def _html(table: Table) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in table.rows)
    return f"<table><tr>{header}</tr>{rows}</table>"


def _cells(row: Sequence[Any]) -> str:
    number = ' class="number"'
    return "".join(f"<td{number if isinstance(v, int | float) else ''}>{escape(_shown(v))}</td>" for v in row)


def write_report(directory: Path, db: Database, title: str) -> Path:
    """Write `report.txt` and `report.html` for a crawl's database into a directory; return the page."""
    shown = tables(db)
    atomic_write(directory / "report.txt", "\n".join(map(as_text, shown)))
    atomic_write(directory / "report.html", as_page(title, shown))
    return directory / "report.html"
