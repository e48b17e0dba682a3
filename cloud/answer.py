"""An infer answer of the Open Inference Protocol v2: status, headers and body."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

from harmony.cloud.outputs import PROBABILITIES, Floats, Wanted, compute, to_bytes, to_list
from harmony.cloud.refusal import Header, Refusal
from harmony.cloud.request import Plan

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_WORTH_COMPRESSING = 1024  # bytes; less fits into one packet either way
_CODING = re.compile(rb"^\s*(gzip|deflate|\*)\s*(?:;\s*q=([01](?:\.\d{0,3})?)\s*)?$", re.IGNORECASE)


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


def refused(refusal: Refusal) -> Answer:
    """A refusal as the protocol's error."""
    body = refusal.body()
    return Answer(refusal.status, (_JSON, (b"content-length", b"%d" % len(body)), *refusal.headers), body)


def answered(model: str, version: str, request: Plan, probabilities: Floats) -> Answer:
    """An answer. probabilities: (n, tokens). Each output is binary or JSON, as the request wants it."""
    if request.outputs in _PLAIN:  # what nearly everybody asks
        blob = to_bytes(compute(request.outputs[0], probabilities, None))
        text = _plain_text(model, version, probabilities.shape)
    else:
        text, blob = _outputs_text(model, version, request, probabilities)
    if request.id is not None:
        text = b'{"id":%b,%b' % (json.dumps(request.id).encode(), text[1:])
    if not any(output.binary for output in request.outputs):
        return Answer(200, (_JSON, (b"content-length", b"%d" % len(text))), text)
    return Answer(200, _binary_headers(len(text), len(text) + len(blob)), text + blob)


_PLAIN = ((Wanted(PROBABILITIES, binary=True),),)


@lru_cache(maxsize=1024)
def _plain_text(model: str, version: str, shape: tuple[int, int]) -> bytes:
    rows, tokens = shape
    output = _binary_output(PROBABILITIES, "FP32", shape, 4 * rows * tokens)
    return _document(model, version, [output])


@lru_cache(maxsize=1024)
def _binary_headers(text: int, whole: int) -> tuple[Header, ...]:
    return _BINARY, (b"inference-header-content-length", b"%d" % text), (b"content-length", b"%d" % whole)


def _outputs_text(model: str, version: str, request: Plan, probabilities: Floats) -> tuple[bytes, bytes]:
    """The JSON part, and the binary tensors in its order."""
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in request.outputs:
        computed = compute(wanted, probabilities, request.own)
        if wanted.binary:
            blobs.append(to_bytes(computed))
            described.append(_binary_output(wanted.name, computed.datatype, computed.shape, len(blobs[-1])))
        else:
            form = {"name": wanted.name, "datatype": computed.datatype, "shape": computed.shape}
            described.append(form | {"data": to_list(computed)})
    return _document(model, version, described), b"".join(blobs)


def _binary_output(name: str, datatype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def _document(model: str, version: str, outputs: list[dict[str, Any]]) -> bytes:
    document = {"model_name": model, "model_version": version, "outputs": outputs}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def wanted_coding(accept_encoding: bytes | None) -> bytes | None:
    """gzip or deflate, whichever the caller likes better; None if it takes neither."""
    best, quality = None, 0.0
    for part in (accept_encoding or b"")[:200].split(b","):
        if (found := _CODING.match(part)) is None:
            continue
        weight = float(found[2]) if found[2] else 1.0
        if weight > quality:
            best, quality = (b"gzip" if found[1] == b"*" else found[1].lower()), weight
    return best


def compressed(answer: Answer, coding: bytes) -> Answer:
    """The answer in gzip or deflate, if it is long enough to gain from it."""
    if len(answer.body) < _WORTH_COMPRESSING:
        return answer
    body = gzip.compress(answer.body, 1, mtime=0) if coding == b"gzip" else zlib.compress(answer.body, 1)
    kept = tuple(header for header in answer.headers if header[0] != b"content-length")
    added = ((b"content-encoding", coding), (b"vary", b"accept-encoding"), (b"content-length", b"%d" % len(body)))
    return Answer(answer.status, kept + added, body)
