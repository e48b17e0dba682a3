"""Two workers at one table: sums, races for a row, a full table, what a worker that is gone leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from harmony.cloud.keys import ORDINARY, Caller, KeyGrant, KeyRing, digest
from harmony.cloud.ledger import Ledger, Shape
from harmony.cloud.metrics import Metrics, ModelStatistics, Numbers
from harmony.cloud.refusal import Refusal
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.share import Share, files

SETTINGS = ServiceSettings(workers=2)
SECRET = "a-key-for-these-tests-alone"
SHAPE = Shape(64, 4, 1)
COUNT = """
import sys
from harmony.cloud.ledger import Ledger, Shape
ledger = Ledger(Shape(64, 4, 1), int(sys.argv[2]), int(sys.argv[1]))
for name in range(40):
    row = ledger.row(str(name))
    for _ in range(50):
        row.own[0] += 1
"""


@pytest.fixture
def descriptors() -> Iterator[tuple[int, int]]:
    with files(SETTINGS) as made:
        yield made


def both(descriptors: tuple[int, int]) -> list[Share]:
    return [Share.of(descriptors, slot, SETTINGS) for slot in range(2)]


def test_processes_that_race_for_rows_find_the_same_and_lose_no_count(tmp_path: Path) -> None:
    with (tmp_path / "ledger").open("w+b") as file:
        file.truncate(SHAPE.size)
        command = [sys.executable, "-c", COUNT, str(file.fileno())]
        racing = [subprocess.Popen([*command, str(slot)], pass_fds=[file.fileno()]) for slot in range(4)]
        assert [one.wait() for one in racing] == [0] * 4
        ledger = Ledger(SHAPE, 0, file.fileno())
        assert [ledger.row(str(name)).total(0) for name in range(40)] == [200] * 40


def test_a_full_table_counts_apart(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(Shape(2, 2, 1))
    for name in "abcd":
        ledger.row(name).own[0] += 1
    assert [ledger.row(name).total(0) for name in "abcd"] == [1, 1, 0, 0]
    assert [record.message.split(";")[0] for record in caplog.records] == ["the table of the workers is full"]


def test_what_either_worker_counts_both_tell(descriptors: tuple[int, int]) -> None:
    metrics = [Metrics(share.counts) for share in both(descriptors)]
    counting = [ModelStatistics(one, "backend", "1") for one in metrics]
    counting[0].answered(2, 0.004, 100, 10)
    counting[1].answered(3, 0.3, 200, 20)
    counting[0].batch(2, [0.001, 0.0011], 0.003)
    counting[1].refused("overload", 0.5)
    counting[0].waiting(4)
    counting[1].waiting(5)
    metrics[0].refused("not_found")
    texts = [generate_latest(one.registry).decode() for one in metrics]
    assert texts[0] == texts[1]
    label = 'model="backend",version="1"'
    for line in (
        f"harmony_requests_total{{{label}}} 2.0",
        f"harmony_rows_total{{{label}}} 5.0",
        f"harmony_received_bytes_total{{{label}}} 300.0",
        f"harmony_queue_rows{{{label}}} 9.0",
        'harmony_failures_total{model="backend",reason="overload",version="1"} 1.0',
        'harmony_failures_total{model="",reason="not_found",version=""} 1.0',
        f'harmony_request_seconds_bucket{{le="0.005",{label}}} 1.0',
        f'harmony_request_seconds_bucket{{le="+Inf",{label}}} 2.0',
        f'harmony_queue_seconds_bucket{{le="0.001",{label}}} 1.0',
        f"harmony_batch_rows_sum{{{label}}} 2.0",
    ):
        assert line in texts[1].splitlines()
    counted = counting[1].counted()
    assert (counted.rows, counted.success.count, counted.fail.count, counted.fail.ns) == (5, 2, 1, 500_000_000)
    assert counted.by_rows.keys() == {2}


def test_a_version_may_come_while_the_series_are_read() -> None:
    """A model is loaded on another thread than the one that answers /metrics."""
    metrics = Metrics()

    class Meanwhile(ModelStatistics):
        def numbers(self) -> Numbers:
            ModelStatistics(metrics, "backend", "2")
            return super().numbers()

    Meanwhile(metrics, "backend", "1")
    assert b'version="2"' not in generate_latest(metrics.registry)
    assert b'version="2"' in generate_latest(metrics.registry)


def test_who_takes_a_gone_workers_place_goes_on_with_its_counts_but_not_with_its_work(
    descriptors: tuple[int, int],
) -> None:
    old = ModelStatistics(Metrics(both(descriptors)[1].counts), "backend", "1")
    old.answered(1, 0.1, 1, 1)
    old.waiting(7)
    new = ModelStatistics(Metrics(both(descriptors)[1].counts), "backend", "1")
    new.answered(1, 0.1, 1, 1)
    assert (new.counted().rows, new.counted().waiting) == (2, 0)


def callers(descriptors: tuple[int, int], **limits: float) -> list[Caller]:
    """The same key at two workers."""
    grant = KeyGrant("phones", digest(SECRET), ORDINARY, **limits)  # type: ignore[arg-type]  # as KeyGrant has them
    found = [KeyRing([grant], ledger=share.keys).find(f"Bearer {SECRET}".encode()) for share in both(descriptors)]
    return [one for one in found if one is not None]


def test_limits_hold_over_all_workers(descriptors: tuple[int, int]) -> None:
    one, other = callers(descriptors, inflight=2)
    one.enter(1.0)
    other.enter(1.0)
    for caller in (one, other):
        with pytest.raises(Refusal, match="2 requests under way"):
            caller.enter(1.0)
    other.leave()
    one.enter(1.0)
    one, other = callers(descriptors, rate=2.0)
    one.enter(100.0)
    other.enter(100.0)
    for caller in (one, other):
        with pytest.raises(Refusal, match="2 times a second"):
            caller.enter(100.4)
    other.enter(100.5)
    with pytest.raises(Refusal, match="2 times a second"):
        one.enter(100.6)


def test_what_a_gone_worker_had_under_way_is_given_back(descriptors: tuple[int, int]) -> None:
    one, other = callers(descriptors, inflight=1)
    other.enter(1.0)
    with pytest.raises(Refusal, match="1 requests under way"):
        one.enter(1.0)
    callers(descriptors, inflight=1)  # both workers are replaced
    one.enter(1.0)
