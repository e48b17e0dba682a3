"""Result folders: whole or not at all, and nothing but results is ever replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harmony.bench.result_files import JSON_FILE
from harmony.core.errors import RunExists
from harmony.core.storage import sealing, storing


def require_writable(folder: Path, kind: str, *, replace: bool) -> None:
    """RunExists if the folder is there, unless `replace` is given and its results.json is of the format `kind`.

    Called before anything is measured, so that minutes of work do not end in this error.
    """
    if not folder.exists():
        return
    if not replace:
        raise RunExists("this folder is there already", where=folder, mend="choose another --out, or add --force")
    if not _is_result(folder, kind):
        raise RunExists(f"holds something else than results of {kind}", where=folder, mend="choose another --out")


def _is_result(folder: Path, kind: str) -> bool:
    try:
        value = json.loads((folder / JSON_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == kind


@contextmanager
def result_folder(folder: Path, kind: str, *, replace: bool) -> Iterator[Path]:
    """A draft to write into, which becomes `folder` at the end of the block; if the block raises, nothing changes."""
    folder = folder.absolute()
    require_writable(folder, kind, replace=replace)
    if not folder.exists():
        with sealing(folder) as draft:
            yield draft
        return
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{role}") for role in ("new", "old"))
    with sealing(fresh) as draft:
        yield draft
    with storing(folder):
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old)
