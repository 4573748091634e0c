"""Licences by one code and one name each, whatever an API calls them."""

from __future__ import annotations

import re

_CC_URL = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)(?:/([\d.]+))?", re.I)
_CC_NAME = re.compile(r"\s*cc[ -]?(by(?:[ -](?:nc|nd|sa))*|0|zero)(?![a-z])(?:[ -]([\d.]+))?", re.I)
_OF_CC = {"zero": "cc0", "0": "cc0", "mark": "pdm"}
_ORDER = ("by", "nc", "nd", "sa")  # versions 1.0 had `by-nd-nc`
_OTHERS = (
    (re.compile(r"\s*(public domain|pd(?![a-z]))", re.I), "pdm"),
    (re.compile(r"\s*(gfdl|gnu free documentation)", re.I), "gfdl"),
    (re.compile(r"\s*(fal(?![a-z])|free art licen[cs]e|licence art libre)", re.I), "fal"),
    (re.compile(r"\s*no known copyright restrictions", re.I), "nkc"),
    (re.compile(r"\s*united states government work", re.I), "usgov"),
)


def licence_code(text: str) -> str:
    """Return the code of a licence by its name or address, such as `by-sa`; nothing where it is none we know.

    `pdm` stands for works without rights whatever the reason, `cc0` for those whose author gave them up, `nkc` for no
    known copyright restrictions, `usgov` for works of the United States' government.
    """
    return _code_and_version(text)[0]


def licence_name(text: str) -> str:
    """Return the usual short name of a Creative Commons licence, such as `CC BY-SA 4.0`; of others nothing."""
    code, version = _code_and_version(text)
    if code == "pdm":
        return "Public domain"
    name = {"cc0": "CC0"}.get(code, f"CC {code.upper()}" if code.startswith("by") else "")
    return f"{name} {version}" if name and version else name


def _code_and_version(text: str) -> tuple[str, str]:
    match = _CC_URL.search(text) or _CC_NAME.match(text)
    if not match:
        return next((code for pattern, code in _OTHERS if pattern.match(text)), ""), ""
    words = match.group(1).lower().replace(" ", "-").split("-")
    if set(words) <= set(_ORDER):
        return "-".join(sorted(words, key=_ORDER.index)), match.group(2) or ""
    return _OF_CC.get("-".join(words), ""), match.group(2) or ""
