"""Writes one sealed bundle: programs, test vectors, manifest. Only after every engine agreed with eager PyTorch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.archive import packing
from harmony.core.bundle import (
    VECTORS,
    CloudManifest,
    DeviceManifest,
    EngineName,
    Fallback,
    Tolerance,
    write_vectors,
)
from harmony.core.checkpoint import BACK_END, CheckpointManifest, ClientRecord, client_file, load_tensors
from harmony.core.models import FrontEnd
from harmony.core.sealed import TAR, seal, sealing
from harmony.core.signing_keys import SecretKey
from harmony.core.spec import FeatureSpec
from harmony.export.lowering import Blueprint
from harmony.export.networks import Answers, back_end, front_end, parameters, shape_of
from harmony.export.onnx_program import back_end_to_onnx
from harmony.export.parity import (
    Vectors,
    back_end_vectors,
    compare,
    front_end_vectors,
    run_back_end,
    run_executorch,
    run_onnx,
)
from harmony.export.report import EngineReport, ExportReport, Format
from harmony.export.training import Programs

TOLERANCE = Tolerance()
ENGINE_OF: Mapping[Format, EngineName] = {"onnx": "onnxruntime", "executorch": "executorch"}
BACK_END_PROGRAM = "back_end.onnx"
FILES: Mapping[Format, Mapping[str, str]] = {
    "onnx": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"},
    "executorch": {"program": "front_end.pte"},
}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. hash: of its manifest, and so of every byte in it."""

    folder: Path
    manifest: CheckpointManifest
    hash: str


def write_client(
    source: Source,
    client: ClientRecord,
    blueprints: Sequence[Blueprint],
    images: NDArray[np.float32],
    place: Path,
    *,
    keys: Sequence[SecretKey] = (),
    learning: Programs | None = None,
) -> ExportReport:
    """The device bundle of one client at `place`, a .tar if its name says so. images: (n, C, H, W), scaled; keys: who
    signs it; learning: what the device may learn with. ParityFailed, RunExists.
    """
    started = time.perf_counter()
    path = source.folder / client_file(client.index)
    network = front_end(source.manifest, client, load_tensors(path), path)
    vectors = front_end_vectors(network, images)
    with writing(place) as draft:
        engines = [add_engine(draft, network, one, vectors, who=f"client {client.index}") for one in blueprints]
        write_vectors(draft / VECTORS, vectors)
        write_learning(draft, learning)
        seal(draft, device_manifest(source, client, blueprints, parameters(network), learning), keys)
    return ExportReport(
        bundle=place, client=client.index, architecture=str(client.architecture), parameters=parameters(network),
        engines=tuple(engines), kept=False, seconds=time.perf_counter() - started,
    )  # fmt: skip


def write_cloud(
    source: Source, images: NDArray[np.float32], place: Path, *, keys: Sequence[SecretKey] = ()
) -> ExportReport:
    """The cloud bundle at `place`. Its test vectors are the features that the first clients make of the images."""
    started = time.perf_counter()
    path = source.folder / BACK_END
    network = back_end(source.manifest, load_tensors(path), path)
    vectors = back_end_vectors(network, _features(source, images))
    with writing(place) as draft:
        engine = add_back_end(draft, network, source.manifest.feature, vectors)
        seal(draft, _cloud_manifest(source, parameters(network)), keys)
    seconds = time.perf_counter() - started
    return ExportReport(place, None, None, parameters(network), (engine,), kept=False, seconds=seconds)


def add_back_end(draft: Path, network: Answers, feature: FeatureSpec, vectors: Vectors) -> EngineReport:
    """Write the cloud's program and its test vectors, the first held against the second. ParityFailed."""
    started = time.perf_counter()
    program = back_end_to_onnx(network, feature)
    (draft / BACK_END_PROGRAM).write_bytes(program)
    error = max(
        compare(vectors, found, TOLERANCE, who="back end", engine="onnxruntime")
        for found in run_back_end(program, vectors["feature"])
    )
    write_vectors(draft / VECTORS, vectors)
    seconds = time.perf_counter() - started
    return EngineReport("onnxruntime", {BACK_END_PROGRAM: len(program)}, error, None, seconds)


def writing(place: Path) -> AbstractContextManager[Path]:
    """A folder that becomes the bundle at `place`, a .tar if its name says so, when the block ends without an error."""
    return packing(place) if place.suffix == TAR else sealing(place)


def add_engine(
    draft: Path,
    network: FrontEnd,
    blueprint: Blueprint,
    vectors: Vectors,
    *,
    who: str,
    tolerance: Tolerance = TOLERANCE,
) -> EngineReport:
    """Write one engine's programs, held against eager PyTorch's test vectors. EngineError, ParityFailed."""
    started = time.perf_counter()
    programs, delegated = blueprint.programs(network, torch.from_numpy(vectors["image"][:1]))
    if blueprint.format == "onnx":
        found = run_onnx(programs, vectors["image"])
    else:
        found = run_executorch(programs, vectors["image"], outputs(vectors))
    engine = ENGINE_OF[blueprint.format]
    error = compare(vectors, found, tolerance, who=who, engine=engine)
    names = FILES[blueprint.format]
    for role, program in programs.items():
        (draft / names[role]).write_bytes(program)
    sizes = {names[role]: len(program) for role, program in programs.items()}
    return EngineReport(engine, sizes, error, delegated, time.perf_counter() - started)


def write_learning(draft: Path, learning: Programs | None) -> None:
    """Write what a device learns with, if it does."""
    for name, program in (learning.files if learning else {}).items():
        (draft / name).write_bytes(program)


def outputs(vectors: Vectors) -> dict[str, tuple[str, ...]]:
    """The outputs of each method, in order, where these are all of them."""
    gated = "gate1" in vectors
    return {
        "exit1": ("hidden", "logits1", *(["gate1"] if gated else [])),
        "exit2": ("feature", "logits2", *(["gate2"] if gated else [])),
    }


def _features(source: Source, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Real features for the back end, image i from client i, in turn."""
    features = []
    clients = source.manifest.clients
    for position, client in enumerate(clients[: len(images)]):
        path = source.folder / client_file(client.index)
        network = front_end(source.manifest, client, load_tensors(path), path)
        features.append(front_end_vectors(network, images[position :: len(clients)])["feature"])
    return np.concatenate(features)


def device_manifest(
    source: Source, client: ClientRecord, blueprints: Sequence[Blueprint], count: int, learning: Programs | None
) -> DeviceManifest:
    """What a client's bundle says of itself. count: of weights; learning: what the device may learn with."""
    origin = source.manifest
    return DeviceManifest(
        harmony_version=version("harmony-sfl"),
        run=origin.run,
        method=origin.method,
        client=client.index,
        architecture=client.architecture,
        dataset=origin.dataset,
        image=origin.image,
        feature=origin.feature,
        classes=client.classes,
        exits=client.exits,
        held_out=client.held_out,
        gate=shape_of(client).gate,
        fallback=Fallback(),
        engines={ENGINE_OF[one.format]: dict(FILES[one.format]) for one in blueprints},
        tolerance=TOLERANCE,
        parameters=count,
        checkpoint=source.hash,
        training=learning.training if learning else None,
    )


def _cloud_manifest(source: Source, count: int) -> CloudManifest:
    origin = source.manifest
    return CloudManifest(
        harmony_version=version("harmony-sfl"),
        run=origin.run,
        method=origin.method,
        feature=origin.feature,
        tokens=len(origin.clients[0].classes.names),
        tolerance=TOLERANCE,
        parameters=count,
        checkpoint=source.hash,
    )
