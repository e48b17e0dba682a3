"""One cell: trained where it stopped, looked at between rounds, evaluated, and kept as one small file.

CELL/run/          the training run (harmony.train.runs); its states go once the cell is finished
CELL/diary.json    what was seen while it trained: looks at the models, seconds, commits
CELL/cell.json     the result, when the cell is finished
CELL/error.json    how the last attempt ended, if in an error
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError

from harmony.bench.experiment.grid import Cell
from harmony.bench.experiment.results import CellResult, rounded
from harmony.core.config import make_config
from harmony.core.data import Dataset, load
from harmony.core.errors import ArtifactCorrupt, RunError
from harmony.core.sealed import storing, write_atomically
from harmony.train import Evaluation, Look, Progress, evaluate, train
from harmony.train.diagnose import Diagnosis, Midway, diagnose, diagnose_between, midway
from harmony.train.federation import Federation
from harmony.train.method import Trained
from harmony.train.state import latest_state
from harmony.train.test_images import TestImages, test_images

RUN, DIARY, RESULT, ERROR = "run", "diary.json", "cell.json", "error.json"
CLIENT_COLUMNS, CURVE_COLUMNS = ("architecture", "auroc"), ("overall", "id", "ood", "server_ood")
ModelT = TypeVar("ModelT", bound=BaseModel)


class Diary(BaseModel):
    """What a cell saw so far.

    seconds: (CPU, wall) of training by rounds done, counted over all attempts; losses: of the whole run, at its end.
    """

    commits: list[str | None] = Field(default_factory=list)
    seconds: dict[int, tuple[float, float]] = Field(default_factory=dict)
    midway: dict[int, Midway] = Field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    before: Diagnosis | None = None


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    commit: str | None,
    data_dir: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> CellResult:
    """Finish a cell in `folder`, from wherever it stopped; a finished one is only read.

    commit: of the code that runs. Raises what training raises, and RunError if another process works on the cell.
    """
    with _locked(folder):
        if (done := finished(cell, folder)) is not None:
            return done
        dataset = _images(cell.config.data.name, data_dir or _folder_of(cell))
        tests = test_images(cell.config, dataset)
        writer = _Writer(cell, folder / DIARY, tests, commit)
        run = folder / RUN
        look = Look(cell.evaluate_every, writer.look)
        checkpoint = train(
            cell.config, run, resume=run.exists(), dataset=dataset, on_progress=writer.follow(on_progress), look=look
        )
        result = _judge(cell, checkpoint, dataset, tests, writer.finish(run), commit)
        write_atomically(folder / RESULT, _json(result))
        (folder / ERROR).unlink(missing_ok=True)
        shutil.rmtree(run / "state", ignore_errors=True)
    return result


def finished(cell: Cell, folder: Path) -> CellResult | None:
    """The cell's result, or None if it is not finished.

    ArtifactCorrupt if the file is damaged; RunError if a default that the cell relies on has changed since.
    """
    result = _read(folder / RESULT, CellResult)
    if result is not None and make_config(result.config, where=folder / RESULT) != cell.config:
        mend = "remove the folder, or choose another --out"
        raise RunError("was finished with other settings, by another version", where=folder, mend=mend)
    if result is None:
        return None
    # The same run may stand at several places of the grid: this one's names are the caller's.
    names = {"data": cell.data, "split": cell.split, "family": cell.family, "method": cell.method, "role": cell.role}
    return result.model_copy(update=names)


def reopen(cells: Sequence[Cell], home: Path) -> None:
    """Forget the results of finished cells, not their training: they will be evaluated anew."""
    for cell in cells:
        with storing(home / cell.folder):
            (home / cell.folder / RESULT).unlink(missing_ok=True)


def standing(cell: Cell, home: Path) -> str:
    """How far a cell is, in a word or a line."""
    folder = home / cell.folder
    if finished(cell, folder) is not None:
        return "done"
    if (error := noted_error(folder)) is not None:
        return error
    diary = _read(folder / DIARY, Diary)
    return "not begun" if diary is None else f"round {max(diary.seconds, default=0)}"


def note_error(folder: Path, error: str) -> None:
    """Keep how an attempt ended."""
    write_atomically(folder / ERROR, json.dumps({"error": error}).encode())


def noted_error(folder: Path) -> str | None:
    """How the last attempt ended, if in an error."""
    try:
        return str(json.loads((folder / ERROR).read_bytes())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
            except BlockingIOError:
                raise RunError("another process works on this cell", where=folder, mend="wait for it") from None
            yield


@lru_cache(maxsize=1)
def _images(name: str, data_dir: Path | None) -> Dataset:
    """A worker mostly runs cells of one data set in a row."""
    return load(name, data_dir=data_dir)


def _folder_of(cell: Cell) -> Path | None:
    return Path(cell.config.data.folder) if cell.config.data.folder else None


class _Writer:
    """Keeps the diary. What it does itself is not counted as training."""

    def __init__(self, cell: Cell, path: Path, tests: TestImages, commit: str | None) -> None:
        self.cell, self.path, self.tests = cell, path, tests
        self.diary = _read(path, Diary) or Diary()
        if commit not in self.diary.commits:
            self.diary.commits.append(commit)
        self.earlier = self.started = (0.0, 0.0)
        self.training = False

    def look(self, done: int, trained: Trained, members: Federation) -> None:
        """Called between rounds with the models."""
        begin = _clock()
        self.diary.midway[done] = midway(done, trained, members, self.tests, self.cell.look_images)
        if done == 0 and self.cell.diagnose:
            self.diary.before = diagnose_between(trained, members, self.tests)
        self._save()
        self.started = _plus(self.started, _since(begin))

    def follow(self, on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """A listener that takes the time at every state, and passes on what it hears."""

        def listen(progress: Progress) -> None:
            if not self.training:
                self._start_at(progress.done)
            elif progress.done % self.cell.config.checkpoint_every == 0:
                self._note_time(progress.done)
            on_progress(progress)

        return listen

    def finish(self, run: Path) -> Diary:
        """The whole diary; `run` is trained, now or by an earlier attempt."""
        if self.training:
            self._note_time(self.cell.config.rounds)
        if (state := latest_state(run)) is not None:
            self.diary.losses = state[0].losses
            self._save()
        return self.diary

    def _start_at(self, done: int) -> None:
        """Rounds before this one were paid for by earlier attempts."""
        known = [rounds for rounds in self.diary.seconds if rounds <= done]
        self.earlier = self.diary.seconds[max(known)] if known else (0.0, 0.0)
        self.started, self.training = _clock(), True

    def _note_time(self, done: int) -> None:
        self.diary.seconds[done] = _plus(self.earlier, _since(self.started))
        self._save()

    def _save(self) -> None:
        write_atomically(self.path, _json(self.diary))


def _clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _since(begin: tuple[float, float]) -> tuple[float, float]:
    now = _clock()
    return now[0] - begin[0], now[1] - begin[1]


def _plus(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first[0] + second[0], first[1] + second[1]


def _judge(
    cell: Cell, checkpoint: Path, dataset: Dataset, tests: TestImages, diary: Diary, commit: str | None
) -> CellResult:
    evaluation = evaluate(checkpoint, dataset, rhos=cell.rhos, seed=cell.seed)
    after = diagnose(checkpoint, tests) if cell.diagnose else None
    cpu, wall = diary.seconds.get(cell.config.rounds, (0.0, 0.0))
    return CellResult(
        data=cell.data,
        split=cell.split,
        family=cell.family,
        method=cell.method,
        role=cell.role,
        seed=cell.seed,
        folder=cell.folder,
        config=cell.config.model_dump(mode="json"),
        evaluation=_compact(evaluation),
        losses=diary.losses,
        midway=tuple(diary.midway[done] for done in sorted(diary.midway)),
        before=diary.before,
        after=after,
        cpu_seconds=cpu,
        wall_seconds=wall,
        harmony_version=importlib.metadata.version("harmony-sfl"),
        torch_version=torch.__version__,
        commits=tuple(dict.fromkeys((*diary.commits, commit))),
    )


def _compact(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation; of the clients only what tables and plots show, in columns."""
    whole = evaluation.model_dump(mode="json")
    rows = whole["clients"]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in CLIENT_COLUMNS}
    for end, at in (("first", 0), ("last", -1)):
        columns[end] = {name: [row["curve"][at][name] for row in rows] for name in CURVE_COLUMNS}
    return whole | {"clients": columns}


def _json(model: BaseModel) -> bytes:
    return json.dumps(rounded(model.model_dump(mode="json")), separators=(",", ":"), allow_nan=False).encode()


def _read(path: Path, kind: type[ModelT]) -> ModelT | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ArtifactCorrupt(f"{error.errors()[0]['msg']}", where=path, mend="remove it to do it again") from None
