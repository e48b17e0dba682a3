"""Templates for all the shapes of a federation, lowered in processes of their own if that is quicker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from harmony.core.checkpoint import CheckpointManifest
from harmony.core.errors import EngineError
from harmony.core.models import FrontEnd
from harmony.core.spec import FeatureSpec, ImageSpec
from harmony.export.executorch_program import ROLE, executorch_template, front_end_to_executorch
from harmony.export.networks import Shape, empty_front_end
from harmony.export.onnx_program import front_end_to_onnx, onnx_template
from harmony.export.report import Format
from harmony.export.template import Template, number

Task = tuple[Shape, Format]


class Lowering(NamedTuple):
    """One network was lowered. cpu_s: of this process."""

    architecture: str
    format: Format
    cpu_s: float


_NOTES: ContextVar[list[Lowering] | None] = ContextVar("_NOTES", default=None)


class Blueprint(NamedTuple):
    """How to make the programs of every client of one shape: fill the template, or lower each where there is none.

    shape: None where there is one client of it, so that nobody shares anything.
    """

    format: Format
    template: Template | None
    delegated: float | None
    shape: Shape | None = None

    def programs(self, front_end: FrontEnd, image: torch.Tensor) -> tuple[dict[str, bytes], float | None]:
        """A client's programs by role, for one image (1, C, H, W), and the share of operators that XNNPACK runs."""
        if self.template is not None:
            return self.template.fill(front_end), self.delegated
        with _noted(self.shape, self.format):
            return lower(front_end, image, self.format)


def lower(front_end: FrontEnd, image: torch.Tensor, format_: Format) -> tuple[dict[str, bytes], float | None]:
    """The programs of one front end by role, and the share of operators that XNNPACK runs (None for ONNX)."""
    if format_ == "onnx":
        return front_end_to_onnx(front_end, image), None
    program, delegated = front_end_to_executorch(front_end, image)
    return {ROLE: program}, delegated


def blueprint(manifest: CheckpointManifest, task: Task) -> Blueprint:
    """Lower one shape for one format; another run of the same sizes finds it done."""
    return _blueprint(manifest.image, manifest.feature, len(manifest.clients[0].classes.names), *task)


@lru_cache(maxsize=32)
def _blueprint(image: ImageSpec, feature: FeatureSpec, classes: int, shape: Shape, format_: Format) -> Blueprint:
    network = empty_front_end(image, feature, classes, shape)
    blank = torch.zeros(1, image.channels, image.height, image.width)
    if not number(network):
        return Blueprint(format_, None, None, shape)
    with _noted(shape, format_):
        if format_ == "onnx":
            return Blueprint(format_, onnx_template(network, blank), None, shape)
        return Blueprint(format_, *executorch_template(network, blank), shape)


@contextmanager
def lowering_anew() -> Iterator[list[Lowering]]:
    """Forget what this process has lowered, as one that just began, and note what it lowers inside the block.

    What other processes lower (jobs > 1) is not noted.
    """
    _blueprint.cache_clear()
    notes: list[Lowering] = []
    before = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(before)


@contextmanager
def _noted(shape: Shape | None, format_: Format) -> Iterator[None]:
    begin = time.process_time()
    yield
    notes = _NOTES.get()
    if notes is not None:
        architecture = "one of its own" if shape is None else str(shape.architecture)
        notes.append(Lowering(architecture, format_, time.process_time() - begin))


def blueprints(manifest: CheckpointManifest, tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Blueprint]]:
    """Every task's blueprint, as they are finished. jobs: how many processes work; 1 is this one."""
    if min(jobs, len(tasks)) <= 1:
        yield from ((task, blueprint(manifest, task)) for task in tasks)
        return
    longest_first = sorted(tasks, key=lambda task: task[1] != "executorch")
    try:
        with _workers(min(jobs, len(tasks))) as pool:
            waiting = {pool.submit(blueprint, manifest, task): task for task in longest_first}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
    except BrokenProcessPool:
        raise EngineError("a process that lowers networks died", mend="free some memory, or use --jobs 1") from None


def tasks_of(shapes: Iterable[Shape], formats: Sequence[Format]) -> list[Task]:
    """One task for each different shape and format, in order of first appearance."""
    return [(shape, format_) for shape in dict.fromkeys(shapes) for format_ in formats]


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends with this block, even if an error, Ctrl-C or kill -9 ends it."""
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_follow, initargs=(reader,))
    try:
        yield pool
    except BaseException:
        writer.close()  # do not wait for what nobody will read
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()
        reader.close()


def _follow(parent: Connection) -> None:
    """Make this process end as soon as the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it, and closes the pipe
    torch.set_num_threads(1)

    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
