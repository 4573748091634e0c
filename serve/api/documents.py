"""`/api/v1/openapi.json` and `/api/v1/`: what the API offers, for programs and for people."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
from flask import Blueprint, Flask, Response, render_template, request
from flask_smorest import Api

from serve.api import compare, health, images, judgements, runs, search, suggest
from serve.api.shapes import ErrorAnswer, Schemas, schema_of

PREFIX = "/api/v1"
RESOURCES = (search, suggest, images, runs, compare, judgements)
METHODS = ("get", "post")
JPEGS = {
    "/images/{image_id}.jpg": ("The stored picture of an image", []),
    "/thumbnails/{width}/{image_id}.jpg": (
        "A picture at one of a few widths",
        [{"name": "width", "in": "path", "required": True, "schema": {"type": "integer", "enum": [160, 240, 360]}}],
    ),
}
IMAGE_ID = {
    "name": "image_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$", "format": "image-id"},
}

ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorAnswer"}

bp = Blueprint("documents", __name__)


@bp.get("/openapi.json")
def document() -> Response:
    """Send the OpenAPI document."""
    response = Response(api().document, content_type="application/json")
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


@bp.get("/")
def page() -> str:
    """Show the operations with their parameters and answers."""
    spec = orjson.loads(api().document)
    operations = [
        {"path": path, "method": method, **operations[method]}
        for path, operations in spec["paths"].items()
        for method in METHODS
        if method in operations
    ]
    return render_template("api.html", spec=spec, operations=operations)


class TagtowerApi(Api):  # type: ignore[misc] # untyped
    """The API with our errors in place of the library's, and its document written once."""

    ERROR_SCHEMA = ERROR_SCHEMA
    document: bytes

    def _register_error_handlers(self) -> None:
        """Leave errors to `register_errors`."""


def api() -> TagtowerApi:
    """Return the API of this app."""
    from flask import current_app

    found: TagtowerApi = current_app.extensions["api"]
    return found


def register_api(app: Flask) -> None:
    """Hang all resources on an app, and write their document."""
    app.config.update(API_TITLE="Tagtower", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    made = TagtowerApi(app, spec_kwargs={"info": {"description": __doc__.splitlines()[0] if __doc__ else ""}})
    schemas: Schemas = {}
    for shape in (ErrorAnswer, *(shape for module in (*RESOURCES, health) for shape in module.bp.shapes)):
        schema_of(shape, schemas)
    for name, schema in schemas.items():
        made.spec.components.schema(name, schema)
    for module in RESOURCES:
        made.register_blueprint(module.bp, url_prefix=PREFIX)
    made.register_blueprint(health.bp)
    app.register_blueprint(bp, url_prefix=PREFIX)
    spec = made.spec.to_dict()
    for path, (summary, parameters) in JPEGS.items():  # which are pages' files
        spec["paths"][path] = {"get": _jpeg(summary), "parameters": [*parameters, IMAGE_ID]}
    made.document = orjson.dumps(spec)
    app.extensions["api"] = made
    app.extensions["api_version"] = hashlib.sha256(made.document).hexdigest()


def _jpeg(summary: str) -> dict[str, Any]:
    found = {"description": "OK", "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
    missing = {"description": "No such image", "content": {"text/html": {"schema": {"type": "string"}}}}
    return {"summary": summary, "tags": ["images"], "responses": {"200": found, "404": missing, "default": missing}}
