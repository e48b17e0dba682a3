"""What is served is data: nothing that lies in a bundle is run or fetched, and nothing in the service could do that."""

from __future__ import annotations

import ast
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import harmony.cloud
import harmony.core
from harmony.cloud.models import open_models
from harmony.core.bundle import VECTORS, open_cloud_bundle
from harmony.core.errors import ArtifactCorrupt
from harmony.core.sealed import seal, sealing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cloud.conftest import Bundle

PROGRAM = "back_end.onnx"
RUNS_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
FETCHES = {"requests", "httpx", "httpx2", "aiohttp", "urllib3", "urllib.request", "ftplib", "fsspec", "smart_open"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "joblib.load", "yaml.load", "os.system", "os.popen"}


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def plain(trap: Trap) -> bytes:
    return pickle.dumps(trap)


def of_torch(trap: Trap) -> bytes:
    """The form of torch.save: an archive with a pickle in it."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def of_numpy(trap: Trap) -> bytes:
    out = BytesIO()
    np.save(out, np.array([trap], object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", [PROGRAM, VECTORS])
@pytest.mark.parametrize("form", [plain, of_torch, of_numpy])
def test_no_pickle_is_unpickled(bundle: Bundle, tmp_path: Path, name: str, form: Callable[[Trap], bytes]) -> None:
    """Sealed as a bundle should be: whoever makes one can put anything into it."""
    mark = tmp_path / "was run"
    with sealing(tmp_path / "cloud") as draft:
        for file in (PROGRAM, VECTORS):
            content = form(Trap(mark)) if file == name else (bundle.folder / file).read_bytes()
            (draft / file).write_bytes(content)
        seal(draft, open_cloud_bundle(bundle.folder))
    with pytest.raises(ArtifactCorrupt, match=name):
        open_models(tmp_path / "cloud")
    assert not mark.exists()


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every source of the service, and of what it may import of the rest."""
    rooms = [Path(base) for room in (harmony.cloud, harmony.core) for base in room.__path__]
    found = {path: ast.parse(path.read_text()) for room in rooms for path in room.rglob("*.py")}
    assert len(found) > 60
    return found


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return names


def called(tree: ast.AST) -> set[str]:
    found = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    words = {
        f"{one.arg}={ast.unparse(one.value)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for one in node.keywords
    }
    return found | words


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(plain(Trap(tmp_path / "one")))  # noqa: S301  # our own
    np.load(BytesIO(of_numpy(Trap(tmp_path / "two"))), allow_pickle=True)
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


def test_the_service_has_no_means_to_run_what_it_reads(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        assert not imported(tree) & RUNS_CODE, path
        assert not called(tree) & (CALLS | {"allow_pickle=True", "shell=True"}), path


def test_the_service_has_no_means_to_fetch(trees: dict[Path, ast.Module]) -> None:
    """core.data downloads data sets for training, by name; the service does not import it."""
    for path, tree in trees.items():
        names = imported(tree)
        if path.parent.name != "data":
            assert not names & FETCHES, path
        if Path(harmony.cloud.__path__[0]) in path.parents:
            assert not any(name.startswith("harmony.core.data") for name in names), path
