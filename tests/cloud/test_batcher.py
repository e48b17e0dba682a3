"""Who is next, and whose fault is whose: the batcher alone, with a model that notes what it was given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np

from harmony.cloud.batcher import Batcher, Job
from harmony.cloud.metrics import Metrics, ModelStatistics
from harmony.cloud.models import open_models

if TYPE_CHECKING:
    import pytest

    from tests.cloud.conftest import Bundle, Floats


class Watched:
    """The bundle's program; the first run waits until it may go on, so that a queue forms behind it."""

    def __init__(self, run: Callable[[Floats], Floats]) -> None:
        self._run = run
        self.go_on = threading.Event()
        self.batches: list[list[float]] = []

    def run(self, feature: Floats) -> Floats:
        self.go_on.wait(10)
        self.batches.append(feature[:, 0, 0, 0].tolist())
        return self._run(feature)


def run(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Batcher, Watched], Awaitable[None]],
    max_batch: int = 1,
) -> None:
    async def main() -> None:
        model = open_models(bundle.folder)[0]
        batcher = Batcher(model, ModelStatistics(Metrics(), model.name, model.version), max_batch)
        watched = Watched(model.program.run)
        monkeypatch.setattr(model.program, "run", watched.run)
        batcher.start(asyncio.get_running_loop())
        try:
            await work(batcher, watched)
        finally:
            watched.go_on.set()
            batcher.stop(5)

    asyncio.run(main())


def ask(batcher: Batcher, value: float, priority: int = 0) -> tuple[Job, asyncio.Future[Job]]:
    pending: asyncio.Future[Job] = asyncio.get_running_loop().create_future()

    def load(target: Floats) -> None:
        target[...] = value

    return batcher.submit(1, load, pending.set_result, priority), pending


def test_priority_is_a_head_start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(batcher: Batcher, watched: Watched) -> None:
        asked = [ask(batcher, 0.0)]
        await asyncio.sleep(0.05)  # the first is on its way
        asked += [ask(batcher, value, priority) for value, priority in ((1.0, 3), (2.0, 0), (3.0, 2), (4.0, 1))]
        await asyncio.sleep(0.25)
        asked.append(ask(batcher, 5.0, 1))
        watched.go_on.set()
        await asyncio.gather(*(pending for _, pending in asked))
        assert watched.batches == [[0.0], [4.0], [2.0], [3.0], [1.0], [5.0]], "nobody waits for ever"

    run(bundle, monkeypatch, work)


def test_dropped_work_is_not_computed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(batcher: Batcher, watched: Watched) -> None:
        asked = [ask(batcher, float(value)) for value in range(3)]
        asked[1][0].dropped = True
        watched.go_on.set()
        await asyncio.gather(asked[0][1], asked[2][1])
        assert watched.batches == [[0.0], [2.0]]
        assert not asked[1][1].done()
        assert batcher.expected_wait() == 0

    run(bundle, monkeypatch, work)


def test_values_that_are_not_finite_cost_only_their_own_request(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(batcher: Batcher, watched: Watched) -> None:
        first = ask(batcher, 0.0)
        await asyncio.sleep(0.05)
        values = (1.0, float("nan"), 2.0, float("inf"), 3.0)
        asked = [ask(batcher, value) for value in values]
        watched.go_on.set()
        jobs = await asyncio.gather(first[1], *(pending for _, pending in asked))
        assert watched.batches == [[0.0], [1.0, 2.0, 3.0]]
        for value, job in zip(values, jobs[1:], strict=True):
            if np.isfinite(value):
                feature = np.full((1, *bundle.spec.shape), value, np.float32)
                assert job.result is not None
                np.testing.assert_allclose(job.result, bundle.answer(feature), rtol=1e-4, atol=1e-6)
            else:
                assert job.error is not None
                assert "not finite" in str(job.error)

    run(bundle, monkeypatch, work, max_batch=8)


def test_an_answer_that_cannot_be_delivered_costs_only_itself(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(batcher: Batcher, watched: Watched) -> None:
        def fail(_: Job) -> None:
            raise RuntimeError("a fault of ours")

        batcher.submit(1, lambda target: target.fill(0), fail)
        _, pending = ask(batcher, 1.0)
        watched.go_on.set()
        assert (await pending).result is not None

    run(bundle, monkeypatch, work, max_batch=8)
