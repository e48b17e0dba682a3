"""From folders to models: which bundles a path holds, and everything that is checked before one is served."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harmony.cloud.program import Floats, Program, Runs, prove
from harmony.core.bundle import VECTORS, CloudManifest, Tolerance, format_of, open_cloud_bundle, sealed_vectors
from harmony.core.errors import ArtifactError, ArtifactMissing, ConfigError, ContractMismatch
from harmony.core.onnx_graph import require_plain
from harmony.core.sealed import MANIFEST, TAR, read_sealed
from harmony.core.signing import Trust
from harmony.core.spec import FeatureSpec

VERSION = "1"
CLOUD_FOLDER = "cloud"
DEMO_FOLDER = "bundles"


BFLOAT16 = Tolerance(absolute=0.05, relative=0)
"""How far a probability may lie from the reference's in bfloat16, which keeps 8 bits of a number."""


class Weights(NamedTuple):
    """The weights of a run, for PyTorch. checkpoint: a folder; bfloat16: compute in it."""

    checkpoint: Path
    bfloat16: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A back end that passed its checks. Batches of it are run by one thread."""

    name: str
    version: str
    folder: Path
    manifest: CloudManifest
    program: Runs

    @property
    def feature(self) -> FeatureSpec:
        """The cut contract that a caller's feature must meet."""
        return self.manifest.feature

    @property
    def tokens(self) -> int:
        """Columns of `probabilities`."""
        return self.manifest.tokens


def open_models(path: Path, trust: Trust | None = None) -> tuple[ServedModel, ...]:
    """Every model at `path`: a cloud bundle, a folder of several, or an export folder with `cloud/` in it.

    trust: keys of which one must have signed each. Raises ArtifactMissing, ArtifactCorrupt, ArtifactTooNew or
    ArtifactUntrusted for a bundle that is not whole, ContractMismatch if its graph is not what its manifest says,
    ParityFailed if its test vectors come out differently, ConfigError if two bundles have the same name.
    """
    models = tuple(open_model(folder, trust=trust) for folder in find_bundles(path))
    folders: dict[str, Path] = {}
    for model in models:
        if model.name in folders:
            raise ConfigError(
                f"is named '{model.name}', and so is {folders[model.name]}",
                where=model.folder,
                mend="serve one of them",
            )
        folders[model.name] = model.folder
    return models


def find_bundles(path: Path) -> tuple[Path, ...]:
    """Folders, or .tar, of the cloud bundles at `path`, by name. ArtifactMissing if there is none."""
    for single in (path, path / CLOUD_FOLDER, path / f"{CLOUD_FOLDER}{TAR}", path / DEMO_FOLDER / CLOUD_FOLDER):
        if (single / MANIFEST).exists() or (single.suffix == TAR and single.is_file()):
            return (single,)
    if not path.is_dir():
        raise ArtifactMissing("no such folder, or .tar", where=path, mend="check the path")
    found = tuple(sorted(child for child in path.iterdir() if _is_cloud_bundle(child)))
    if not found:
        raise ArtifactMissing("no cloud bundle here", where=path, mend="give the folder that 'harmony export' wrote")
    return found


def _is_cloud_bundle(folder: Path) -> bool:
    """Whether the folder or .tar says that it is one; whether that is true is checked when it is opened."""
    try:
        return format_of(folder) == CloudManifest.FORMAT
    except ArtifactError:
        return False


def open_model(
    folder: Path, version: str = VERSION, trust: Trust | None = None, weights: Weights | None = None
) -> ServedModel:
    """Check one cloud bundle's signature and every byte, load it, and have it answer its own test vectors.

    weights: run these in PyTorch instead of the bundle's ONNX file; the bundle's test vectors hold for them, too.
    """
    manifest = open_cloud_bundle(folder, trust)
    vectors = sealed_vectors(folder, manifest)
    if "feature" in vectors and vectors["feature"].shape[1:] != manifest.feature.shape:
        raise ContractMismatch(
            f"the test vectors have {vectors['feature'].shape[1:]}, the manifest {manifest.feature}",
            where=folder / VECTORS,
        )
    load = _onnx_program if weights is None else partial(_torch_program, weights)
    return ServedModel(manifest.model, version, folder, manifest, load(folder, manifest, vectors))


def _onnx_program(folder: Path, manifest: CloudManifest, vectors: dict[str, Floats]) -> Runs:
    path = folder / manifest.program
    content = read_sealed(folder, manifest, manifest.program)
    require_plain(content, path)
    program = Program(content, manifest, path)
    prove(program, vectors, manifest.tolerance, folder / VECTORS)
    return program


def _torch_program(weights: Weights, folder: Path, manifest: CloudManifest, vectors: dict[str, Floats]) -> Runs:
    from harmony.cloud.torch_program import TorchProgram  # noqa: PLC0415  (half a second, and 200 MB)

    program = TorchProgram(weights.checkpoint, manifest)
    prove(program, vectors, manifest.tolerance, folder / VECTORS)
    if weights.bfloat16:
        program.to_bfloat16()
        prove(program, vectors, BFLOAT16, folder / VECTORS)
    return program
