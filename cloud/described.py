"""The infer endpoints in the OpenAPI document. FastAPI does not route them, so it cannot know them."""

from __future__ import annotations

from typing import Any

from harmony.cloud.request import Document

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "not what the protocol or the model wants",
    "401": "no key, or a wrong one",
    "403": "a key without the scope",
    "404": "no such model or version",
    "408": "the body did not arrive in time",
    "409": "another cut contract",
    "413": "too large",
    "415": "another Content-Encoding",
    "429": "the key's rate or requests under way; Retry-After",
    "503": "overloaded, or stopping; Retry-After",
    "504": "the request's timeout passed",
}


def with_infer(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, and in it the two infer paths."""
    schema = Document.model_json_schema(ref_template=_REF)
    parts = schema.pop("$defs")
    document["components"]["schemas"] |= parts | {"InferRequest": schema}
    for version in (False, True):
        names = ("model", "version") if version else ("model",)
        path = "/v2/models/{model}" + ("/versions/{version}" if version else "")
        document["paths"][f"{path}/infer"] = {"post": _operation(names)}
    return document


def _operation(names: tuple[str, ...]) -> dict[str, Any]:
    failure = {"application/json": {"schema": {"$ref": _REF.format(model="Failure")}}}
    return {
        "tags": ["infer"],
        "summary": "Infer",
        "description": "Features in, class probabilities out; JSON, or JSON with binary tensors: docs/serving.md.",
        "operationId": f"infer_{'_'.join(names)}",
        "security": [{"HTTPBearer": []}],
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="InferRequest")}}},
        },
        "responses": {
            "200": {"description": "The outputs", "content": {"application/json": {"schema": {"type": "object"}}}},
            **{status: {"description": text, "content": failure} for status, text in _ERRORS.items()},
        },
    }
