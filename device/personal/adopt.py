"""What was learnt becomes the bundle's next version: written, checked as anybody would, put into use. No torch."""

from __future__ import annotations

from harmony.core.bundle import DeviceManifest, EngineName
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
    """The manifest of the version that is in use now."""
    engines: Engines = {"onnxruntime": pupil.manifest.engines["onnxruntime"]}
    program = _program(pupil, wish, taught)
    if program is not None:
        engines["executorch"] = pupil.manifest.engines["executorch"]
    current, manifest = version_of(pupil.manifest), _next_manifest(pupil, wish, taught, engines)
    others = {} if program is None else {engines["executorch"]["program"]: program}
    place = versions.place(current)
    write_version(pupil.bundle, manifest, taught.files, place, others=others, keys=wish.keys)
    verify(place, "onnxruntime")
    if program is not None:
        verify(place, "native")
    versions.adopt(current)
    return manifest


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
    rows = 2 * (pupil.training.embedding + 1) * (len(data.own) - len(old.classes.own))
    changes = {
        "classes": old.classes.model_copy(update={"own": data.own}),
        "exits": taught.after.exits,
        "held_out": taught.after.held_out if old.held_out is not None else None,
        "engines": engines,
        "parameters": old.parameters + rows,
        "personal": personal,
    }
    return old.model_copy(update=changes)
