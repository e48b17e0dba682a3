"""One cell: trained where it stopped, looked at between rounds, evaluated, and kept as one small file.

Its folder is described in `harmony.bench.experiment.folders`.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from harmony.bench.experiment.folders import (
    DIARY,
    ERROR,
    RESULT,
    RUN,
    Diary,
    claimed,
    finished,
    read_json,
    require_finished,
    write_json,
)
from harmony.bench.experiment.grid import Cell
from harmony.bench.experiment.results import CellResult
from harmony.bench.host import cpu_name
from harmony.core.data import Dataset, load
from harmony.train import Evaluation, Look, Progress, evaluate, resumed_config, train
from harmony.train.diagnose import diagnose, diagnose_between, midway
from harmony.train.federation import Federation, federation
from harmony.train.gates import judge_gates
from harmony.train.method import Trained
from harmony.train.runs import CONFIG
from harmony.train.state import latest_state
from harmony.train.test_images import TestImages, test_images
from harmony.train.traffic import traffic

CLIENT_COLUMNS, CURVE_COLUMNS = ("architecture", "auroc"), ("overall", "id", "ood", "server_ood")


def run_cell(
    cell: Cell,
    home: Path,
    *,
    commit: str | None,
    data_dir: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> CellResult:
    """Finish a cell in its folder below `home`, from wherever it stopped; a finished one is only read.

    commit: of the code that runs. Raises what training raises, and RunError if another process works on the cell.
    """
    with claimed(cell, home) as folder:
        if (done := finished(cell, home)) is not None:
            return done
        dataset = _images(cell.config.data.name, data_dir or _folder_of(cell))
        tests = test_images(cell.config, dataset)
        writer, run = _Writer(cell, folder / DIARY, tests, commit), folder / RUN
        checkpoint = train(
            resumed_config(run) if (run / CONFIG).exists() else cell.config,
            run,
            resume=run.exists(),
            dataset=dataset,
            on_progress=writer.follow(on_progress),
            look=Look(cell.evaluate_every, writer.look),
        )
        write_json(folder / RESULT, _judge(checkpoint, dataset, writer, commit))
        (folder / ERROR).unlink(missing_ok=True)
        shutil.rmtree(run / "state", ignore_errors=True)
        return require_finished(cell, home)  # as it was written: the same digits now and whenever it is read


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
        self.diary = read_json(path, Diary) or Diary()
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
        self.diary.processor = cpu_name(Path("/proc/cpuinfo"))
        self.diary.seconds[done] = _plus(self.earlier, _since(self.started))
        self._save()

    def _save(self) -> None:
        write_json(self.path, self.diary)


def _clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _since(begin: tuple[float, float]) -> tuple[float, float]:
    now = _clock()
    return now[0] - begin[0], now[1] - begin[1]


def _plus(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first[0] + second[0], first[1] + second[1]


def _judge(checkpoint: Path, dataset: Dataset, writer: _Writer, commit: str | None) -> CellResult:
    cell, diary = writer.cell, writer.finish(checkpoint.parent)
    evaluation = evaluate(checkpoint, dataset, rhos=cell.rhos, seed=cell.seed)
    after = diagnose(checkpoint, writer.tests) if cell.diagnose else None
    gates = judge_gates(checkpoint, dataset, seed=cell.seed) if cell.gates else ()
    cpu, wall = diary.seconds.get(cell.config.rounds, (0.0, 0.0))
    return CellResult(
        data=cell.data,
        split=cell.split,
        family=cell.family,
        method=cell.method,
        role=cell.role,
        seed=cell.seed,
        folder=checkpoint.parent.parent.name,
        config=cell.config.model_dump(mode="json"),
        evaluation=_compact(evaluation),
        losses=diary.losses,
        midway=tuple(diary.midway[done] for done in sorted(diary.midway)),
        before=diary.before,
        after=after,
        cpu_seconds=cpu,
        wall_seconds=wall,
        processor=diary.processor,
        gates=gates,
        traffic=traffic(federation(cell.config, dataset)),
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
