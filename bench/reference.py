"""The reference model as a device bundle: MobileNetV1 at 224 × 224 and its successors, run by the same engines as ours.

Latency does not depend on weights, so they are random (from a fixed seed) and nothing is downloaded: the bundles are
made once, in the cache folder, and found there by the hash of what they are made from. Exit 1 of such a bundle is the
whole net; exit 2 is a stub that nobody times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from harmony.bench.devices import REFERENCE, ModelName
from harmony.core.bundle import VECTORS, DeviceManifest, EngineName, Exit, Fallback, write_vectors
from harmony.core.cache import CACHE_MEND, cache_dir
from harmony.core.errors import EngineUnavailable, RunExists
from harmony.core.sealed import seal
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.core.storage import sealing, storing

if TYPE_CHECKING:
    from torch import nn

    from harmony.core.models import FrontEnd

SIZE, CLASSES, STUB = 224, 1000, 8
MODELS: tuple[ModelName, ...] = (REFERENCE, "mobilenet-v2", "mobilenet-v3-large", "mobilenet-v3-small")
_FORMATS: dict[EngineName, dict[str, str]] = {
    "onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"},
    "executorch": {"program": "front_end.pte"},
}
_EXPORTERS = ("torch", "onnx", "onnxscript", "executorch")


def reference_bundle(model: ModelName, engine: EngineName) -> Path:
    """The folder of the bundle, made now if need be (some ten seconds, once).

    EngineUnavailable without the exporters.
    """
    folder = cache_dir() / "reference" / _recipe() / f"{model}-{engine}"
    if folder.is_dir():
        return folder
    if missing := [name for name in _EXPORTERS if find_spec(name) is None]:
        raise EngineUnavailable(
            f"the reference model cannot be made without {', '.join(missing)}", where="calibration",
            mend="pip install 'harmony-sfl[export]', or give --slowdown",
        )  # fmt: skip
    with storing(folder, CACHE_MEND):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(RunExists), sealing(folder) as draft:  # exists: another process was quicker
        _write(draft, model, engine)
    return folder


def make_references(engines: Sequence[EngineName]) -> None:
    """Make all models for the engines, so that no measurement waits for it."""
    for engine in engines:
        for model in MODELS:
            reference_bundle(model, engine)


def _recipe() -> str:
    """Changes with whatever the programs are made of and by."""
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in ("reference.py", "reference_network.py", "arm/mobilenets.py")]
    releases = [version(name) for name in _EXPORTERS if find_spec(name) is not None]
    return hashlib.sha256(b"\0".join([*sources, *(one.encode() for one in releases)])).hexdigest()[:16]


def _write(folder: Path, model: ModelName, engine: EngineName) -> None:
    import torch  # noqa: PLC0415  (seconds, and only when there is something to make)

    from harmony.export.executorch_program import ROLE, front_end_to_executorch  # noqa: PLC0415
    from harmony.export.onnx_program import front_end_to_onnx  # noqa: PLC0415

    network = cast("FrontEnd", _network(model))  # what the exporters use of a FrontEnd: lower, upper, exit1, exit2
    image = torch.zeros(1, 3, SIZE, SIZE)
    if engine == "onnxruntime":
        programs = front_end_to_onnx(network, image)
    else:
        programs = {ROLE: front_end_to_executorch(network, image)[0]}
    for role, program in programs.items():
        (folder / _FORMATS[engine][role]).write_bytes(program)
    write_vectors(folder / VECTORS, {"image": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    seal(folder, _manifest(model, engine, sum(weight.numel() for weight in network.parameters())))


def _network(model: ModelName) -> nn.Module:
    from harmony.bench.reference_network import ReferenceNetwork  # noqa: PLC0415  (imports torch)

    return ReferenceNetwork(model, STUB).eval()


def _manifest(model: ModelName, engine: EngineName, parameters: int) -> DeviceManifest:
    return DeviceManifest(
        harmony_version=version("harmony-sfl"),
        run="reference",
        method="reference",
        client=0,
        architecture=Architecture(family=model.replace("-", ""), width=32, depth=1),
        dataset="random",
        image=ImageSpec(height=SIZE, width=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        feature=FeatureSpec(channels=STUB, height=1, width=1),
        classes=ClassMap(
            names=tuple(f"class {index}" for index in range(CLASSES)),
            own=tuple(range(CLASSES)),
            tokens=tuple(range(CLASSES)),
        ),
        exits=(Exit(name="exit1", score="max_logit", threshold=0), Exit(name="exit2", score="max_logit", threshold=0)),
        gate=False,
        fallback=Fallback(),
        engines={engine: _FORMATS[engine]},
        parameters=parameters,
    )
