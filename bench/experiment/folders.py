"""Where a cell lies on disk, and how far it is.

CELL/settings.json  what the cell is: its training config, and how it is looked at
CELL/run/           the training run (harmony.train.runs); its states go once the cell is finished
CELL/diary.json     what was seen while it trained: looks at the models, seconds, commits
CELL/cell.json      the result, when the cell is finished
CELL/error.json     how the last attempt ended, if in an error

A cell finds its folder by what its settings mean, not by their text: a setting that did not exist yet when the folder
was made counts as its default. A default that has changed since makes another cell.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from harmony.bench.experiment.grid import Cell, meaning_of
from harmony.bench.experiment.results import CellResult, rounded
from harmony.core.config import recorded_config
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ConfigError, RunError
from harmony.core.storage import storing, write_atomically
from harmony.train.diagnose import Diagnosis, Midway

SETTINGS, RUN, DIARY, RESULT, ERROR = "settings.json", "run", "diary.json", "cell.json", "error.json"
ModelT = TypeVar("ModelT", bound=BaseModel)


class Settings(BaseModel):
    """What a cell is."""

    config: dict[str, Any]
    looks: dict[str, Any]


class Diary(BaseModel):
    """What a cell saw so far.

    seconds: (CPU, wall) of training by rounds done, counted over all attempts; processor: of the last of them; losses:
    of the whole run, at its end.
    """

    commits: list[str | None] = Field(default_factory=list)
    seconds: dict[int, tuple[float, float]] = Field(default_factory=dict)
    processor: str | None = None
    midway: dict[int, Midway] = Field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    before: Diagnosis | None = None


class Note(BaseModel):
    """How an attempt ended."""

    error: str


def folder_of(cell: Cell, home: Path) -> Path:
    """The folder below `home` that holds this cell, or will."""
    for path in sorted(home.glob(f"*-s{cell.seed}-*/{SETTINGS}")):
        if _meaning(path) == cell.meaning:
            return path.parent
    return home / cell.key


@lru_cache(maxsize=4096)
def _meaning(path: Path) -> str | None:
    """What the cell in a folder means to this version; None if it knows no such settings (any more)."""
    try:
        found = read_json(path, Settings)
        return None if found is None else meaning_of(recorded_config(found.config), found.looks)
    except (ArtifactCorrupt, ConfigError):
        return None


@contextmanager
def claimed(cell: Cell, home: Path) -> Iterator[Path]:
    """The cell's folder, made if need be, and this process's own within the block; RunError if it is another's."""
    folder = folder_of(cell, home)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
            except BlockingIOError:
                raise RunError("another process works on this cell", where=folder, mend="wait for it") from None
            if not (folder / SETTINGS).exists():
                write_json(folder / SETTINGS, Settings(config=cell.config.model_dump(mode="json"), looks=cell.looks))
            yield folder


def finished(cell: Cell, home: Path) -> CellResult | None:
    """The cell's result under the names that the cell has now, or None if it is not finished.

    ArtifactCorrupt if the file is damaged.
    """
    result = read_json(folder_of(cell, home) / RESULT, CellResult)
    names = {"data": cell.data, "split": cell.split, "family": cell.family, "method": cell.method, "role": cell.role}
    return None if result is None else result.model_copy(update=names)


def require_finished(cell: Cell, home: Path) -> CellResult:
    """The cell's result; ArtifactMissing if it is not finished."""
    result = finished(cell, home)
    if result is None:
        raise ArtifactMissing("has no result", where=folder_of(cell, home), mend="run the experiment again")
    return result


def unfinished(cells: Sequence[Cell], home: Path) -> list[Cell]:
    """The cells without a result file; whether those that have one can read it, they find out themselves."""
    return [cell for cell in cells if not (folder_of(cell, home) / RESULT).exists()]


def standing(cell: Cell, home: Path) -> str:
    """How far a cell is, in a word or a line."""
    if finished(cell, home) is not None:
        return "done"
    if (error := noted_error(cell, home)) is not None:
        return error
    diary = read_json(folder_of(cell, home) / DIARY, Diary)
    return "not begun" if diary is None else f"round {max(diary.seconds, default=0)}"


def reopen(cells: Sequence[Cell], home: Path) -> None:
    """Forget the results of finished cells, not their training: they will be evaluated anew."""
    for cell in cells:
        folder = folder_of(cell, home)
        with storing(folder):
            (folder / RESULT).unlink(missing_ok=True)


def note_error(cell: Cell, home: Path, error: str) -> None:
    """Keep how an attempt ended."""
    write_json(folder_of(cell, home) / ERROR, Note(error=error))


def noted_error(cell: Cell, home: Path) -> str | None:
    """How the last attempt ended, if in an error."""
    found = read_json(folder_of(cell, home) / ERROR, Note)
    return None if found is None else found.error


def write_json(path: Path, model: BaseModel) -> None:
    """Write a model without spaces, floats rounded; StorageError if the disk refuses."""
    text = json.dumps(rounded(model.model_dump(mode="json")), separators=(",", ":"), allow_nan=False)
    write_atomically(path, text.encode())


def read_json(path: Path, kind: type[ModelT]) -> ModelT | None:
    """Read what `write_json` wrote; None if it is not there, ArtifactCorrupt if it is not that."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ArtifactCorrupt(error.errors()[0]["msg"], where=path, mend="remove it to do it again") from None
