"""What a site asks of crawlers: robots.txt, opt-outs in headers and pages, TDM reservations, how long to wait."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from protego import Protego
from w3lib.url import safe_url_string

from crawl.fetch.urls import escaped

MAX_ROBOTS_BYTES = 500 * 2**10  # RFC 9309, 2.5: parsed at least so far
MAX_ROBOTS_HOPS = 5  # RFC 9309, 2.3.1.2: redirects followed at least so often
ROBOTS_AGE_S = 24 * 3600.0  # RFC 9309, 2.4: not used longer
TDM_PATH = "/.well-known/tdmrep.json"
# Directives that keep a picture out, of X-Robots-Tag and meta robots alike.
CLOSING = ("noimageai", "noai", "noimageindex", "noindex", "none")
_ROOT = "http://h/"  # before a pattern, which is no address
_EVERYBODY = ("robots", "")
_GROUP = re.compile(r"(?im)(^|\r)([ \t]*user-?agent[ \t]*:[ \t]*)([a-z_-]*)(?:(?<=[a-z_-])[^#\r\n]*)?")  # of robots.txt
_AGENT = re.compile(r"([A-Za-z][\w-]*)\s*:\s*(.*)", re.S)
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # not names of agents


@dataclass
class Site:
    """What one origin asks of us."""

    robots: Protego | None = None  # None: nothing is forbidden
    closed: str = ""  # robots.txt is out of order, so everything is forbidden: the kind of failure
    delay_s: float = 0.0  # crawl-delay
    asked_at: float = 0.0  # seconds since 1970
    num_bytes: int = 0  # of robots.txt; what it is parsed into takes tens of times as much
    sitemaps: tuple[str, ...] = ()
    reservations: list[tuple[re.Pattern[str], bool]] = field(default_factory=list)  # of tdmrep.json, first match counts

    def forbids(self, url: str, agent: str) -> str:
        """Return the reason why an address is not asked for, or nothing."""
        if self.closed:
            return self.closed
        if self.robots is not None and not self.robots.can_fetch(url, agent):
            return "robots"
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        for pattern, reserved in self.reservations:
            if pattern.match(path):
                return "tdm_reserved" if reserved else ""
        return ""


def read_site(status: int, robots: bytes, tdm: bytes, agent: str) -> Site:
    """Make a policy of what a site answered.

    Args:
        status: of robots.txt; 0 where there was no answer. 2xx counts, 4xx means that there are no rules, anything
            else (429, too, which says nothing about rules) closes the site.
        robots: body of robots.txt; without an answer the kind of failure.
        tdm: body of tdmrep.json, empty where there is none.
        agent: our product name.
    """
    site = Site(reservations=read_reservations(tdm))
    if 200 <= status < 300:
        text = robots[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace")
        site.robots = Protego.parse(_GROUP.sub(lambda match: _group_line(match, agent), text))
        rate = site.robots.request_rate(agent)
        site.delay_s = max(site.robots.crawl_delay(agent) or 0.0, rate.seconds / rate.requests if rate else 0.0)
        site.sitemaps = tuple(site.robots.sitemaps)
    elif not 400 <= status < 500 or status == 429:
        site.closed = (robots.decode() if status == 0 else "") or "robots_unreachable"
    return site


def _group_line(match: re.Match[str], agent: str) -> str:
    """Name a group as Protego compares it, which takes `tag` and misses `tagtower/1.0` where `tagtower` is asked for.

    RFC 9309, 2.2.1: the product token alone counts, and it counts whole.
    """
    start, name, token = match.groups()
    if not token:  # all agents, `*`
        return match.group()
    return f"{start}{name}{agent if token.lower() == agent.lower() else 'not-' + agent}"


def read_reservations(text: bytes) -> list[tuple[re.Pattern[str], bool]]:
    """Read tdmrep.json: patterns of paths in order, and whether they are reserved. What cannot be read says nothing.

    TDM Reservation Protocol (report of the W3C community group, 2024), section "TDM File on the Origin Server": "The
    most specific match found MUST be used. The most specific match is the first in sequence." So the first one counts,
    unlike in robots.txt. A value other than 0 and 1 sets nothing (section "tdm-reservation"); no later rule is asked.
    """
    try:
        rules = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    rules = rules if isinstance(rules, list) else [rules]
    return [
        (_path_pattern(rule["location"]), str(rule.get("tdm-reservation")) == "1")
        for rule in rules
        if isinstance(rule, dict) and isinstance(rule.get("location"), str)
    ]


def _path_pattern(location: str) -> re.Pattern[str]:
    """Translate a pattern as robots.txt has them: `*` is anything, `$` the end, otherwise a prefix.

    Escapes are those of canonical addresses, so that they mean the same. `%24` and `%2A` stand for these characters
    themselves (section "Use of regular expressions"). What lies between two `*` is taken where it comes first, for
    good: tried at every place it would take for ever on a file that wants it to.
    """
    text = escaped(safe_url_string(_ROOT + location).removeprefix(_ROOT))
    body, end = (text[:-1], r"\Z") if text.endswith("$") else (text, "")
    first, *pieces = (_literally(piece) for piece in re.sub(r"\*+", "*", body).split("*"))
    last = [f".*{pieces.pop()}{end}"] if end and pieces else [end]
    return re.compile("".join([first, *(f"(?>.*?{piece})" for piece in pieces), *last]))


def _literally(text: str) -> str:
    return re.escape(text).replace("%24", r"(?:\$|%24)").replace("%2A", r"(?:\*|%2A)")


def opted_out(directives: Iterable[tuple[str, str]], agent: str) -> str:
    """Return the first directive that keeps pictures out, or nothing.

    Args:
        directives: name of the agent meant (`robots` or nothing: all) and what it is told, with commas.
        agent: our product name.
    """
    told: set[str] = set()
    for name, text in directives:
        if name.lower() in (*_EVERYBODY, agent.lower()):
            told.update(word.strip().lower() for word in text.split(","))
    return next((word for word in CLOSING if word in told), "")


def forbids_following(directives: Iterable[tuple[str, str]], agent: str) -> bool:
    """Say whether a page asks that its links are not followed."""
    meant = [text for name, text in directives if name.lower() in (*_EVERYBODY, agent.lower())]
    return bool({"nofollow", "none"} & {word.strip().lower() for text in meant for word in text.split(",")})


def robots_tags(values: Sequence[str]) -> list[tuple[str, str]]:
    """Split X-Robots-Tag headers into agent and directives; a name holds until the next one in the same header."""
    found: list[tuple[str, str]] = []
    for value in values:
        agent = ""
        for part in value.split(","):
            named = _AGENT.fullmatch(part.strip())
            if named and named.group(1).lower() not in _VALUED:
                agent, part = named.group(1), named.group(2)
            found.append((agent, part.strip()))
    return found


def reservation(values: Iterable[str]) -> bool | None:
    """Return whether values of tdm-reservation reserve something or leave it free; None where they set nothing."""
    told = {value.strip() for value in values}
    return True if "1" in told else False if "0" in told else None


def header_opt_out(headers: Mapping[str, Sequence[str]], agent: str, within: bool | None = None) -> str:
    """Return why headers keep a picture or a page out, or nothing.

    TDM Reservation Protocol, section "Processing priority": a header supersedes tdmrep.json, and what stands in a page
    its header. We are more cautious with tdmrep.json: what it reserves is never asked for, whatever a header would say.

    Args:
        headers: lower-case name -> values.
        agent: our product name.
        within: whether the page itself says that it is reserved, None where it says nothing.
    """
    if (directive := opted_out(robots_tags(headers.get("x-robots-tag", ())), agent)) != "":
        return directive
    reserved = within if within is not None else reservation(headers.get("tdm-reservation", ()))
    return "tdm_reserved" if reserved else ""


def header_nofollow(headers: Mapping[str, Sequence[str]], agent: str) -> bool:
    """Say whether headers ask that the links of a page are not followed.

    Args:
        headers: lower-case name -> values.
        agent: our product name.
    """
    return forbids_following(robots_tags(headers.get("x-robots-tag", ())), agent)


def retry_after_s(value: str, now: float) -> float | None:
    """Read Retry-After, seconds or a date; None where it is neither.

    Args:
        value: of the header.
        now: seconds since 1970.
    """
    text = value.strip()
    if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text):
        return float(text)
    try:
        moment: Any = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, float((moment - datetime.fromtimestamp(now, UTC)).total_seconds()))
