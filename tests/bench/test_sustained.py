"""Open loop: latencies count from the schedule, whatever the device does. Clocks are made up; devices are not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.bench.sustained import SustainedSettings, sustain
from harmony.bench.sustained.results import SustainedResult, regime_of
from harmony.bench.sustained.schedule import Kept, arrivals, keep
from harmony.core.errors import EngineError, EngineUnavailable

needs_loadgen = pytest.mark.skipif(
    find_spec("mlperf_loadgen") is None, reason="needs mlcommons-loadgen: pip install 'harmony-sfl[loadgen]'"
)


class World:
    """A clock that only sleeping and answering move; sleeping takes `over` longer than was asked for."""

    def __init__(self, services: list[float], over: float = 0.0) -> None:
        self.now, self._services, self._over = 100.0, services, over

    def run(self, due: list[float], give_up_s: float = 1e9) -> Kept:
        return keep(np.asarray(due), self._answer, give_up_s=give_up_s, clock=lambda: self.now, sleep=self._sleep)

    def _answer(self, index: int) -> None:
        self.now += self._services[index]

    def _sleep(self, seconds: float) -> None:
        self.now += seconds + self._over


def test_latency_counts_from_when_a_request_was_due() -> None:
    """One slow answer: a closed loop would show 1, 1 and 5 once; who asks meanwhile waits."""
    kept = World([1.0, 5.0, 1.0, 1.0]).run([0.0, 2.0, 3.0, 20.0])
    assert kept.service.tolist() == [1, 5, 1, 1]
    assert kept.latency.tolist() == [1, 5, 5, 1]
    assert kept.late.tolist() == [0, 0, 0, 0]


def test_what_the_host_oversleeps_is_told_apart() -> None:
    kept = World([1.0, 1.0], over=0.25).run([1.0, 1.5])
    assert kept.latency.tolist() == [1.25, 1.75]
    assert kept.late.tolist() == [0.25, 0]


def test_a_queue_that_only_grows_is_given_up() -> None:
    kept = World([2.0] * 10).run([float(at) for at in range(10)], give_up_s=5)
    assert kept.latency.tolist() == [2, 3, 4]
    assert World([2.0, 2.0]).run([10.0, 11.0], give_up_s=5).latency.tolist() == [2]


def test_schedules() -> None:
    assert arrivals("fixed", 4, 3, 0).tolist() == [0, 0.25, 0.5]
    gaps = np.diff(arrivals("poisson", 100, 20_000, 1))
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)
    assert arrivals("poisson", 100, 5, 1).tolist() == arrivals("poisson", 100, 5, 1).tolist()
    assert [regime_of(rate, 20) for rate in (5, 20, 21)] == ["sparse", "sparse", "hot"]


def _settings(federation: Any, **fields: Any) -> SustainedSettings:
    small: dict[str, Any] = {"bundle": federation.devices[0], "seconds": 0.2, "requests": 12, "limit": 40}
    return SustainedSettings(**small | fields)


def test_a_real_device_in_both_regimes(federation: Any) -> None:
    result = sustain(_settings(federation))
    assert [one.conditions.regime for one in result.scheduled] == ["hot", "sparse"]
    hot, sparse = result.scheduled
    assert hot.rate > sparse.rate
    for one in result.scheduled:
        assert one.latency.n == one.service.n
        assert one.latency.n + one.unanswered == max(12, round(0.2 * one.rate))
        assert one.latency.median >= one.service.min
        assert one.utilisation == pytest.approx(one.rate * one.service.median)
        assert sum(one.exits.values()) == pytest.approx(1)
        assert set(one.exits) == {"exit1", "exit2"}
    assert SustainedResult.model_validate_json(result.model_dump_json()) == result


def test_more_than_it_can_do(federation: Any) -> None:
    """A rate that nothing reaches: the run is given up, and says how much was left."""
    (one,) = sustain(_settings(federation, rate=1_000_000, seconds=0.001, requests=1000)).scheduled
    assert one.utilisation > 1
    assert one.unanswered > 0
    assert one.latency.n + one.unanswered == 1000


def test_files_for_the_engine_are_asked_for_first(federation: Any) -> None:
    with pytest.raises(EngineUnavailable, match="has no files for executorch"):
        sustain(_settings(federation, engine="native"))


@needs_loadgen
def test_loadgen_asks_a_real_device(federation: Any) -> None:
    single, server = sustain(_settings(federation, generator="loadgen", rate=40)).loadgen
    assert (single.scenario, single.rate, server.scenario, server.rate) == ("SingleStream", None, "Server", 40)
    for one in (single, server):
        assert one.requests >= 12
        assert 0 < one.min_s <= one.p50_s <= one.p90_s <= one.p99_s
        assert one.answered_rate > 0


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "Server"])
def test_an_answer_that_fails_under_loadgen_is_named(scenario: Any) -> None:
    from harmony.bench.sustained.loadgen import Ask, run_loadgen

    def fail(place: int) -> None:
        raise ValueError("no answer to this")

    with pytest.raises(EngineError, match="an answer to LoadGen failed: no answer to this"):
        run_loadgen(Ask(scenario, 100, 0.05, 4, 0.1, 4, 0), fail)


@needs_loadgen
def test_what_loadgen_logged(tmp_path: Path) -> None:
    from harmony.bench.sustained.loadgen import read_log

    times = {f"result_{name}_latency_ns": 1e6 for name in ("min", "mean")}
    times |= {f"result_{percent}.00_percentile_latency_ns": 1e5 * percent for percent in (50, 90, 99)}
    said = times | {"result_validity": "VALID", "result_query_count": 64, "result_completed_samples_per_sec": 95.5}

    def read(**said: Any) -> dict[str, Any]:
        lines = [":::MLLOG " + json.dumps({"key": key, "value": value}) for key, value in said.items()]
        (tmp_path / "log.txt").write_text("\n".join(["another line", *lines]))
        return read_log(tmp_path / "log.txt", "Server")

    assert read(**said) == {
        "valid": True, "requests": 64, "answered_rate": 95.5, "min_s": pytest.approx(0.001),
        "mean_s": pytest.approx(0.001), "p50_s": pytest.approx(0.005), "p90_s": pytest.approx(0.009),
        "p99_s": pytest.approx(0.0099),
    }  # fmt: skip
    assert not read(**said | {"result_validity": "INVALID"})["valid"]
    del said["result_min_latency_ns"]
    with pytest.raises(EngineError, match="LoadGen's log does not tell 'result_min_latency_ns'"):
        read(**said)


def test_the_command(federation: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harmony.cli.main", "bench", "sustained", str(federation.devices[0])]
    brief = ["--rate", "200", "--arrivals", "fixed", "--seconds", "0.1", "--requests", "10", "--limit", "20"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command + list(arguments), capture_output=True, text=True, timeout=120, check=False)

    done = run(*brief, "--json", "--out", str(tmp_path / "load.json"))
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value == json.loads((tmp_path / "load.json").read_text())
    assert (value["format"], value["scheduled"][0]["latency"]["n"]) == ("harmony-sustained", 20)
    done = run("--utilisation", "1.5")
    assert done.returncode == 2
    assert "bench: utilisation: Input should be less than 1" in done.stderr
