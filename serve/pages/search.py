"""`/`: the start page, and the results of a search."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from flask import abort, render_template
from flask.typing import ResponseReturnValue

from serve.api.request_values import current_searcher
from serve.metrics import server_timing
from serve.pages.asked import PAGE_SIZE, Asked, asked_argument
from serve.pages.blueprint import bp
from serve.pages.judge import thumbs_of
from serve.query import QueryError, query_for
from serve.searchers.base import Answer, Clause, Hit, NoSuchImage, Question, Searcher, TagCount

NUM_SHELF = 12  # popular tags shown with a picture on the start page
NUM_POPULAR = 40
UNANSWERED = 404  # a word that is no tag, and nothing in its place


@bp.get("/")
def search_page() -> ResponseReturnValue:
    """Show the start page, or results where tags, a picture or both are asked for."""
    asked = asked_argument()
    searcher = current_searcher(asked.run)
    if asked.empty:
        return start_page(searcher)
    try:
        answer = searcher.search(asked.question)
    except NoSuchImage as error:
        abort(404, str(error))
    except QueryError as error:
        if not asked.question.text:
            abort(400, str(error))
        return render_template("misspelt.html", asked=asked, error=error, popular=popular(searcher, NUM_SHELF)), 400
    if not (answer.tags or answer.unknown or answer.clauses or asked.question.like or asked.question.picture):
        return start_page(searcher)  # nothing but blanks and marks
    pages = max(1, -(-(answer.num_shown + answer.num_guesses) // PAGE_SIZE))
    if asked.page > pages:
        abort(404, f"page must lie in 1..{pages} for “{answer.query}”, got {asked.page}")
    like = searcher.details(asked.question.like) if asked.question.like else None
    nothing = not answer.hits and bool(answer.unknown)
    page = render_template(
        "results.html",
        answer=answer,
        asked=asked,
        like=like.hit if like else None,
        pages=pages,
        parts=parts_of(answer),
        plain=is_plain(answer),
        blamed=blamed_clause(answer),
        calibrated=bool(asked.question.cutoff) or any(hit.probability is not None for hit in answer.hits),
        popular=popular(searcher, NUM_SHELF) if not answer.hits else (),
        thumbs=thumbs_of(answer),
    )
    return page, UNANSWERED if nothing else 200, {"Server-Timing": server_timing(answer.timing)}


def parts_of(answer: Answer) -> list[tuple[bool, int, list[Hit]]]:
    """Cut a page of hits into matches and guesses: whether it is guesses, the place of its first, its hits."""
    place, parts = answer.offset + 1, []
    for guess, group in groupby(answer.hits, key=lambda hit: hit.guess):
        hits = list(group)
        parts.append((guess, place, hits))
        place += len(hits)
    return parts


def is_plain(answer: Answer) -> bool:
    """Tell whether a query is tags that must all be there, which reads best as a list of them."""
    written = [query_for([each.tag]) for each in answer.tags]
    return [clause.text for clause in answer.clauses] in (written, []) and not answer.unknown


def blamed_clause(answer: Answer) -> Clause | None:
    """Return the clause that leaves no match."""
    return next((clause for clause in answer.clauses if clause.text == answer.blame), None) if answer.blame else None


def popular(searcher: Searcher, limit: int) -> tuple[TagCount, ...]:
    """Return the most frequent tags."""
    return searcher.browse("", "frequency", 0, limit)[1]


def start_page(searcher: Searcher) -> str:
    """Show the search box, the most frequent tags with a picture each, and the next ones as chips."""
    frequent = popular(searcher, NUM_POPULAR)
    shelf = shelf_of(searcher, frequent[:NUM_SHELF])
    shown = [tag for tag, _ in shelf]
    return render_template(
        "start.html", searcher=searcher, shelf=shelf, popular=[tag for tag in frequent if tag not in shown]
    )


def shelf_of(searcher: Searcher, tags: Iterable[TagCount]) -> list[tuple[TagCount, Hit]]:
    """Pair tags with one of their best pictures each, none of them twice where that can be avoided."""
    shelf: list[tuple[TagCount, Hit]] = []
    for tag in tags:
        hits = searcher.search(Question(query_for([tag.tag]), limit=NUM_SHELF)).hits
        shown = {hit.image_id for _, hit in shelf}
        fresh = [hit for hit in hits if hit.image_id not in shown][:4]
        if hits:
            shelf.append((tag, min(fresh or hits, key=squareness)))
    return shelf


def squareness(hit: Hit) -> float:
    """Return how far a picture is from a square: what the cards of the start page would cut off."""
    return max(hit.width, hit.height) / max(1, min(hit.width, hit.height))


def heading_of(asked: Asked, answer: Answer) -> str:
    """Return the search in a few words, for titles."""
    if answer.query:
        return answer.query
    return "Like a picture" if asked.question.like else "Like your picture"
