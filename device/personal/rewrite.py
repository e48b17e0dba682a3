"""The new version of a bundle: other weights, thresholds, own classes, test vectors; all else is carried over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harmony.core.archive import packing
from harmony.core.bundle import VECTORS, DeviceManifest, ExitName, sealed_vectors, write_vectors
from harmony.core.sealed import TAR, read_sealed, seal, sealing
from harmony.core.training import Training
from harmony.device.onnx_engine import open_session
from harmony.device.personal.front_end import EXITS, Heads, Programs, heads_of
from harmony.device.personal.steps import Floats

if TYPE_CHECKING:
    from harmony.core.signing_keys import SecretKey

Tensors = Mapping[ExitName, Mapping[str, Floats]]


def with_heads(training: Training, heads: Heads, tensors: Tensors | None = None) -> dict[ExitName, dict[str, Floats]]:
    """What changes in each exit's file: the heads, besides `tensors`."""
    changed: dict[ExitName, dict[str, Floats]] = {name: dict((tensors or {}).get(name, {})) for name in EXITS}
    for name, rows in zip(EXITS, heads, strict=True):
        head = heads_of(training, name)
        changed[name] |= {head.weight: rows.weight, head.bias: rows.bias}
    return changed


def rewritten(programs: Programs, tensors: Tensors, own: int) -> dict[ExitName, bytes]:
    """The ONNX files with other tensors. own: columns of the personal heads."""
    shapes = {"exit1": {"logits1": (1, own)}, "exit2": {"logits2": (1, own)}}
    return {name: programs[name].with_tensors(tensors[name], shapes[name]) for name in EXITS}


def write_version(
    bundle: Path,
    manifest: DeviceManifest,
    programs: Mapping[ExitName, bytes],
    place: Path,
    *,
    others: Mapping[str, bytes],
    keys: Sequence[SecretKey] = (),
) -> None:
    """Write the bundle whose manifest is given at `place`, whole or not at all: its ONNX files from `programs`, its
    test vectors as those answer the old ones' images, `others` by name, and what remains from `bundle`."""
    files = manifest.engines["onnxruntime"]
    mine = {files[name]: programs[name] for name in EXITS} | dict(others)
    with packing(place) if place.suffix == TAR else sealing(place) as draft:
        for name in _kept(manifest):
            (draft / name).write_bytes(mine[name] if name in mine else read_sealed(bundle, manifest, name))
        write_vectors(draft / VECTORS, _vectors(sealed_vectors(bundle, manifest)["image"], programs, bundle))
        seal(draft, manifest, keys)


def _kept(manifest: DeviceManifest) -> list[str]:
    roles = [name for engine in manifest.engines.values() for name in engine.values()]
    return roles + list(manifest.training.files.values() if manifest.training else ())


def _vectors(images: Floats, programs: Mapping[ExitName, bytes], where: Path) -> dict[str, Floats]:
    """What the new files answer, image by image, as the device runs them."""
    first, second = (open_session(programs[name], where) for name in EXITS)
    rows = []
    for image in np.split(images, len(images)):
        row = _run(first, {"image": image})
        rows.append({"image": image} | row | _run(second, {"hidden": row["hidden"]}))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _run(session: object, feed: Mapping[str, Floats]) -> dict[str, Floats]:
    names = [port.name for port in session.get_outputs()]  # type: ignore[attr-defined]
    return dict(zip(names, session.run(names, feed), strict=True))  # type: ignore[attr-defined]
