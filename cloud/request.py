"""An infer body of the Open Inference Protocol v2, read and checked: no tensor is allocated before its size is known.

    header absent                            the body is JSON, tensors lie in it as `data`
    Inference-Header-Content-Length: N       N bytes of JSON, then the binary tensors in the order of `inputs`

Two ways in, each a batch of n samples of the model's cut (C, H, W):

    feature        FP32 or FP16 [n, C, H, W]     values, little-endian, C order
    feature_frame  BYTES [n]                     frames of harmony.core.wire; in JSON, base64 of each

Callers send the same JSON again and again: what it means is looked up, and only the bytes after it are new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from harmony.cloud.metrics import EXITS
from harmony.cloud.outputs import OWN_MASS, PROBABILITIES, Wanted, checked_own_tokens
from harmony.cloud.refusal import Refusal, malformed, too_large
from harmony.cloud.tensors import DTYPES, FEATURE, FRAME, Load, binary_values, frames, json_values
from harmony.core.spec import FeatureSpec

_REMEMBERED_TEXTS, _REMEMBERED_BYTES = 512, 2048
_REMEMBERED_PLANS = 4  # of one text; more models than that seldom get the same
_MAX_OWN_TOKENS = 4096
_LONGEST_COUNT = 10  # digits


class _Part(BaseModel):
    """Unknown fields are ignored, as the protocol wants; known ones are checked without coercion."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _TensorParameters(_Part):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0
    shared_memory_region: Any = None
    shared_memory_byte_size: Any = None
    shared_memory_offset: Any = None

    def refuse_shared_memory(self) -> None:
        for name in ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"):
            if getattr(self, name) is not None:
                raise malformed(f"{name}: shared memory is not offered; send the tensor in the body")


class _Input(_Part):
    name: Annotated[str, Field(max_length=256)]
    datatype: Annotated[str, Field(max_length=16)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 31)]], Field(min_length=1, max_length=8), FailFast()]
    parameters: _TensorParameters = _TensorParameters()
    data: Any = None


class _Output(_Part):
    name: Annotated[str, Field(max_length=256)]
    parameters: _TensorParameters = _TensorParameters()


_OwnTokens = Annotated[list[int], Field(max_length=_MAX_OWN_TOKENS)]


class _Parameters(_Part):
    binary_data_output: bool = False
    cut: Annotated[str, Field(max_length=64)] | None = None
    timeout: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    priority: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    own_tokens: _OwnTokens | Annotated[str, Field(max_length=8 * _MAX_OWN_TOKENS)] | None = None


class Document(_Part):
    """The JSON part of an infer request."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: _Parameters = _Parameters()
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=1), FailFast()]
    outputs: Annotated[list[_Output], Field(max_length=2), FailFast()] = []


@dataclass(frozen=True, eq=False)
class Expected:
    """What a model takes, and within which limits."""

    name: str
    feature: FeatureSpec
    tokens: int
    max_batch: int
    max_json_bytes: int

    @cached_property
    def cut(self) -> str:
        """The cut contract as callers write it."""
        return str(self.feature)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the JSON part asks of one model, checked.

    size: bytes of the tensor's values; own: the caller's own tokens; timeout_us, priority: 0 for none.
    """

    id: str | None
    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    declared: int
    data: Any
    outputs: tuple[Wanted, ...]
    own: tuple[int, ...] | None
    timeout_us: int
    priority: int

    @property
    def rows(self) -> int:
        """Samples."""
        return self.shape[0]


class Header:
    """The JSON part of a request. cut: the caller's cut contract, if it says so."""

    __slots__ = ("_document", "_plans", "cut")

    def __init__(self, document: Document) -> None:
        self._document = document
        self._plans: dict[Expected, Plan] = {}
        self.cut = document.parameters.cut

    def plan(self, expected: Expected) -> Plan:
        """What it asks of a model. Refusal 400 if that is not what the model wants, 409 for another cut."""
        plan = self._plans.get(expected)
        if plan is None:
            plan = _plan(self._document, expected)
            if len(self._plans) >= _REMEMBERED_PLANS:
                self._plans.clear()
            self._plans[expected] = plan
        return plan


def read_header(body: bytes | bytearray, header_length: bytes | None, max_json_bytes: int) -> tuple[Header, memoryview]:
    """The JSON part and the bytes after it. Refusal 400 if it is not the protocol's, 413 if it is too large."""
    size = _json_size(body, header_length)
    if size > max_json_bytes:
        raise too_large(max_json_bytes, "the JSON part")
    read = _remembered if header_length is not None and size <= _REMEMBERED_BYTES else _read
    whole = memoryview(body)
    return read(bytes(whole[:size])), whole[size:]


def told_exits(header: bytes | None) -> tuple[int, ...]:
    """Harmony-Exits: how many samples the device answered itself since it last said so, at each exit: `12,3`."""
    if header is None:
        return ()
    counts = header.replace(b" ", b"").split(b",")
    if len(counts) != len(EXITS) or not all(one.isdigit() and len(one) < _LONGEST_COUNT for one in counts):
        raise malformed(f"Harmony-Exits holds {len(EXITS)} numbers with a comma, as in '12,3'")
    return tuple(int(one) for one in counts)


def load_of(plan: Plan, blob: memoryview, expected: Expected) -> Load:
    """Writes the request's rows into a batch. Refusal 400 for bytes that are not what the plan declares."""
    if plan.declared != len(blob):
        raise malformed(f"{len(blob)} bytes follow the JSON, the inputs declare {plan.declared}")
    if plan.name == FRAME:
        return frames(plan.data, blob, plan.rows, expected.feature)
    if plan.data is not None:
        return json_values(plan.data, plan.shape)
    return binary_values(blob, plan.shape, DTYPES[plan.datatype], plan.size)


def _json_size(body: bytes | bytearray, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isdigit() or len(header_length) > 19 or int(header_length) > len(body):
        raise malformed(f"Inference-Header-Content-Length must be a number of at most {len(body)}, the body's bytes")
    return int(header_length)


def _read(text: bytes) -> Header:
    try:
        return Header(Document.model_validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        raise malformed(f"{field}: {first['msg']}" if field else first["msg"]) from None


_remembered = lru_cache(maxsize=_REMEMBERED_TEXTS)(_read)


def _plan(document: Document, expected: Expected) -> Plan:
    tensor, parameters = document.inputs[0], document.parameters
    if parameters.cut not in (None, expected.cut):
        raise _other_cut(expected, f"the caller has {parameters.cut}")
    _check_tensor(tensor, expected)
    tensor.parameters.refuse_shared_memory()
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise malformed(f"'{tensor.name}' needs either data or parameters.binary_data_size")
    own = None if parameters.own_tokens is None else checked_own_tokens(parameters.own_tokens, expected.tokens)
    item = DTYPES[tensor.datatype].itemsize if tensor.name == FEATURE else 1
    return Plan(
        id=document.id,
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tuple(tensor.shape),
        size=item * math.prod(tensor.shape),  # the shape is the model's by now
        declared=size or 0,
        data=tensor.data,
        outputs=_wanted(document, own),
        own=own,
        timeout_us=parameters.timeout,
        priority=parameters.priority,
    )


def _check_tensor(tensor: _Input, expected: Expected) -> None:
    name, shape = tensor.name, tensor.shape
    if name not in (FEATURE, FRAME):
        raise malformed(f"unknown input '{name}', the model takes '{FEATURE}' or '{FRAME}'")
    datatypes = ("BYTES",) if name == FRAME else tuple(DTYPES)
    if tensor.datatype not in datatypes:
        raise malformed(f"'{name}' has datatype {tensor.datatype}, it takes {' or '.join(datatypes)}")
    if len(shape) != (1 if name == FRAME else 4):
        raise malformed(f"'{name}' has {len(shape)} axes, it takes {'[n]' if name == FRAME else '[n, C, H, W]'}")
    if name == FEATURE and tuple(shape[1:]) != expected.feature.shape:
        raise _other_cut(expected, f"the tensor has {'x'.join(map(str, shape[1:]))}")
    if shape[0] > expected.max_batch:
        raise malformed(f"'{name}' has {shape[0]} samples, a request may have {expected.max_batch}")


def _other_cut(expected: Expected, found: str) -> Refusal:
    return Refusal(409, "contract", f"the cut contract differs: model '{expected.name}' has {expected.cut}, {found}")


def _wanted(document: Document, own: tuple[int, ...] | None) -> tuple[Wanted, ...]:
    """The outputs of the answer: those asked for, or all that there are."""
    offered = (PROBABILITIES,) if own is None else (PROBABILITIES, OWN_MASS)
    binary = document.parameters.binary_data_output
    if not document.outputs:
        return tuple(Wanted(name, binary) for name in offered)
    names = [output.name for output in document.outputs]
    if len(set(names)) != len(names):
        raise malformed(f"output '{names[0]}' is asked for twice")
    return tuple(_one_wanted(output, offered, binary=binary) for output in document.outputs)


def _one_wanted(output: _Output, offered: tuple[str, ...], *, binary: bool) -> Wanted:
    name, parameters = output.name, output.parameters
    if name == OWN_MASS and name not in offered:
        raise malformed(f"'{OWN_MASS}' needs parameters.own_tokens, the caller's own tokens")
    if name not in offered:
        raise malformed(f"unknown output '{name}', the model gives '{PROBABILITIES}' and '{OWN_MASS}'")
    parameters.refuse_shared_memory()
    if name == OWN_MASS and parameters.classification:
        raise malformed(f"'{OWN_MASS}' is one number a sample, it has no classification")
    asked = parameters.binary_data
    return Wanted(name, binary if asked is None else asked, parameters.classification)
