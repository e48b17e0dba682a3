"""What a bundle is and holds, read from its files alone: nothing of it is run, and no runtime is needed. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harmony.core.bundle import CloudManifest, DeviceManifest, open_bundle
from harmony.core.onnx_graph import operators
from harmony.core.pte import read_methods
from harmony.core.sealed import MANIFEST, SEAL, SIGNATURES, digest_of, files_of, read_sealed, read_signatures, reading
from harmony.core.signing import Trust


@dataclass(frozen=True)
class ProgramInfo:
    """One graph. name: its role, or the method of a .pte; file: where it lies; operators: how many of each.

    delegated: share of the operators that delegates run; planned_bytes: memory that it asks for its activations,
    without what delegates allocate themselves. Both None where nobody says: an ONNX graph is planned by the runtime.
    """

    engine: str
    name: str
    file: str
    operators: dict[str, int]
    delegated: float | None = None
    planned_bytes: int | None = None


@dataclass(frozen=True)
class Inspection:
    """A whole bundle. digest: SHA-256 of its manifest; files: bytes by name; signed: ids of keys that say so; trusted:
    one of them had to be, and is, in a list of trusted keys."""

    bundle: Path
    digest: str
    manifest: DeviceManifest | CloudManifest
    files: dict[str, int]
    signed: tuple[str, ...]
    trusted: bool
    programs: tuple[ProgramInfo, ...]


def inspect(bundle: Path, trust: Trust | None = None) -> Inspection:
    """Look into a device or cloud bundle, a folder or a .tar, after every byte was checked. ArtifactError."""
    manifest = open_bundle(bundle, trust)
    signatures = read_signatures(bundle)
    with reading(bundle):
        files = files_of(bundle)
        own = [name for name in (MANIFEST, SEAL, SIGNATURES) if name in files.names()]
        sizes = {name: files.size(name) or 0 for name in [*own, *sorted(manifest.files)]}
    return Inspection(
        bundle=bundle,
        digest=digest_of(bundle),
        manifest=manifest,
        files=sizes,
        signed=() if signatures is None else tuple(signatures.by),
        trusted=trust is not None,
        programs=tuple(
            one for engine, role, name in _programs(manifest) for one in _look(bundle, manifest, engine, role, name)
        ),
    )


def _programs(manifest: DeviceManifest | CloudManifest) -> list[tuple[str, str, str]]:
    """(engine, role, file) of every graph."""
    if isinstance(manifest, CloudManifest):
        return [("onnxruntime", "back end", manifest.program)]
    graphs = [(str(engine), role, name) for engine, roles in manifest.engines.items() for role, name in roles.items()]
    if manifest.training is not None:
        graphs += [(engine, "head step", name) for engine, name in manifest.training.head.items()]
        if manifest.training.front_end is not None:
            graphs.append(("onnxruntime", "front end step", manifest.training.front_end))
    return graphs


def _look(
    bundle: Path, manifest: DeviceManifest | CloudManifest, engine: str, role: str, name: str
) -> list[ProgramInfo]:
    content, where = read_sealed(bundle, manifest, name), bundle / name
    if engine == "onnxruntime":
        return [ProgramInfo(engine, role, name, operators(content, where))]
    return [
        ProgramInfo(engine, one.name, name, one.operators, one.delegated, one.planned_bytes)
        for one in read_methods(content, where)
    ]
