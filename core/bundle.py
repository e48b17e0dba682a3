"""Bundles: what a device and the cloud are given. Sealed folders with a typed manifest. No torch.

A front end is run in two segments, so that a sample that leaves early costs only the first:

    exit1:  image (1, C, H, W) float32, scaled by ImageSpec  →  hidden, logits1 (1, own), gate1 (1, classes)
    exit2:  hidden  →  feature (1, *FeatureSpec), logits2 (1, own), gate2 (1, classes)

`gate` outputs are there only if the exit's score needs them. Gate columns are labels, in the order of ClassMap.names.
The back end is one segment: feature (n, *FeatureSpec) → probabilities (n, classes), whose columns are tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import from_json

from harmony.core.adaptive import HeldOut
from harmony.core.codec import Codec
from harmony.core.errors import ArtifactCorrupt
from harmony.core.scores import ScoreName, needs_gate
from harmony.core.sealed import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    FileName,
    Manifest,
    Sha256,
    files_of,
    read_sealed,
    reading,
    require_files,
    unseal,
)
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, Finite, Frozen, ImageSpec
from harmony.core.training import Personal, Training

if TYPE_CHECKING:
    from harmony.core.signing import Trust

EngineName = Literal["onnxruntime", "executorch"]
Precision = Literal["fp32", "int8"]
ExitName = Literal["exit1", "exit2"]
VECTORS = "vectors.safetensors"
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,199}:[A-Za-z_][A-Za-z0-9_]{0,99}$")]
"""A front end of the user's own, by the function that made it: package.module:function."""


class Exit(Frozen):
    """One early exit: leave here if the score is at least the threshold.

    budget: share of held-out in-distribution samples that the threshold was set to let pass on (None if set by hand).
    """

    name: ExitName
    score: ScoreName
    threshold: Finite
    budget: Annotated[float, Field(ge=0, le=1)] | None = None


def check_exits(exits: tuple[Exit, ...], *, gate: bool) -> None:
    """ValueError unless the exits stand in order and have the heads that their scores read."""
    if tuple(one.name for one in exits) != ("exit1", "exit2"):
        raise ValueError("exits must be exit1, then exit2")
    if not gate and any(needs_gate(one.score) for one in exits):
        raise ValueError("an exit's score needs a gate head, but there is none")


class Fallback(Frozen):
    """How this device asks the cloud: the model's name there, and the codec of the feature on the wire."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "backend"
    codec: Codec = "int8-zstd"


class Tolerance(Frozen):
    """How far an engine may lie from the reference on the test vectors: |a − b| ≤ absolute + relative · |b|."""

    absolute: Annotated[float, Field(ge=0, le=1)] = 1e-4
    relative: Annotated[float, Field(ge=0, le=1)] = 1e-3


class DeviceManifest(Manifest):
    """A front end for one client. `engines` maps an engine to its files by role.

    `held_out`: what the threshold of exit 2 follows the stream by; without, it is fixed (see harmony.core.adaptive).
    `checkpoint`: the hash of the manifest of the checkpoint that it was exported from (also in CloudManifest).
    Roles of `onnxruntime`: exit1, exit2 (one .onnx each); of `executorch`: program (a .pte with methods exit1, exit2).
    training: what a device learns with; personal: that it did (see `harmony.core.training`).
    """

    FORMAT: ClassVar[str] = "harmony-device-bundle"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-device-bundle"] = "harmony-device-bundle"
    format_version: Literal[1] = 1
    harmony_version: str
    run: str
    method: str
    client: Annotated[int, Field(ge=0)]
    architecture: Architecture | ModuleName
    dataset: str
    image: ImageSpec
    feature: FeatureSpec
    classes: ClassMap
    exits: Annotated[tuple[Exit, ...], Field(min_length=2, max_length=2)]
    held_out: HeldOut | None = None
    gate: bool
    fallback: Fallback
    engines: dict[EngineName, dict[str, FileName]]
    precision: Precision = "fp32"
    tolerance: Tolerance = Tolerance()
    parameters: Annotated[int, Field(ge=1)]
    checkpoint: Sha256 | None = None
    training: Training | None = None
    personal: Personal | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_exits(self.exits, gate=self.gate)
        if not self.engines:
            raise ValueError("a bundle needs files for at least one engine")
        return self


class CloudManifest(Manifest):
    """The back end of one run, for the cloud. Nothing in it says what a class is: its columns are tokens."""

    FORMAT: ClassVar[str] = "harmony-cloud-bundle"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-cloud-bundle"] = "harmony-cloud-bundle"
    format_version: Literal[1] = 1
    harmony_version: str
    run: str
    method: str
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "backend"
    feature: FeatureSpec
    tokens: Annotated[int, Field(ge=2, le=100_000)]
    program: FileName = "back_end.onnx"
    tolerance: Tolerance = Tolerance()
    parameters: Annotated[int, Field(ge=1)]
    checkpoint: Sha256 | None = None


def open_device_bundle(folder: Path, trust: Trust | None = None) -> DeviceManifest:
    """Check every byte of a device bundle, a folder or a .tar, and return its manifest; an ArtifactError otherwise.

    trust: keys of which one must have signed it; without, whoever could write it is trusted.
    """
    manifest = unseal(folder, DeviceManifest, trust)
    require_files(manifest, {"vectors": VECTORS}, folder / "manifest.json")
    for engine, roles in manifest.engines.items():
        expected = {"exit1", "exit2"} if engine == "onnxruntime" else {"program"}
        if set(roles) != expected:
            raise ArtifactCorrupt(
                f"needs the roles {sorted(expected)}", where=folder / "manifest.json", field=f"engines.{engine}"
            )
        require_files(manifest, roles, folder / "manifest.json")
    if manifest.training is not None:
        require_files(manifest, manifest.training.files, folder / "manifest.json")
    return manifest


def open_cloud_bundle(folder: Path, trust: Trust | None = None) -> CloudManifest:
    """As `open_device_bundle`, for a cloud bundle."""
    manifest = unseal(folder, CloudManifest, trust)
    require_files(manifest, {"vectors": VECTORS, "program": manifest.program}, folder / "manifest.json")
    return manifest


def open_bundle(folder: Path, trust: Trust | None = None) -> DeviceManifest | CloudManifest:
    """As `open_device_bundle`, for a bundle of either kind."""
    if format_of(folder) == CloudManifest.FORMAT:
        return open_cloud_bundle(folder, trust)
    return open_device_bundle(folder, trust)


def format_of(folder: Path) -> object:
    """What a folder or .tar says it is; whatever is wrong with it is left to the check that has to follow."""
    with reading(folder):
        files = files_of(folder, "bundle")
        if (files.size(MANIFEST) or MAX_MANIFEST_BYTES + 1) > MAX_MANIFEST_BYTES:
            return None
        with files.open(MANIFEST) as stream:
            text = stream.read()
    try:
        document = from_json(text)
    except ValueError:
        return None
    return document.get("format") if isinstance(document, dict) else None


def write_vectors(path: Path, vectors: dict[str, NDArray[np.float32]]) -> None:
    """Test vectors: inputs and the reference's outputs, first axis = samples.

    Device: image, hidden, logits1, feature, logits2, and gate1, gate2 where there is a gate.
    Cloud: feature, probabilities.
    """
    from harmony.core.tensors import save_tensors  # noqa: PLC0415  (as below)

    save_tensors(path, vectors)


def sealed_vectors(folder: Path, manifest: DeviceManifest | CloudManifest) -> dict[str, NDArray[np.float32]]:
    """The test vectors of an opened bundle, folder or .tar; ArtifactCorrupt if they are others, or cannot be parsed."""
    from harmony.core.tensors import parse_tensors  # noqa: PLC0415  (as below)

    return _floats(parse_tensors(read_sealed(folder, manifest, VECTORS), folder / VECTORS), folder / VECTORS)


def read_vectors(path: Path) -> dict[str, NDArray[np.float32]]:
    """What `write_vectors` wrote; ArtifactCorrupt if it cannot be parsed. Hash the file first."""
    # A device that only answers reads no vectors, and need not carry the library (a megabyte of its 80).
    from harmony.core.tensors import load_tensors  # noqa: PLC0415

    return _floats(load_tensors(path), path)


def _floats(vectors: dict[str, NDArray[Any]], path: Path) -> dict[str, NDArray[np.float32]]:
    for name, value in vectors.items():
        if value.dtype != np.float32:
            raise ArtifactCorrupt(f"is {value.dtype}, not float32", where=path, field=name)
    return vectors
