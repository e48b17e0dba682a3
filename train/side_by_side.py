"""Several runs at once, each in a process of its own with its own threads.

Two processes with one compute thread each finish sooner than one with two threads, twice: small batches do not fill two
threads, and on a busy machine threads that wait for each other spin.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harmony.core import errors
from harmony.core.config import TrainConfig, recorded_config
from harmony.core.errors import HarmonyError, RunError
from harmony.train.runs import Progress, train


def train_side_by_side(
    jobs: Mapping[str, tuple[TrainConfig, Path]],
    on_progress: Callable[[str, Progress], None] = lambda name, progress: None,
) -> dict[str, float]:
    """Train every job (config, run folder) by its name; returns each one's seconds.

    Raises what a run raised, after ending the others. Whatever ends the wait (Ctrl-C too) ends them all.
    """
    context = multiprocessing.get_context("spawn")
    started, seconds = time.perf_counter(), {}
    running: dict[Connection[Any, Any], tuple[str, Any]] = {}
    try:
        for name, (config, out) in jobs.items():
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(config.model_dump(mode="json"), str(out), writer), daemon=True
            )
            process.start()
            writer.close()  # the child holds the only other end, so that its death is the end of the stream
            running[reader] = name, process
        while running:
            ready = wait(list(running))
            for reader in [one for one in running if one in ready]:
                name, process = running[reader]
                if not _heard(reader, name, on_progress):
                    del running[reader]
                    process.join()
                    _require_success(name, process.exitcode, jobs[name][1])
                    seconds[name] = time.perf_counter() - started
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return seconds


def _heard(reader: Connection[Any, Any], name: str, on_progress: Callable[[str, Progress], None]) -> bool:
    """Take one message; False at the end of the stream."""
    try:
        said = reader.recv()
    except (EOFError, ConnectionResetError):
        return False
    if isinstance(said, Progress):
        on_progress(name, said)
        return True
    kind, problem, where, field, mend = said
    error: HarmonyError = getattr(errors, kind)(problem, where=where, field=field, mend=mend)
    raise error


def _require_success(name: str, code: int | None, out: Path) -> None:
    if code:
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise RunError(f"the training process of {name} {reason}", where=out, mend="resume it")


def _work(config: dict[str, Any], out: str, writer: Connection[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole terminal; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        train(recorded_config(config), Path(out), on_progress=writer.send)
    except HarmonyError as error:
        writer.send((type(error).__name__, error.problem, error.where, error.field, error.mend))


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone; to be run in a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
