"""Infer requests for a load: whole HTTP/1.1 requests with seeded features, ready to be sent."""

from __future__ import annotations

import http.client
import json
import ssl
import struct
from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

import numpy as np

from harmony.core.errors import CloudAnswerInvalid, CloudRefused, CloudUnreachable, ConfigError
from harmony.core.spec import FeatureSpec, Frozen
from harmony.core.wire import encode

CUT = FeatureSpec(channels=64, height=16, width=16)
"""The cut that the service is measured with."""
Form = Literal["tensor", "fp32", "fp16", "int8-zstd"]
FORMS: tuple[Form, ...] = ("tensor", "fp32", "fp16", "int8-zstd")


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Target(Frozen):
    """A model of a service, as its metadata says."""

    model: str
    shape: tuple[int, int, int]


def address_of(url: str, ca_file: str | None = None) -> Address:
    """Host and port of http(s)://host[:port]; ConfigError for anything else. ca_file: who signed the certificate."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError("is no http(s)://host[:port]", where=url[:200], mend="give what harmony serve printed")
    tls = None
    if parts.scheme == "https":
        try:
            tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise ConfigError("cannot be read as certificates (PEM)", where=ca_file or "CA file") from None
    return Address(parts.hostname, port or (443 if tls else 80), tls)


def target_of(address: Address, key: str | None, model: str) -> Target:
    """Ask the service what the model takes. CloudUnreachable, CloudRefused or CloudAnswerInvalid if that fails."""
    where = f"{address.host}:{address.port}"
    if address.tls is None:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    else:
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=10, context=address.tls)
    try:
        connection.request("GET", f"/v2/models/{model}", headers=_authorization(key))
        response = connection.getresponse()
        status, text = response.status, response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise CloudUnreachable(f"no answer: {error}", where=where, mend="is it running?") from None
    finally:
        connection.close()
    if status != 200:
        raise CloudRefused(f"answered {status}: {text[:200].decode(errors='replace')}", where=where, mend="check --key")
    try:
        shape = json.loads(text)["inputs"][0]["shape"]
        return Target(model=model, shape=tuple(shape[1:]))
    except (ValueError, LookupError, TypeError):
        raise CloudAnswerInvalid("the model's metadata is not understood", where=where) from None


def _authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def requests_of(
    target: Target, address: Address, key: str | None, form: Form, *, rows: int = 1, different: int = 16, seed: int = 0
) -> list[bytes]:
    """`different` requests. form: an FP32 tensor, or frames of harmony.core.wire in that codec."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(different):
        feature = np.maximum(rng.normal(size=(rows, *target.shape)), 0).astype(np.float32)  # features come from a ReLU
        text, blob = _body(feature, form)
        made.append(http_request(target.model, address, key, text, blob))
    return made


def requests_with_ids(
    target: Target, address: Address, key: str | None, *, different: int = 16, seed: int = 0
) -> Iterator[bytes]:
    """Without end: FP32 tensors with everything that the protocol's reference client can say, each with its own id."""
    rng = np.random.default_rng(seed)
    features = [np.maximum(rng.normal(size=(1, *target.shape)), 0).astype("<f4") for _ in range(different)]
    for number in count():
        feature = features[number % different]
        document = {
            "id": f"request-{number}",
            "parameters": {"timeout": 30_000_000, "priority": 2},
            "inputs": [_input("feature", "FP32", feature.shape, feature.nbytes)],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
        yield http_request(target.model, address, key, json.dumps(document).encode(), feature.tobytes())


def http_request(model: str, address: Address, key: str | None, text: bytes, blob: bytes) -> bytes:
    """One whole HTTP/1.1 request with a binary body."""
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", f"Host: {address.host}:{address.port}"]
    lines += [f"{name}: {value}" for name, value in _authorization(key).items()]
    lines += [f"Inference-Header-Content-Length: {len(text)}", f"Content-Length: {len(text) + len(blob)}", "", ""]
    return "\r\n".join(lines).encode() + text + blob


def _body(feature: np.ndarray[tuple[int, ...], np.dtype[np.float32]], form: Form) -> tuple[bytes, bytes]:
    if form == "tensor":
        blob = feature.astype("<f4").tobytes()
        one = _input("feature", "FP32", feature.shape, len(blob))
    else:
        frames = [encode(sample, form) for sample in feature]
        blob = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        one = _input("feature_frame", "BYTES", (len(frames),), len(blob))
    return json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode(), blob


def _input(name: str, datatype: str, shape: tuple[int, ...], size: int) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}
