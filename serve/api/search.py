"""`/api/v1/search`: ranked images of a question, as the page shows them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast, get_args

from flask import Response, abort, current_app, request

from configs.artifacts import ArtifactError
from serve.api.errors import RefusedPicture
from serve.api.parameters import Parameter, choice, several, share, text, whole
from serve.api.replies import cursor_of, offset_of, reply, unchanged
from serve.api.request_values import MAX_QUERY_CHARS, MAX_UPLOAD_BYTES, current_searcher, refuse_foreign_origin
from serve.api.resource import Resource, Sent
from serve.api.shapes import SearchAnswer
from serve.pictures import encode
from serve.searchers.base import Answer, Hit, Question, Searcher, Sort

PAGE_SIZE = 40
MAX_LIMIT = 200

Q = text(
    "q",
    'A query: `dog beach` (all), `dog OR cat`, `-car` (not), brackets, `"traffic light"`, `bird*`.',
    MAX_QUERY_CHARS,
    format="tag-query",
    example="dog -car",
)
LIKE = text("like", "image_id of a picture that results are to be like.", 16, "[0-9a-f]{16}", format="image-id")
PICTURE = text(
    "picture", "`picture` of an answer to a picture that was sent, to go on with it.", 4096, "[0-9A-Za-z_-]+",
    format="picture",
)  # fmt: skip
SORT = choice("sort", "Order of the matches.", get_args(Sort))
CUTOFF = share("cutoff", "Least share of right results, by the calibrated score; 0 shows all.")
LICENCE = several("licence", "A licence that results may have; any of those given.", 200)
KIND = several("kind", "A kind of picture; any of those given.", 200)
LIMIT = whole("limit", "Most hits of a page.", PAGE_SIZE, 1, MAX_LIMIT)
CURSOR = text("cursor", "`next` of the page before.", 200, format="cursor")
RUN = text("run", "One of the runs served; the first where none is named.", 200, format="run")
REFINED: tuple[Parameter[Any], ...] = (SORT, CUTOFF, LICENCE, KIND)
QUESTION: tuple[Parameter[Any], ...] = (Q, LIKE, PICTURE, *REFINED, LIMIT)
PICTURE_FILE = Sent(
    "The bytes of a picture, of whatever type they are said to be.",
    types=("image/jpeg", "image/png", "image/webp", "application/octet-stream"),
)

bp = Resource("search", __name__, "Ranked images")


@bp.offers("/search", SearchAnswer, *QUESTION, CURSOR, RUN)
def search() -> Response:
    """Rank what answers a question, matches before guesses.

    At least one of `q`, `like` and `picture` must ask for something. A word that is no tag leaves no match, but where
    its meaning is known all pictures are ranked by it, as guesses. A cursor is good for the generation it came from.
    """
    run = RUN.read()
    question = question_of()
    refuse_nothing(question)
    question = replace(question, offset=offset_of(CURSOR.read(), run))
    searcher = current_searcher(run)
    if kept := unchanged(searcher):
        return kept
    answer = searcher.search(question)
    if not (answer.query or question.like or question.picture):
        abort(400, f"q must name at least one tag, got {question.text!r}")
    return reply(search_body(searcher, question, answer), searcher, answer.timing)


@bp.offers(
    "/search",
    SearchAnswer,
    *REFINED,
    LIMIT,
    RUN,
    sent=PICTURE_FILE,
    errors={
        413: "The picture has too many bytes",
        422: "The gate refuses the picture; `code` is the reason",
        503: "Too many pictures at once, or no encoder",
    },
)
def search_by_picture() -> Response:
    """Rank all images by how like they are to a picture that is sent.

    The picture passes the gate of the collection and is not kept; `picture` of the answer stands for it in further
    searches.
    """
    refuse_foreign_origin()
    question = question_of()
    searcher = current_searcher(RUN.read())
    encoded, encode_ms = embedding_of(uploaded(), searcher)
    question = replace(question, picture=encoded)
    answer = searcher.search(question)
    response = reply(search_body(searcher, question, answer), timing={"encode": encode_ms, **answer.timing})
    return response


def uploaded() -> bytes:
    """Return the body of this request; 413 where it is too large, whatever it says of its length."""
    request.max_content_length = MAX_UPLOAD_BYTES
    content = request.stream.read(MAX_UPLOAD_BYTES + 1)
    if len(content) > MAX_UPLOAD_BYTES:
        abort(413, f"a picture may have {MAX_UPLOAD_BYTES // 2**20} MiB")
    return content


def embedding_of(content: bytes, searcher: Searcher) -> tuple[str, float]:
    """Return a picture's embedding as addresses write it, and the milliseconds it took; 422 where it is refused."""
    encoders = current_app.extensions.get("encoders")
    if encoders is None:
        abort(503, "This server has no encoder for pictures")
    start = time.perf_counter()
    with encoders.queue.turn():
        verdict = encoders.ingest(content)
        if not hasattr(verdict, "jpeg"):
            raise RefusedPicture(str(verdict.reason), f"The picture is refused: {verdict.detail or verdict.reason}")
        try:
            encoder = encoders.of(searcher)
        except ArtifactError as error:
            current_app.logger.error("no search by picture: %s", error)
            abort(503, "Pictures cannot be looked at here at the moment")
        embedding = encoder.embedding(verdict.jpeg)
    return encode(embedding), (time.perf_counter() - start) * 1e3


def refuse_nothing(question: Question) -> None:
    """Answer 400 where a question asks for nothing."""
    if not (question.text.strip() or question.like or question.picture):
        abort(400, "q, like or picture must ask for something, got nothing")


def question_of() -> Question:
    """Return what the address of this request asks."""
    return Question(
        text=Q.read(),
        like=LIKE.read(),
        picture=PICTURE.read(),
        sort=cast(Sort, SORT.read()),
        cutoff=CUTOFF.read(),
        licences=LICENCE.read(),
        kinds=KIND.read(),
        limit=LIMIT.read(),
    )


def search_body(searcher: Searcher, question: Question, answer: Answer) -> dict[str, Any]:
    """Return a `SearchAnswer` as plain values, which are written faster than dataclasses are made."""
    root, end = request.script_root, answer.offset + len(answer.hits)
    more = answer.hits and end < answer.num_shown + answer.num_guesses
    return {
        "run": searcher.run,
        "generation": searcher.generation,
        "query": answer.query,
        "picture": question.picture,
        "tags": answer.tags,
        "clauses": answer.clauses,
        "blame": answer.blame,
        "unknown": answer.unknown,
        "num_matches": answer.num_matches,
        "num_shown": answer.num_shown,
        "num_guesses": answer.num_guesses,
        "offset": answer.offset,
        "hits": [hit_object(hit, root) for hit in answer.hits],
        "licences": answer.licences,
        "kinds": answer.kinds,
        "exact": answer.exact,
        "voted": answer.voted,
        "next": cursor_of(searcher, end) if more else None,
    }


def hit_object(hit: Hit, root: str) -> dict[str, Any]:
    """Return a `FoundImage` as plain values, below the app's `root`; `url_for` would take longer than the search."""
    return {**vars(hit), "jpeg": f"{root}/images/{hit.image_id}.jpg", "page": f"{root}/image/{hit.image_id}"}
