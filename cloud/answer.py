"""An infer answer of the Open Inference Protocol v2: headers and body."""

from __future__ import annotations

import json
from typing import Any

from harmony.cloud.batcher import Floats
from harmony.cloud.refusal import Header
from harmony.cloud.request import OUTPUT, InferRequest

Answer = tuple[tuple[Header, ...], bytes]


def answer(model: str, version: str, request: InferRequest, probabilities: Floats) -> Answer:
    """Headers and body. probabilities: (n, tokens), sent as FP32, binary or JSON as the request wants it."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(probabilities.shape)}
    blob = b""
    if request.binary:
        blob = probabilities.astype("<f4", copy=False).tobytes()
        output["parameters"] = {"binary_data_size": len(blob)}
    else:
        output["data"] = probabilities.ravel().tolist()
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [output]}
    if request.id is not None:
        document["id"] = request.id
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    length = (b"content-length", b"%d" % (len(text) + len(blob)))
    if not request.binary:
        return ((b"content-type", b"application/json"), length), text
    return (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(text)),
        length,
    ), text + blob
