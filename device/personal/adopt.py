"""What was learnt becomes the bundle's next version: written, checked as anybody would, put into use. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harmony.core.bundle import DeviceManifest, EngineName, Tolerance
from harmony.core.errors import ParityFailed
from harmony.core.sealed import FileName, digest_of, read_sealed
from harmony.core.training import Personal
from harmony.device.check import verify
from harmony.device.native_build import find_native
from harmony.device.personal.lesson import Taught, Wish
from harmony.device.personal.packed_program import replaced
from harmony.device.personal.rewrite import write_version
from harmony.device.personal.teach import Pupil
from harmony.device.personal.versions import Versions, version_of

Engines = dict[EngineName, dict[str, FileName]]


def adopt(pupil: Pupil, wish: Wish, taught: Taught, versions: Versions) -> DeviceManifest:
    """The manifest of the version that is in use now. An ExecuTorch program that cannot be changed here, or that then
    answers otherwise than the new ONNX files, is left out of it."""
    current, program = version_of(pupil.manifest), _program(pupil, wish, taught)
    place = versions.place(current)
    manifest = _write(pupil, wish, taught, place, program)
    if program is not None and not _agrees(place):
        versions.discard(current)
        manifest = _write(pupil, wish, taught, place, None)
    versions.adopt(current)
    return manifest


def _write(pupil: Pupil, wish: Wish, taught: Taught, place: Path, program: bytes | None) -> DeviceManifest:
    """Write the version at `place`, and see that it answers as it says."""
    engines: Engines = {"onnxruntime": pupil.manifest.engines["onnxruntime"]}
    others = {}
    if program is not None:
        engines["executorch"] = pupil.manifest.engines["executorch"]
        others[engines["executorch"]["program"]] = program
    manifest = _next_manifest(pupil, wish, taught, engines)
    write_version(pupil.bundle, manifest, taught.files, place, others=others, keys=wish.keys)
    verify(place, "onnxruntime")
    return manifest


def _agrees(place: Path) -> bool:
    try:
        verify(place, "native")
    except ParityFailed:
        return False
    return True


def _program(pupil: Pupil, wish: Wish, taught: Taught) -> bytes | None:
    """The ExecuTorch program with the new heads; None if there is none, or if none can be made and checked here."""
    if "executorch" not in pupil.manifest.engines or wish.what != "head" or find_native() is None:
        return None
    program = read_sealed(pupil.bundle, pupil.manifest, pupil.manifest.engines["executorch"]["program"])
    old, new = ([*heads[0], *heads[1]] for heads in (taught.old_heads, taught.heads))
    return replaced(program, zip(old, new, strict=True))


def _next_manifest(pupil: Pupil, wish: Wish, taught: Taught, engines: Engines) -> DeviceManifest:
    old, data = pupil.manifest, pupil.data
    parent = digest_of(pupil.bundle)
    personal = Personal(
        version=version_of(old) + 1,
        parent=parent,
        origin=parent if old.personal is None else old.personal.origin,
        what=wish.what,
        engine=wish.engine,
        train_images=len(data.train),
        holdout_images=len(data.holdout),
        before=taught.before.accuracy,
        after=taught.after.accuracy,
    )
    weights = sum(one.weight.shape[1] + 1 for one in taught.heads) * (len(data.own) - len(old.classes.own))
    changes = {
        "classes": old.classes.model_copy(update={"own": data.own}),
        "exits": taught.after.exits,
        "held_out": taught.after.held_out if old.held_out is not None else None,
        "engines": engines,
        "tolerance": _tolerance(old, taught),
        "parameters": old.parameters + weights,
        "personal": personal,
    }
    return old.model_copy(update=changes)


def _tolerance(old: DeviceManifest, taught: Taught) -> Tolerance:
    """What 8 bits err in an embedding reaches the logits times a head's weights: as these grow, so may errors."""
    if old.precision == "fp32":
        return old.tolerance
    largest = [[float(np.abs(one.weight).sum(1).max()) for one in heads] for heads in (taught.old_heads, taught.heads)]
    growth = max(new / max(before, 1e-9) for before, new in zip(*largest, strict=True))
    return old.tolerance.model_copy(update={"absolute": min(1.0, old.tolerance.absolute * max(1.0, growth))})
