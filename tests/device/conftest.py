"""Device bundles made by hand out of a few ONNX operators, and services that misbehave in every way."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from harmony.core.bundle import VECTORS, DeviceManifest, Exit, ExitName, Fallback, open_device_bundle, write_vectors
from harmony.core.scores import ScoreName
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.core.wire import decode
from harmony.device import AsyncFallbackClient, CloudAnswer

Floats = NDArray[np.float32]
NAMES = ("ant", "bee", "cat", "dog", "eel")
OWN = (1, 2, 4)
TOKENS = (3, 0, 4, 1, 2)
IMAGE = ImageSpec(height=4, width=4, channels=1, mean=(0.5,), std=(0.25,))
CUT = FeatureSpec(channels=2, height=4, width=4)


class TinyNet:
    """hidden = 2·image; feature = stack(hidden, −hidden); heads are linear in the flattened image or hidden."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.weights: dict[str, Floats] = {
            name: rng.normal(0, 0.5, (16, columns)).astype(np.float32)
            for name, columns in (("logits1", 3), ("gate1", 5), ("logits2", 3), ("gate2", 5))
        }

    def vectors(self, count: int = 3, *, gate: bool) -> dict[str, Floats]:
        """What eager numpy says of a few scaled images."""
        image = np.random.default_rng(1).normal(0, 1, (count, 1, 4, 4)).astype(np.float32)
        hidden = 2 * image
        heads = [name for name in self.weights if gate or "gate" not in name]
        out = {
            name: (image if name.endswith("1") else hidden).reshape(count, 16) @ self.weights[name] for name in heads
        }
        return {"image": image, "hidden": hidden, "feature": np.concatenate([hidden, -hidden], axis=1), **out}

    def onnx(self, exit_: str, *, gate: bool) -> bytes:
        source, carried = ("image", "hidden") if exit_ == "exit1" else ("hidden", "feature")
        number = exit_[-1]
        heads = [f"logits{number}"] + ([f"gate{number}"] if gate else [])
        nodes = [helper.make_node("Reshape", [source, "flat_shape"], ["flat"])]
        constants = [numpy_helper.from_array(np.array([1, 16]), "flat_shape")]
        if exit_ == "exit1":
            constants.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
            nodes.append(helper.make_node("Mul", [source, "two"], [carried]))
        else:
            nodes.append(helper.make_node("Neg", [source], ["minus"]))
            nodes.append(helper.make_node("Concat", [source, "minus"], [carried], axis=1))
        for head in heads:
            constants.append(numpy_helper.from_array(self.weights[head], f"{head}.weight"))
            nodes.append(helper.make_node("MatMul", ["flat", f"{head}.weight"], [head]))
        channels = 1 if exit_ == "exit1" else 2
        outputs = [_port(carried, 1, channels, 4, 4)] + [_port(head, 1, self.weights[head].shape[1]) for head in heads]
        graph = helper.make_graph(nodes, exit_, [_port(source, 1, 1, 4, 4)], outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


class OverAsyncio:
    """The client for asyncio, in the place of the other one: whatever the tests ask of that one holds for both."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self._client = AsyncFallbackClient(*given, **named)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def check(self) -> None:
        self._runner.run(self._client.check())

    def ask(self, feature: Any) -> CloudAnswer:
        return self._runner.run(self._client.ask(feature))

    def answered(self, exit_: ExitName) -> None:
        self._client.answered(exit_)

    def flush(self, seconds: float) -> bool:
        return self._runner.run(self._client.flush(seconds))

    @property
    def circuit(self) -> str:
        return self._client.circuit


@pytest.fixture(scope="session")
def over_asyncio() -> type[OverAsyncio]:
    return OverAsyncio


@pytest.fixture(params=["threads", "asyncio"])
def either_client(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, over_asyncio: type[OverAsyncio]
) -> None:
    """The test's module sees each of both clients as its `FallbackClient`."""
    if request.param == "asyncio":
        monkeypatch.setitem(vars(request.module), "FallbackClient", over_asyncio)


def _port(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class MakeBundle:
    """Writes a device bundle. thresholds: of both exits; changes: other fields of the manifest."""

    net = TinyNet()

    def __call__(
        self,
        folder: Path,
        *,
        thresholds: tuple[float, float] = (1e9, 1e9),
        gate: bool = True,
        files: dict[str, bytes] | None = None,
        vectors: dict[str, Floats] | None = None,
        **changes: Any,
    ) -> Path:
        score: ScoreName = "own_mass" if gate else "msp"
        exits = (
            Exit(name="exit1", score=score, threshold=thresholds[0]),
            Exit(name="exit2", score=score, threshold=thresholds[1]),
        )
        manifest = DeviceManifest(
            harmony_version="0", run="tiny", method="harmony", client=0,
            architecture=Architecture.parse("resnet-w8-d1"), dataset="made-up", image=IMAGE, feature=CUT,
            classes=ClassMap(names=NAMES, own=OWN, tokens=TOKENS), exits=exits, gate=gate, fallback=Fallback(),
            engines={"onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"}}, parameters=256,
        ).model_copy(update=changes)  # fmt: skip
        with sealing(folder) as draft:
            for role in ("exit1", "exit2"):
                (draft / f"{role}.onnx").write_bytes(self.net.onnx(role, gate=gate))
            for name, content in (files or {}).items():
                (draft / name).write_bytes(content)
            write_vectors(draft / VECTORS, self.net.vectors(gate=gate) if vectors is None else vectors)
            seal(draft, manifest)
        return folder


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    return MakeBundle()


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def manifest(bundle: Path) -> DeviceManifest:
    return open_device_bundle(bundle)


class Service:
    """A fallback service that does what `behave` says: (handler, attempt from 1) → None."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.requests: list[dict[str, Any]] = []
        self.connections: set[Any] = set()


Behave = Callable[[BaseHTTPRequestHandler, int], None]
Serve = Callable[..., Any]


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def serving(behave: Behave) -> Iterator[Service]:
    attempts = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal attempts
            attempts += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            service.requests.append({"path": self.path, "headers": _lower(self.headers), "body": body})
            service.connections.add(self.client_address)
            behave(self, attempts)

        def do_GET(self) -> None:
            service.requests.append({"path": self.path, "headers": _lower(self.headers), "body": b""})
            behave(self, 0)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = Service(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve() -> Serve:
    return serving


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def send_probabilities(handler: BaseHTTPRequestHandler, values: Floats, **changes: Any) -> None:
    blob = values.astype("<f4").tobytes()
    output = {
        "name": "probabilities", "datatype": "FP32", "shape": [1, len(values)],
        "parameters": {"binary_data_size": len(blob)},
    } | changes  # fmt: skip
    text = json.dumps({"model_name": "backend", "outputs": [output]}).encode()
    send(handler, 200, text + blob, Inference_Header_Content_Length=str(len(text)))


@pytest.fixture
def reply() -> Callable[..., None]:
    return send


@pytest.fixture
def reply_probabilities() -> Callable[..., None]:
    return send_probabilities


def read_request(request: dict[str, Any]) -> tuple[dict[str, Any], Floats]:
    """The JSON part and the feature of an infer request, read strictly."""
    size = int(request["headers"]["inference-header-content-length"])
    header, blob = json.loads(request["body"][:size]), request["body"][size:]
    assert len(blob) == header["inputs"][0]["parameters"]["binary_data_size"]
    (length,) = struct.unpack_from("<I", blob)
    assert length == len(blob) - 4
    return header, decode(blob[4:], CUT)


@pytest.fixture
def parse_request() -> Callable[[dict[str, Any]], tuple[dict[str, Any], Floats]]:
    return read_request
