"""Who says something: a random number in a cookie, told to no other site, so that a person counts once."""

from __future__ import annotations

import re
import secrets

from flask import Response, g, request

RATER_COOKIE = "rater"
YEAR_S = 365 * 24 * 3600


def rater() -> str:
    """Return this browser's number, a new one where it has none yet."""
    if "rater" not in g:
        known = request.cookies.get(RATER_COOKIE, "")
        g.rater = known if re.fullmatch("[0-9a-f]{32}", known) else secrets.token_hex(16)
        g.rater_is_new = g.rater != known
    return str(g.rater)


def remember(response: Response) -> Response:
    """Set the cookie where a view asked for a number that is new."""
    if g.get("rater_is_new"):
        response.set_cookie(
            RATER_COOKIE, g.rater, max_age=YEAR_S, httponly=True, samesite="Strict", secure=request.is_secure
        )
    return response
