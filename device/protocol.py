"""The Open Inference Protocol v2 as a device speaks it: one feature frame out, one row of probabilities back."""

from __future__ import annotations

import json
import struct
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import CloudAnswerInvalid, ContractMismatch
from harmony.core.spec import FeatureSpec

Floats = NDArray[np.float32]
HEADER_LENGTH = "inference-header-content-length"
MAX_JSON_BYTES = 64 << 10
_SUM_TOLERANCE = 1e-3


class InferRequests:
    """Bodies for one model; all of the JSON but the frame's size is written once."""

    def __init__(self, cut: FeatureSpec) -> None:
        marker = 987654321
        text = json.dumps(
            {
                "inputs": [
                    {
                        "name": "feature_frame",
                        "shape": [1],
                        "datatype": "BYTES",
                        "parameters": {"binary_data_size": marker},
                    }
                ],
                "parameters": {"cut": str(cut)},
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
            },
            separators=(",", ":"),
        )
        self._before, self._after = (part.encode() for part in text.split(str(marker)))

    def body(self, frame: bytes) -> tuple[int, bytes]:
        """Bytes of the JSON part, and the whole body. A BYTES element carries its length before it."""
        header = b"%b%d%b" % (self._before, 4 + len(frame), self._after)
        return len(header), header + struct.pack("<I", len(frame)) + frame


def max_answer_bytes(tokens: int) -> int:
    """More than any honest answer has."""
    return MAX_JSON_BYTES + 4 * tokens


def read_probabilities(body: bytes, header_length: str | None, tokens: int, where: str) -> Floats:
    """The probabilities (tokens,) of an infer answer; CloudAnswerInvalid if they are not that."""
    if header_length is None or not _is_number(header_length):
        _invalid("has no Inference-Header-Content-Length, so no binary tensor", where)
    size = int(header_length)
    output = _only_output(_parse(body[:size], where), where)
    if output.get("datatype") != "FP32" or output.get("shape") != [1, tokens]:
        _invalid(f"has {output.get('datatype')} {output.get('shape')}, not FP32 [1, {tokens}]", where)
    if len(body) - size != 4 * tokens or _parameters(output).get("binary_data_size") != 4 * tokens:
        _invalid(f"carries {len(body) - size} bytes of probabilities, not {4 * tokens}", where)
    values = np.frombuffer(body, "<f4", tokens, size)
    total = float(np.add.reduce(values, dtype=np.float64))
    if not abs(total - 1) <= _SUM_TOLERANCE or not np.minimum.reduce(values) >= 0:  # so that NaN fails
        _invalid(f"has probabilities that are negative, not finite or add up to {total:.4g}", where)
    return values


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def require_contract(body: bytes, cut: FeatureSpec, tokens: int, where: str) -> None:
    """ContractMismatch, naming both sides, unless a model's metadata has this cut and this many tokens."""
    document = _parse(body, where)
    expected = [-1, *cut.shape]
    found = _shape_of(document.get("inputs"), "feature")
    if found != expected:
        raise ContractMismatch(
            f"the cut contract differs: the device has {cut}, the cloud's model takes feature {found}", where=where,
            mend="serve the cloud bundle of the same run",
        )  # fmt: skip
    found = _shape_of(document.get("outputs"), "probabilities")
    if found != [-1, tokens]:
        raise ContractMismatch(
            f"the device knows {tokens} classes, the cloud's model gives probabilities {found}", where=where,
            mend="serve the cloud bundle of the same run",
        )  # fmt: skip


def error_text(body: bytes) -> str:
    """What a service says in {"error": "…"}, on one line and not too long; empty if it says nothing."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    text = document.get("error") if isinstance(document, dict) else None
    return " ".join(text.split())[:300] if isinstance(text, str) else ""


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        _invalid("is not JSON", where)
    if not isinstance(document, dict):
        _invalid("is not a JSON object", where)
    return document


def _only_output(document: dict[str, Any], where: str) -> dict[str, Any]:
    outputs = document.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        _invalid("does not have exactly one output", where)
    output: dict[str, Any] = outputs[0]
    if output.get("name") != "probabilities":
        _invalid("has another output than 'probabilities'", where)
    return output


def _parameters(output: dict[str, Any]) -> dict[str, Any]:
    found = output.get("parameters")
    return found if isinstance(found, dict) else {}


def _shape_of(tensors: object, name: str) -> object:
    for tensor in tensors if isinstance(tensors, list) else []:
        if isinstance(tensor, dict) and tensor.get("name") == name:
            return tensor.get("shape")
    return None


def _invalid(problem: str, where: str) -> NoReturn:
    raise CloudAnswerInvalid(f"the answer {problem}", where=where, mend="is this a HARMONY service?")
