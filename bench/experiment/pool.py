"""Cells side by side: a few worker processes, each taking the next cell as soon as it has finished one.

Two processes with one compute thread each do more than one with two threads (see harmony.train.side_by_side). A worker
that dies costs the cell it was at, not the others; all of them end with this process.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from harmony.bench.experiment.cell import run_cell
from harmony.bench.experiment.folders import note_error
from harmony.bench.experiment.grid import Cell
from harmony.bench.experiment.results import CellResult
from harmony.core.errors import HarmonyError
from harmony.train import Progress
from harmony.train.side_by_side import end_with_parent

Pipe: TypeAlias = "Connection[Any, Any]"


class Event(NamedTuple):
    """Something happened to a cell: a round (progress), its end (result), or its error in one line."""

    cell: Cell
    progress: Progress | None = None
    result: CellResult | None = None
    error: str | None = None


def run_cells(
    cells: Sequence[Cell],
    home: Path,
    *,
    jobs: int = 2,
    commit: str | None = None,
    data_dir: Path | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    """Finish every cell in a folder of its own below `home`. An error is noted in the cell's folder and reported.

    Cells of one key are the same run: the first is run. Whatever ends the wait (Ctrl-C too) ends all.
    """
    unlike = {cell.key: cell for cell in reversed(cells)}
    pool = _Pool(deque(reversed(unlike.values())), (str(home), commit, data_dir))
    try:
        while pool.fill(jobs):
            for event in pool.events():
                if event.error is not None:
                    note_error(event.cell, home, event.error)
                on_event(event)
    finally:
        pool.kill()


class _Pool:
    """Workers, each with the pipe to it and the cell that it is at."""

    def __init__(self, waiting: deque[Cell], settings: tuple[str, str | None, Path | None]) -> None:
        self.waiting, self.settings = waiting, settings
        self.context = multiprocessing.get_context("spawn")
        self.busy: dict[Pipe, tuple[Any, Cell]] = {}

    def fill(self, jobs: int) -> bool:
        """Start workers while there are cells for them; False when everything is done."""
        while self.waiting and len(self.busy) < jobs:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_work, args=(theirs, *self.settings), daemon=True)
            process.start()
            theirs.close()  # the worker holds the only other end, so that its death is the end of the stream
            self._give(ours, process)
        return bool(self.busy)

    def _give(self, pipe: Pipe, process: Any) -> None:
        self.busy[pipe] = process, self.waiting.popleft()
        with suppress(BrokenPipeError):  # it died meanwhile: the end of its stream says so
            pipe.send(self.busy[pipe][1])

    def events(self) -> Iterator[Event]:
        """What has been said since; a worker that finished its cell gets the next one."""
        for pipe in [one for one in wait(list(self.busy)) if isinstance(one, Connection)]:
            process, cell = self.busy[pipe]
            try:
                event = Event(cell, *pipe.recv())
            except (EOFError, ConnectionResetError):
                yield Event(cell, error=self._buried(pipe))
                continue
            if event.progress is None:
                if self.waiting:
                    self._give(pipe, process)
                else:
                    self._dismiss(pipe)
            yield event

    def _buried(self, pipe: Pipe) -> str:
        process, _ = self.busy.pop(pipe)
        process.join()
        pipe.close()
        code = process.exitcode
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"RunError: its process {reason} (run the experiment again: it goes on from the last state)"

    def _dismiss(self, pipe: Pipe) -> None:
        process, _ = self.busy.pop(pipe)
        pipe.close()
        process.join()

    def kill(self) -> None:
        """End all that still run."""
        for process, _ in self.busy.values():
            process.kill()
            process.join()


def _work(pipe: Pipe, home: str, commit: str | None, data_dir: Path | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole terminal; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            cell: Cell = pipe.recv()
        except EOFError:
            return
        try:
            result = run_cell(
                cell,
                Path(home),
                commit=commit,
                data_dir=data_dir,
                on_progress=lambda progress: pipe.send((progress,)),
            )
            pipe.send((None, result))
        except HarmonyError as error:
            pipe.send((None, None, f"{type(error).__name__}: {error}"))
