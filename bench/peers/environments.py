"""Where a peer runs: in this environment if it is installed here, or in one of its own in the cache folder.

An environment is made only if that is asked for. A peer that is nowhere is named, with what to type.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from harmony.core.cache import CACHE_MEND, cache_dir
from harmony.core.errors import EngineUnavailable
from harmony.core.storage import storing

_SECONDS = 900


class Needs(NamedTuple):
    """packages: what pip installs; modules: what has to be there to import; whole: with all that they ask for, beside
    what is installed here, so that torch is not installed again. Otherwise nothing but the packages: pnnx says that it
    needs torch, which its converter does not."""

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    whole: bool = False


PEERS: Mapping[str, Needs] = {
    "openvino": Needs(("openvino", "numpy"), ("openvino",)),
    "ncnn": Needs(("ncnn", "pnnx", "numpy"), ("ncnn", "pnnx")),
    "litert": Needs(("litert-torch",), ("ai_edge_litert", "litert_torch"), whole=True),  # half a GB: jax, transformers
}
_HERE = "import site; site.addsitedir({place!r})"


class Environment(NamedTuple):
    """python: the interpreter; packages: where it finds what is installed."""

    python: Path
    packages: Path


def environment(name: str, *, install: bool) -> Environment:
    """Where a peer of PEERS is installed. install: into an environment of its own, if it is nowhere.

    EngineUnavailable, with what to type; StorageError.
    """
    needs = PEERS[name]
    if all(find_spec(module) is not None for module in needs.modules):
        return Environment(Path(sys.executable), _place_of(needs.modules[0]))
    folder = cache_dir() / f"peer-{name}"
    found = Environment(folder / "bin" / "python", _packages(folder))
    if not (folder / ".installed").is_file():
        if not install:
            mend = f"pip install {' '.join(needs.packages)}, or add --install for an environment of its own"
            raise EngineUnavailable("is not installed", mend=mend)
        _make(folder, found, needs)
    return found


def _make(folder: Path, found: Environment, needs: Needs) -> None:
    """Our own pip serves it: an environment without one is made in a moment."""
    with storing(folder, CACHE_MEND):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
        if needs.whole:
            (found.packages / "beside.pth").write_text(_HERE.format(place=str(_place_of("numpy"))))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(found.python), "install"]
        _run([*pip, "--quiet", *(() if needs.whole else ("--no-deps",)), *needs.packages])
        (folder / ".installed").touch()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it did not say why"]
        raise EngineUnavailable(f"cannot be installed: {said[-1][:200]}", mend="leave --install out")


def _packages(folder: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def _place_of(module: str) -> Path:
    spec = find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]).parent
