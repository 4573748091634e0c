"""The OpenAPI document against the app, by schemathesis: every answer as documented, every wrong request refused."""

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from configs.compose import Paths
from serve.app import create_app
from serve.pictures import encode
from tests.stub_searcher import TAGS, StubSearcher, image_id_of
from tests.test_api import Backwards, Encoders, cursor_to

# What JSON Schema cannot say of a value, by the format that the document gives it.
KNOWN = {
    "tag-query": st.lists(st.sampled_from(TAGS[:3]), min_size=1, max_size=3)
    .map('"{}"'.format)
    .map(lambda text: text.replace("['", "").replace("']", "").replace("', '", '" "')),
    "image-id": st.sampled_from([image_id_of(row) for row in range(4)] + ["0" * 16]),
    "picture": st.just(encode(np.eye(8)[0])),
    "run": st.sampled_from(["stub", "backwards"]),
    "runs": st.sampled_from(["stub,backwards", "backwards,stub"]),
    "cursor": st.integers(0, 200).map(lambda offset: cursor_to("stub-0001", offset)),
}
for name, strategy in KNOWN.items():
    schemathesis.openapi.format(name, strategy)
for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.binary(max_size=50).map(lambda rest: b"\xff\xd8" + rest))


ASKING = ("/api/v1/search", "/api/v1/compare")


def app_at(root):
    served = {"stub": StubSearcher, "backwards": lambda: Backwards("backwards", generation="stub-0001")}
    app = create_app(served, Paths(f"{root}/data", f"{root}/runs"))
    app.extensions["encoders"] = Encoders()
    return app


def operations():
    document = app_at("").test_client().get("/api/v1/openapi.json").get_json()
    return [(path, method) for path, found in document["paths"].items() for method in found.keys() - {"parameters"}]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), sorted(operations()))
def test_the_app_does_what_its_document_says(tmp_path, path, method, mode):
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app_at(tmp_path))
    operation = schema[path][method.upper()]
    if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
        return  # there is nothing to get wrong

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=30,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        asked = case.query if isinstance(case.query, dict) else {}
        # What OpenAPI cannot say: one of three must ask for something.
        assume(method == "post" or path not in ASKING or any(asked.get(name) for name in ("q", "like", "picture")))
        case.call_and_validate()

    check()
