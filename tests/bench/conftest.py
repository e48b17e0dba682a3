"""A made-up result that has everything a real one can have, and tiny bundles that really run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from harmony.bench.bare import one_thread_session
from harmony.bench.curves import ClientCurve, CurvePoint, MethodCurves
from harmony.bench.links import LINKS
from harmony.bench.results import (
    Accuracy,
    AnswerPath,
    Bar,
    BenchResult,
    BenchSettings,
    BundleResult,
    CodecSize,
    Conditions,
    Host,
    MixResult,
    PathTiming,
    Prediction,
    Process,
    Timing,
    Wire,
)
from harmony.bench.statistics import ratio, summarise
from harmony.core.bundle import VECTORS, CloudManifest, DeviceManifest, Exit, Fallback, open_cloud_bundle, write_vectors
from harmony.core.data import load
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import neg_entropy
from harmony.core.sealed import seal
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.core.storage import sealing

Floats = NDArray[np.float32]

RHOS = (0.0, 0.5, 1.0)
ARCHITECTURES = ("resnet-w16-d1", "mobilenet-w16-d1", "resnet-w24-d1", "mobilenet-w24-d1")


def _mix(rho: float, client: int) -> MixResult:
    cloud = 0.08 + 0.38 * rho + 0.01 * client
    return MixResult(
        rho=rho,
        n_id=600,
        n_ood=round(600 * rho),
        exit1=0.44 - 0.2 * rho,
        exit2=1 - cloud - (0.44 - 0.2 * rho),
        cloud=cloud,
        unsure=cloud,
        degraded=0.0,
        offload_id=0.1,
        keep_ood=0.2 if rho else None,
        accuracy=Accuracy(
            overall=0.91 - 0.1 * rho - 0.005 * client,
            id=0.92,
            ood=0.76 if rho else None,
            client=0.9 / (1 + rho),
            server=0.84,
            oracle=0.87,
        ),
    )


def _bundle(client: int) -> BundleResult:
    speed = 1 + 0.4 * (client % 4)
    local_paths: tuple[tuple[AnswerPath, float], ...] = (("exit1", 1.0), ("exit2", 2.2))
    paths = tuple(
        PathTiming(
            path=path,
            wall=summarise([0.0002 * speed * factor * (1 + 0.02 * i) for i in range(50)]),
            cpu=summarise([0.0002 * speed * factor for _ in range(50)]),
            bare=summarise([0.00018 * speed * factor] * 50),
            ratio=ratio([1.07, 1.08, 1.1, 1.06, 1.09]),
        )
        for path, factor in local_paths
    )
    offload = PathTiming(path="cloud", wall=summarise([0.0035] * 50), cpu=summarise([0.0012] * 50))
    links = tuple(
        Prediction(
            path="cloud",
            link=name,
            median_s=0.003 + link.exchange_s(1500, 400),
            p90_s=0.004 + link.exchange_s(1500, 400),
            cold_median_s=0.003 + link.exchange_s(1500, 400, cold=True),
        )
        for name, link in LINKS.items()
    )
    local = tuple(Prediction(path=p.path, link=None, median_s=p.wall.median, p90_s=p.wall.p90) for p in paths)
    return BundleResult(
        name=f"client-{client:03d}",
        run="demo",
        method="harmony",
        client=client,
        architecture=ARCHITECTURES[client % 4],
        parameters=40_000 + 1000 * client,
        dataset="fashion-mnist-mini",
        own_classes=("Shirt", "Bag", "Sneaker"),
        engine="onnxruntime",
        file_bytes={"onnxruntime": 160_000 + 9000 * client, "executorch": 190_000 + 9000 * client},
        mixes=tuple(_mix(rho, client) for rho in RHOS),
        process=Process(peak_rss_bytes=71_000_000, torch_loaded=False, cpu_s=1.4, versions={"onnxruntime": "1.0"}),
        wire=Wire(
            codec="int8-zstd",
            request=summarise([1500, 1520, 1490]),
            answer=summarise([400, 400, 410]),
            codecs=(
                CodecSize(codec="fp32", frame_bytes=6284),
                CodecSize(codec="fp16", frame_bytes=3148),
                CodecSize(codec="int8-zstd", frame_bytes=1180),
            ),
            image_bytes=784,
        ),
        timings=(
            Timing(
                conditions=Conditions(engine="onnxruntime", regime="hot"),
                first_answer_s=0.004,
                rounds=5,
                paths=(*paths, offload),
                ratio=ratio([1.07, 1.08, 1.1, 1.06, 1.09]),
            ),
        ),
        predictions=(*local, *links),
    )


@pytest.fixture
def result() -> BenchResult:
    """Eight devices, three mixes."""
    settings: dict[str, Any] = {"bundles": (Path("bundles/client-000"),), "rhos": RHOS, "key": "secret-key"}
    return BenchResult(
        harmony_version="0.1.0",
        settings=BenchSettings(**settings),
        host=Host(
            cpu="A CPU",
            cores=2,
            affinity=(0, 1),
            memory_bytes=8 << 30,
            system="Linux 6 x86_64",
            python="3.11.2",
            versions={"numpy": "2.0"},
            commit=None,
            load_before=0.1,
            load_after=0.9,
            steal=0.003,
        ),
        links=tuple(LINKS.values()),
        bundles=tuple(_bundle(client) for client in range(8)),
        speed=(
            Bar(name="device path over the bare engine call", value=1.08, limit=1.15, unit="×"),
            Bar(name="peak memory of a device process", value=71.0, limit=80.0, unit="MB"),
            Bar(name="harmony --help, CPU", value=0.34, limit=0.3, unit="s"),
        ),
    )


@pytest.fixture
def curves() -> dict[str, MethodCurves]:
    """Two methods, eight clients."""

    def clients(top: float, fall: float, ood: float) -> MethodCurves:
        def point(rho: float, client: int) -> CurvePoint:
            accuracy = Accuracy(
                overall=top - fall * rho - 0.01 * client,
                id=top,
                ood=ood if rho else None,
                client=0.85 / (1 + rho),
                server=(0.84 + ood) / 2,
                oracle=(0.9 + ood) / 2,
            )
            return CurvePoint(rho=rho, accuracy=accuracy)

        return MethodCurves(
            clients=tuple(
                ClientCurve(client=c, architecture=ARCHITECTURES[c % 4], points=tuple(point(rho, c) for rho in RHOS))
                for c in range(8)
            )
        )

    return {"splitgp": clients(0.88, 0.34, 0.38), "harmony": clients(0.93, 0.12, 0.78)}


CLASSES = 10
TOKENS = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
FEATURE = FeatureSpec(channels=2, height=7, width=7)


@dataclass(frozen=True)
class Federation:
    """Two device bundles and their cloud."""

    devices: tuple[Path, Path]
    cloud: Path


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Bundles of the embedded images: 4×4 means, then linear classifiers fitted by least squares.

    Both know own classes well, so that every way an answer can take is taken and no accuracy is that of chance.
    """
    data, folder = load("fashion-mnist-mini"), tmp_path_factory.mktemp("bundles")
    image = data.image_spec()
    pooled = Preprocessor(image)(data.x_train[::5]).reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49)
    labels = data.y_train[::5]
    own = ((0, 3, 6), (1, 5, 8))
    devices = tuple(_device(folder / f"client-{n:03d}", n, own[n], pooled, labels, image) for n in (0, 1))
    return Federation((devices[0], devices[1]), _back_end(folder / "cloud", pooled, labels))


def _fit(pooled: Floats, labels: Any, classes: Sequence[int]) -> tuple[Floats, Floats]:
    """Weight (49, classes) and bias of a ridge classifier, scaled so that a softmax over it is sure of something."""
    chosen = np.isin(labels, classes)
    x, y = pooled[chosen], (labels[chosen, None] == np.asarray(classes)) * 2.0 - 1
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    solution = 4 * np.linalg.solve(x.T @ x + np.eye(50), x.T @ y)
    return solution[:-1].astype(np.float32), solution[-1].astype(np.float32)


def _model(nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **tensors: Floats) -> bytes:
    def infos(ports: dict[str, list[Any]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()]

    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), constants)
    program: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return program


def _device(folder: Path, index: int, own: Sequence[int], pooled: Floats, labels: Any, image: ImageSpec) -> Path:
    weight, bias = _fit(pooled, labels, own)
    pool = helper.make_node("AveragePool", ["image"], ["hidden"], kernel_shape=[4, 4], strides=[4, 4])
    twice = helper.make_node("Concat", ["hidden", "hidden"], ["feature"], axis=1)
    hidden, feature = [1, 1, 7, 7], [1, *FEATURE.shape]
    scores = neg_entropy((pooled[np.isin(labels, own)] @ weight + bias).astype(np.float32))
    with sealing(folder) as draft:
        (draft / "exit1.onnx").write_bytes(
            _model(
                [pool, *_linear("hidden", "logits1")],
                {"image": [1, 1, 28, 28]},
                {"hidden": hidden, "logits1": [1, 3]},
                weight=weight,
                bias=bias,
            )
        )
        (draft / "exit2.onnx").write_bytes(
            _model(
                [twice, *_linear("hidden", "logits2")],
                {"hidden": hidden},
                {"feature": feature, "logits2": [1, 3]},
                weight=weight,
                bias=bias,
            )
        )
        write_vectors(draft / VECTORS, {"feature": pooled[:4].reshape(4, 1, 7, 7).repeat(2, axis=1)})
        manifest = DeviceManifest(
            harmony_version="0.1.0",
            run="tiny",
            method="harmony",
            client=index,
            architecture=Architecture.parse("resnet-w8-d1"),
            dataset="fashion-mnist-mini",
            image=image,
            feature=FEATURE,
            classes=ClassMap(names=load("fashion-mnist-mini").class_names, own=tuple(own), tokens=TOKENS),
            exits=(
                Exit(name="exit1", score="entropy", threshold=float(np.quantile(scores, 0.6))),
                Exit(name="exit2", score="entropy", threshold=float(np.quantile(scores, 0.2))),
            ),
            gate=False,
            fallback=Fallback(),
            engines={"onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"}},
            parameters=150,
        )
        seal(draft, manifest)
    return folder


def _linear(source: str, target: str) -> list[Any]:
    flat = helper.make_node("Flatten", [source], ["flat"], axis=1)
    return [flat, helper.make_node("Gemm", ["flat", "weight", "bias"], [target])]


def _back_end(folder: Path, pooled: Floats, labels: Any) -> Path:
    weight, bias = _fit(pooled, labels, np.argsort(TOKENS).tolist())  # column t is the class whose token is t
    softmax = helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)
    program = _model(
        [*_linear("feature", "logits"), softmax],
        {"feature": ["n", *FEATURE.shape]},
        {"probabilities": ["n", CLASSES]},
        weight=(np.concatenate([weight, weight]) / 2).astype(np.float32),
        bias=bias,
    )
    with sealing(folder) as draft:
        (draft / "back_end.onnx").write_bytes(program)
        session = one_thread_session(program)
        features = pooled[:4].reshape(4, 1, 7, 7).repeat(2, axis=1)
        (probabilities,) = session.run(None, {"feature": features})
        write_vectors(draft / VECTORS, {"feature": features, "probabilities": probabilities})
        manifest = CloudManifest(
            harmony_version="0.1.0",
            run="tiny",
            method="harmony",
            feature=FEATURE,
            tokens=CLASSES,
            parameters=990,
        )
        seal(draft, manifest)
    return folder


@pytest.fixture(scope="session")
def resealed() -> Callable[[Path, Path, dict[str, Any]], Path]:
    """Copies a cloud bundle with other fields in its manifest, sealed again."""

    def change(source: Path, target: Path, fields: dict[str, Any]) -> Path:
        manifest = CloudManifest.model_validate(open_cloud_bundle(source).model_dump() | fields)
        with sealing(target) as draft:
            for name in manifest.files:
                shutil.copy(source / name, draft / name)
            seal(draft, manifest)
        return target

    return change
