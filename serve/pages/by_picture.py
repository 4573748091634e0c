"""`/by-picture`: search with a picture of one's own."""

from __future__ import annotations

from flask import abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from configs.artifacts import ArtifactError
from crawl.ingest import Accepted, Reason
from serve.api.request_values import current_searcher, refuse_foreign_origin
from serve.encoders import MAX_UPLOAD_BYTES, Encoders
from serve.pages.blueprint import bp
from serve.pictures import encode

# What people are told of a picture that the gate refuses, and what they may do.
REFUSALS = {
    Reason.EMPTY: "That file is empty.",
    Reason.TOO_MANY_BYTES: "That file is too large; a smaller copy will do, 512 pixels are enough.",
    Reason.NOT_AN_IMAGE: "That file is no picture.",
    Reason.UNSUPPORTED_FORMAT: "Pictures of that format are not read here; save it as JPEG or PNG.",
    Reason.TRUNCATED: "The picture ends before its pixels do; copy or download it again.",
    Reason.CORRUPT: "The picture is damaged.",
    Reason.TOO_MANY_PIXELS: "The picture has too many pixels; scale it down.",
    Reason.TOO_SMALL: "The picture is too small to tell what it shows.",
    Reason.EXTREME_ASPECT: "The picture is too long and thin; crop it.",
    Reason.TIMEOUT: "Reading the picture took too long; try again, or scale it down.",
    Reason.OUT_OF_MEMORY: "The picture needs too much memory; scale it down.",
    Reason.CRASHED: "The picture could not be read.",
}


@bp.get("/by-picture")
def by_picture() -> ResponseReturnValue:
    """Show the form to search with a picture."""
    return render_template("by_picture.html", max_upload_mib=MAX_UPLOAD_BYTES // 2**20, refusal="", reason="")


@bp.post("/by-picture")
def search_by_upload() -> ResponseReturnValue:
    """Turn an uploaded picture into a search; the address that follows holds its embedding, and nothing is kept."""
    refuse_foreign_origin()
    request.max_content_length = MAX_UPLOAD_BYTES + 2**16  # what the form itself takes
    run = request.args.get("run", "")
    searcher = current_searcher(run)
    encoders: Encoders = current_app.extensions["encoders"]
    uploaded = request.files.get("picture")
    with encoders.queue.turn():
        verdict = encoders.ingest(uploaded.read() if uploaded else b"")
        if not isinstance(verdict, Accepted):
            nothing = uploaded is None or not uploaded.filename
            sentence = "Choose a picture first." if nothing else REFUSALS[verdict.reason]
            return render_template(
                "by_picture.html",
                max_upload_mib=MAX_UPLOAD_BYTES // 2**20,
                refusal=sentence,
                reason="" if nothing else f"{verdict.reason}: {verdict.detail}",
            ), 422
        try:
            encoder = encoders.of(searcher)
        except ArtifactError as error:
            current_app.logger.error("no search by picture: %s", error)
            abort(503, "Pictures cannot be looked at here at the moment")
        embedding = encoder.embedding(verdict.jpeg)
    return redirect(url_for("pages.search_page", picture=encode(embedding), run=run or None), 303)
