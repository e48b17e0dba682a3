"""`load`: a data set by name or by path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harmony.core.cache import cache_dir
from harmony.core.data import cifar, fashion, mini
from harmony.core.data.bounded import LIMITS, Limits
from harmony.core.data.dataset import Dataset
from harmony.core.data.download import Progress, fetch
from harmony.core.data.folder import load_folder
from harmony.core.data.npz import load_npz
from harmony.core.data.sources import SOURCES
from harmony.core.errors import DataForeign, DataMissing

_Find = Callable[[Path], Path | None]
_Read = Callable[[Path, Limits], Dataset]

# name: how to find its folder in a place, how to read it, and the files that a place must hold
_NAMED: dict[str, tuple[_Find, _Read, tuple[str, ...]]] = {
    "fashion-mnist": (fashion.find_fashion, fashion.load_fashion, tuple(f"{name}[.gz]" for name in fashion.FILES)),
    "cifar10": (
        partial(cifar.find_cifar, cifar.CIFAR10),
        partial(cifar.load_cifar, cifar.CIFAR10),
        cifar.CIFAR10.files,
    ),
    "cifar100": (
        partial(cifar.find_cifar, cifar.CIFAR100),
        partial(cifar.load_cifar, cifar.CIFAR100),
        cifar.CIFAR100.files,
    ),
}
NAMES: tuple[str, ...] = (mini.NAME, *_NAMED)


def load(
    name_or_path: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    mirror: str | None = None,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> Dataset:
    """The data set `name_or_path`: one of NAMES, a folder ROOT/{train,test}/CLASS/*.png, or an .npz file.

    A named set is looked for in data_dir, where the system keeps it, and in the cache folder; with `download` it is
    fetched into the cache if it is in none of them (from `mirror`, $HARMONY_DATA_MIRROR or its publisher).
    Every DataError can come out of it, and StorageError where a download cannot be written.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataMissing("no such folder", where=data_dir, mend="correct --data-dir")
    if name_or_path == mini.NAME:
        return mini.load_mini()
    if name_or_path not in _NAMED:
        return _load_path(name_or_path, limits)
    find, read, files = _NAMED[name_or_path]
    places = _places(name_or_path, data_dir)
    folder = _first(find, places)
    if folder is None and download:
        for source in SOURCES[name_or_path]:
            fetch(source, cache_dir(), mirror=mirror, progress=progress)
        folder = find(cache_dir())
    if folder is None:
        raise DataMissing(
            f"not in {', '.join(map(str, places))}; needs {', '.join(files)}",
            where=name_or_path,
            mend="add --download, or name the folder with --data-dir",
        )
    return read(folder, limits)


def _places(name: str, data_dir: Path | None) -> list[Path]:
    own = [data_dir] if data_dir is not None else []
    system = [fashion.SYSTEM] if name == "fashion-mnist" else []
    return [*own, *system, cache_dir()]


def _first(find: _Find, places: list[Path]) -> Path | None:
    return next((folder for place in places if (folder := find(place)) is not None), None)


def _load_path(text: str, limits: Limits) -> Dataset:
    path = Path(text).expanduser()
    if path.is_dir():
        return load_folder(path, limits)
    if not path.exists():
        raise DataMissing(
            "neither a known data set nor a path",
            where=text,
            mend=f"known: {', '.join(NAMES)}; or give a folder or .npz",
        )
    if path.suffix.lower() != ".npz":
        raise DataForeign("neither a folder of images nor an .npz file", where=path, mend="see docs/data.md")
    return load_npz(path, limits)
