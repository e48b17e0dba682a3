"""Is a bundle whole, and does it answer as its test vectors promise?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import (
    VECTORS,
    CloudManifest,
    DeviceManifest,
    EngineName,
    Tolerance,
    open_bundle,
    sealed_vectors,
)
from harmony.core.errors import ArtifactCorrupt, EngineUnavailable, ParityFailed
from harmony.core.sealed import read_sealed, read_signatures
from harmony.device.engine import Engine, EngineChoice, open_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harmony.core.signing import Trust

Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class EngineCheck:
    """One engine on the test vectors. max_error: largest |engine − reference|, or None: not run, for `skipped`."""

    engine: str
    max_error: float | None
    skipped: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """A bundle whose every byte is as sealed and whose engines answer as promised.

    signed: ids of the keys that are said to have signed it; trusted: whether it was required that one of them is in a
    list of trusted keys, and its signature right.
    """

    bundle: Path
    kind: str
    run: str
    files: int
    bytes: int
    vectors: int
    engines: tuple[EngineCheck, ...]
    signed: tuple[str, ...] = ()
    trusted: bool = False

    @property
    def signature(self) -> str:
        """Of the signatures, in words."""
        if not self.signed:
            return "not signed"
        return f"signed by {', '.join(self.signed)}, {'trusted' if self.trusted else 'not checked'}"


def verify(bundle: Path, engine: EngineChoice | None = None, trust: Trust | None = None) -> VerifyReport:
    """Check a device or cloud bundle, a folder or a .tar: every byte, the signature of somebody in `trust`, the
    manifest, and the test vectors on `engine` (all, by default).

    An engine whose runtime is not installed is skipped, unless it was asked for; at least one must run. The engine
    native, which may have to be built, is one that has to be asked for.
    Raises ArtifactError, ContractMismatch, EngineUnavailable, ParityFailed (the output and the largest difference).
    """
    manifest = open_bundle(bundle, trust)
    found = (
        _verify_cloud(bundle, manifest) if isinstance(manifest, CloudManifest) else _verify(bundle, manifest, engine)
    )
    signatures = read_signatures(bundle)
    signed = () if signatures is None else tuple(signatures.by)
    return replace(found, signed=signed, trusted=trust is not None)


def _verify(bundle: Path, manifest: DeviceManifest, engine: EngineChoice | None) -> VerifyReport:
    vectors = _read(bundle, manifest, _expected(manifest))
    names: list[EngineChoice] = [*manifest.engines] if engine is None else [engine]
    checks = [_check_engine(bundle, manifest, vectors, name, asked=engine is not None) for name in names]
    if all(check.max_error is None for check in checks):
        raise EngineUnavailable(f"no engine could be run: {checks[0].skipped}", where=bundle)
    return _report(bundle, manifest, len(vectors["image"]), tuple(checks))


def _verify_cloud(bundle: Path, manifest: CloudManifest) -> VerifyReport:
    from harmony.device.onnx_engine import open_session  # noqa: PLC0415

    shapes = {"feature": manifest.feature.shape, "probabilities": (manifest.tokens,)}
    vectors = _read(bundle, manifest, shapes)
    session = open_session(read_sealed(bundle, manifest, manifest.program), bundle / manifest.program)
    (found,) = session.run(["probabilities"], {"feature": vectors["feature"]})
    error = _compare(vectors, {"probabilities": found}, manifest.tolerance, bundle)
    return _report(bundle, manifest, len(found), (EngineCheck(get_args(EngineName)[0], error),))


def _report(
    bundle: Path, manifest: DeviceManifest | CloudManifest, vectors: int, checks: tuple[EngineCheck, ...]
) -> VerifyReport:
    size = sum(entry.size for entry in manifest.files.values())
    return VerifyReport(bundle, manifest.format, manifest.run, len(manifest.files), size, vectors, checks)


def _check_engine(
    bundle: Path, manifest: DeviceManifest, vectors: Vectors, name: EngineChoice, *, asked: bool
) -> EngineCheck:
    try:
        engine = open_engine(bundle, manifest, name)
    except EngineUnavailable as error:
        if asked:
            raise
        return EngineCheck(name, None, str(error))
    return EngineCheck(name, _compare(vectors, _run(engine, vectors["image"]), manifest.tolerance, bundle))


def _run(engine: Engine, images: NDArray[np.float32]) -> Vectors:
    rows: dict[str, list[NDArray[np.float32]]] = {}
    for image in np.split(images, len(images)):
        hidden, logits1, gate1 = engine.exit1(image)
        row = {"hidden": hidden.copy(), "logits1": logits1.copy(), "gate1": gate1}
        feature, row["logits2"], row["gate2"] = engine.exit2(hidden)
        for key, value in (row | {"feature": feature}).items():
            if value is not None:
                rows.setdefault(key, []).append(value.copy())  # the engine writes its next answer here
    return {name: np.concatenate(values) for name, values in rows.items()}


def _expected(manifest: DeviceManifest) -> dict[str, tuple[int, ...] | None]:
    """Shape of one sample of every vector; None for what only the graph knows."""
    image, own, classes = manifest.image, (len(manifest.classes.own),), (len(manifest.classes.names),)
    shapes: dict[str, tuple[int, ...] | None] = {
        "image": (image.channels, image.height, image.width),
        "hidden": None,
        "logits1": own,
        "feature": manifest.feature.shape,
        "logits2": own,
    }
    return shapes | ({"gate1": classes, "gate2": classes} if manifest.gate else {})


def _read(
    bundle: Path, manifest: DeviceManifest | CloudManifest, shapes: Mapping[str, tuple[int, ...] | None]
) -> Vectors:
    path = bundle / VECTORS
    vectors = sealed_vectors(bundle, manifest)
    if set(vectors) != set(shapes):
        raise ArtifactCorrupt(f"has {sorted(vectors)}, a bundle needs {sorted(shapes)}", where=path)
    count = len(next(iter(vectors.values()))) if all(value.ndim for value in vectors.values()) else 0
    for name, shape in shapes.items():
        value = vectors[name]
        fits = shape is None or value.shape[1:] == shape
        if value.dtype != np.float32 or not count or len(value) != count or not fits:
            raise ArtifactCorrupt(f"has {value.dtype} {value.shape}", where=path, field=name)
    return vectors


def _compare(expected: Vectors, found: Vectors, tolerance: Tolerance, where: Path) -> float:
    """Largest absolute difference over all outputs; ParityFailed beyond the tolerance, or for NaN."""
    worst = 0.0
    for name, value in found.items():
        reference = expected[name]
        if value.shape != reference.shape:
            raise ParityFailed(f"gives {value.shape}, not {reference.shape}", where=where, field=name)
        error = np.abs(value - reference)
        if not (error <= tolerance.absolute + tolerance.relative * np.abs(reference)).all():
            raise ParityFailed(
                f"differs from the test vectors by up to {float(error.max()):.3g}", where=where, field=name,
                mend="export the bundle again; if it stays so, this machine's runtime computes otherwise",
            )  # fmt: skip
        worst = max(worst, float(error.max()))
    return worst
