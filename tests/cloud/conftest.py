"""Tiny cloud bundles made with onnx.helper, a real service over one of them, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import ipaddress
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from uvicorn.server import ServerState

from harmony.cloud.app import ServiceApp, create_app
from harmony.cloud.direct import DirectConnection
from harmony.cloud.models import open_models
from harmony.cloud.process import RunningService, running_service
from harmony.cloud.settings import ServiceSettings
from harmony.core.bundle import VECTORS, CloudManifest, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.spec import FeatureSpec

Floats = NDArray[np.float32]
FEATURE = FeatureSpec(channels=8, height=4, width=4)
TOKENS = 10


@dataclass(frozen=True)
class Bundle:
    """A cloud bundle and its back end in numpy: softmax(flatten(feature) · weight + bias), `layers` times widened."""

    folder: Path
    weight: Floats
    bias: Floats
    spec: FeatureSpec = FEATURE

    def answer(self, feature: Floats) -> Floats:
        logits = feature.reshape(len(feature), -1) @ self.weight + self.bias
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        out: Floats = exp / exp.sum(axis=1, keepdims=True)
        return out


@dataclass
class Graph:
    """What a test may change about the bundle's graph and manifest."""

    feature: list[Any] = field(default_factory=lambda: ["n", *FEATURE.shape])
    probabilities: list[Any] = field(default_factory=lambda: ["n", TOKENS])
    edit: Callable[[onnx.ModelProto], None] = lambda model: None
    vectors: Callable[[dict[str, Floats]], None] = lambda vectors: None
    manifest: dict[str, Any] = field(default_factory=dict)
    heavy_layers: int = 0


Build = Callable[[Path, Graph], Bundle]


def _graph(graph: Graph, weight: Floats, bias: Floats, wide: Floats) -> onnx.ModelProto:
    nodes = [helper.make_node("Flatten", ["feature"], ["flat"], axis=1)]
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    flat = "flat"
    if graph.heavy_layers:
        tensors.append(numpy_helper.from_array(wide, "wide"))
        nodes.append(helper.make_node("Concat", ["flat"] * 8, ["hidden0"], axis=1))
        for layer in range(graph.heavy_layers):
            nodes.append(helper.make_node("MatMul", [f"hidden{layer}", "wide"], [f"hidden{layer + 1}"]))
        nodes.append(
            helper.make_node(
                "Split", [f"hidden{graph.heavy_layers}"], [f"part{n}" for n in range(8)], axis=1, num_outputs=8
            )
        )
        flat = "part0"
    nodes.append(helper.make_node("Gemm", [flat, "weight", "bias"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    inputs = [helper.make_tensor_value_info("feature", TensorProto.FLOAT, graph.feature)]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, graph.probabilities)]
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(
        helper.make_graph(nodes, "back_end", inputs, outputs, tensors), opset_imports=opset, ir_version=10
    )


@pytest.fixture(scope="session")
def build_bundle() -> Build:
    """Writes a sealed cloud bundle into a folder."""

    def build(folder: Path, graph: Graph) -> Bundle:
        rng = np.random.default_rng(7)
        size = FEATURE.channels * FEATURE.height * FEATURE.width
        weight = rng.normal(0, 0.3, (size, TOKENS)).astype(np.float32)
        bias = rng.normal(0, 0.3, TOKENS).astype(np.float32)
        bundle = Bundle(folder, weight, bias)
        # A permutation matrix of order 1: each wide layer costs its multiplications and changes nothing.
        model = _graph(graph, weight, bias, np.eye(8 * size, dtype=np.float32))
        graph.edit(model)
        feature = rng.normal(size=(4, *FEATURE.shape)).astype(np.float32)
        vectors = {"feature": feature, "probabilities": bundle.answer(feature)}
        graph.vectors(vectors)
        values: dict[str, Any] = {
            "harmony_version": "0.1.0",
            "run": "test",
            "method": "splitgp",
            "feature": FEATURE,
            "tokens": TOKENS,
            "parameters": weight.size + bias.size,
        } | graph.manifest
        with sealing(folder) as draft:
            (draft / "back_end.onnx").write_bytes(model.SerializeToString())
            write_vectors(draft / VECTORS, vectors)
            seal(draft, CloudManifest.model_validate(values))
        return bundle

    return build


@pytest.fixture(scope="session")
def bundle(build_bundle: Build, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(tmp_path_factory.mktemp("bundles") / "cloud", Graph())


@pytest.fixture(scope="session")
def heavy(build_bundle: Build, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same answers, for some hundred times the work."""
    return build_bundle(tmp_path_factory.mktemp("heavy") / "cloud", Graph(heavy_layers=150))


@pytest.fixture(scope="session")
def service(bundle: Bundle) -> Iterator[RunningService]:
    """A real service with small limits."""
    with running_service(bundle.folder, "--max-body", "65536", "--max-batch", "8") as running:
        yield running


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        text = self.json["error"]
        assert isinstance(text, str)
        return text


class Client:
    """Bytes in, bytes out: what is sent is exactly what the test says."""

    def __init__(self, service: RunningService) -> None:
        self.host, self.port = service.url.removeprefix("http://").split(":")
        self.key = service.key

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=30)
        try:
            known = {"Authorization": f"Bearer {self.key}"}
            connection.request(method, path, body, known | (headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        return self.call("GET", path, headers=headers)

    def infer(self, body: bytes, headers: dict[str, str] | None = None, model: str = "backend") -> Reply:
        return self.call("POST", f"/v2/models/{model}/infer", body, headers)

    def binary(self, document: Any, blob: bytes, headers: dict[str, str] | None = None) -> Reply:
        text = json.dumps(document).encode()
        return self.infer(text + blob, {"Inference-Header-Content-Length": str(len(text))} | (headers or {}))

    def document(self, document: Any) -> Reply:
        return self.infer(json.dumps(document).encode())


@pytest.fixture(scope="session")
def client(service: RunningService) -> Client:
    return Client(service)


@pytest.fixture(scope="session")
def client_of() -> Callable[[RunningService], Client]:
    return Client


@pytest.fixture(scope="session")
def tensor() -> Callable[..., dict[str, Any]]:
    """An infer document with one binary tensor."""

    def make(shape: list[Any], size: Any, datatype: str = "FP32", name: str = "feature", **more: Any) -> dict[str, Any]:
        one = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        return {"inputs": [one], "parameters": {"binary_data_output": True}} | more

    return make


@pytest.fixture(scope="session")
def elements() -> Callable[[list[bytes]], bytes]:
    """BYTES elements, each with its length before it."""
    return lambda frames: b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)


@pytest.fixture(scope="session")
def features() -> Callable[..., Floats]:
    """Seeded features (n, C, H, W) of the bundle's cut."""

    def make(rows: int, seed: int = 1) -> Floats:
        return np.random.default_rng(seed).normal(size=(rows, *FEATURE.shape)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def graph() -> type[Graph]:
    return Graph


@pytest.fixture(scope="session")
def make_certificate() -> Callable[..., tuple[Path, Path]]:
    """Writes a certificate for 127.0.0.1, signed by itself, and its key into a folder."""

    def make(folder: Path, passphrase: bytes | None = None) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, signed by itself, and its key."""
        folder.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "harmony test")])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(key, hashes.SHA256())
        )
        how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
        )
        return folder / "cert.pem", folder / "key.pem"

    return make


class Inside:
    """The service in this process, over real sockets: what needs a limit of its own, or a look at its insides."""

    def __init__(self, app: ServiceApp) -> None:
        self.app = app
        self.lane = app.service.table.route("backend").lane
        self.config = uvicorn.Config(app, http=DirectConnection, ws="none", log_config=None, timeout_keep_alive=75)
        self._address = ("", 0)
        self._callers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        config = self.config
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(lambda: DirectConnection(config, state, {}), "127.0.0.1", 0)
        for one in server.sockets:  # what is accepted inherits it
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self._address = server.sockets[0].getsockname()
        try:
            yield
        finally:
            server.close()
            for left in list(state.connections):
                left.transport.abort()
            for caller in self._callers:
                caller.close()
                with suppress(ConnectionError):
                    await caller.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        self._callers.append(writer)
        return reader, writer


Work = Callable[[Inside], Awaitable[None]]


@pytest.fixture
def inside(bundle: Bundle) -> Callable[..., None]:
    """Does `work` with a service of these settings."""

    def run(work: Work, **settings: Any) -> None:
        async def main() -> None:
            one = Inside(create_app(open_models(bundle.folder), ServiceSettings(**settings)))
            async with one.app.router.lifespan_context(one.app), one.listening():
                await work(one)

        asyncio.run(main())

    return run
