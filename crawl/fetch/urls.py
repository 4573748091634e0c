"""URLs as the crawl knows them: one spelling each, what is wrong with them, and the pattern they follow."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from w3lib.url import safe_url_string

from crawl.fetch.addresses import SCHEMES

MAX_URL_CHARS = 2083  # longer ones are refused by servers, too
MAX_SEGMENTS = 20  # of a path, and
MAX_REPEATS = 2  # of one segment in it: a link relative to itself never ends (both after Heritrix)
_HOST_CHARS = 253
_KEPT_CHARS = 200  # of an address that is none
_SESSIONS = re.compile(r"(jsession|php?sess|asp\.net_session|sess(ion)?_?)(id)?|sid|s?cid|cftoken|osCsid|zenid", re.I)
_PATH_SESSION = re.compile(r";(jsessionid|sid|phpsessid)=[^/?#;]*", re.I)
_VARYING = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b|\d+", re.I)
_BLANKS = re.compile(r"[\t\r\n]")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")  # of a host, or an IPv4 address
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


class BadUrl(Exception):
    """An address that is never asked for.

    The reason is one of scheme, credentials, malformed_url, url_too_long, path_too_deep and path_repeats.
    """

    def __init__(self, reason: str, url: str) -> None:
        super().__init__(reason, url)
        self.reason = reason
        self.url = url


def canonical(url: str, base: str = "") -> str:
    """Return the one spelling of an address: absolute, without fragment, session id and default port.

    Segments `.` and `..`, backslashes and escapes are resolved as browsers and servers do (RFC 3986, 6.2.2), before
    any rule of a site looks at the path: `/open/../private` is private.

    Raises:
        BadUrl: for what is not asked for at all.
    """
    text = _BLANKS.sub("", url).strip()
    try:
        is_credited = "@" in urlsplit(text).netloc  # by who takes a backslash for a part of a name
        text = urljoin(base, _slashed(text)) if base else _slashed(text)
        parts = urlsplit(text)
        if parts.scheme.lower() not in SCHEMES:
            raise BadUrl("scheme", text[:_KEPT_CHARS])
        if len(text) > MAX_URL_CHARS:
            raise BadUrl("url_too_long", text[:_KEPT_CHARS])
        if is_credited or parts.username is not None or parts.password is not None:
            raise BadUrl("credentials", f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:_KEPT_CHARS])
        parts = urlsplit(safe_url_string(text))
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise BadUrl("malformed_url", text[:_KEPT_CHARS]) from None
    if port == 0 or not _is_host(host):
        raise BadUrl("malformed_url", text[:_KEPT_CHARS])
    scheme = parts.scheme.lower()
    path = _plain_path(escaped(parts.path), text)
    netloc = f"[{host}]" if ":" in host else host
    netloc += "" if port in (None, SCHEMES[scheme]) else f":{port}"
    return urlunsplit((scheme, netloc, path, _without_session(escaped(parts.query)), ""))


def _slashed(text: str) -> str:
    """Turn backslashes into slashes, but for those of a query."""
    end = min((place for mark in "?#" if (place := text.find(mark)) >= 0), default=len(text))
    return text[:end].replace("\\", "/") + text[end:]


def _is_host(host: str) -> bool:
    if ":" not in host:
        return len(host) <= _HOST_CHARS and _NAME.fullmatch(host) is not None
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def escaped(text: str) -> str:
    """Undo escapes that nobody needs, and write the others in capitals."""
    return _ESCAPE.sub(lambda escape: _plain(chr(int(escape.group(1), 16))) or escape.group().upper(), text)


def _plain(character: str) -> str:
    return character if _UNRESERVED.fullmatch(character) else ""


def _plain_path(path: str, url: str) -> str:
    path = _without_dots(_PATH_SESSION.sub("", path) or "/")
    segments = [segment for segment in path.split("/") if segment]
    if len(segments) > MAX_SEGMENTS:
        raise BadUrl("path_too_deep", url[:_KEPT_CHARS])
    if any(segments.count(segment) > MAX_REPEATS for segment in set(segments)):
        raise BadUrl("path_repeats", url[:_KEPT_CHARS])
    return path


def _without_dots(path: str) -> str:
    """Resolve `.` and `..` in an absolute path (RFC 3986, 5.2.4)."""
    segments = path.split("/")
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    return "/".join([*kept, ""] if segments[-1] in (".", "..") else kept)


def _without_session(query: str) -> str:
    if not any(_SESSIONS.fullmatch(pair.partition("=")[0]) for pair in query.split("&")):
        return query  # as it is written: servers may care
    return "&".join(pair for pair in query.split("&") if not _SESSIONS.fullmatch(pair.partition("=")[0]))


def host_of(url: str) -> str:
    """Return the host of a canonical address, which shares one gap whatever the port."""
    return urlsplit(url).hostname or ""


def port_of(url: str) -> int:
    """Return the port of a canonical address."""
    parts = urlsplit(url)
    return parts.port or SCHEMES[parts.scheme]


def origin_of(url: str) -> str:
    """Return scheme, host and port, for which one robots.txt holds."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def pattern_of(url: str) -> str:
    """Return what stays of an address when numbers and hashes go: calendars and page numbers share one."""
    parts = urlsplit(url)
    keys = sorted({key for key, _ in parse_qsl(parts.query, keep_blank_values=True)})
    return _VARYING.sub("#", parts.path) + (f"?{urlencode([(key, '') for key in keys])}" if keys else "")
