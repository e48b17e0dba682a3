"""MLPerf's LoadGen (the package `mlcommons-loadgen`) asks the device, by its own schedule and its own rules.

SingleStream asks again after every answer. Server asks by a Poisson process, whether or not there was an answer, so
that a second thread has to answer. All figures are LoadGen's, read from the log that it writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import mlperf_loadgen

from harmony.bench.sustained.results import Scenario
from harmony.core.errors import EngineError

PACKAGE = "mlcommons-loadgen"
_LOG, _MARK = "mlperf_log_detail.txt", ":::MLLOG "
_RATES = {"SingleStream": "result_qps_without_loadgen_overhead", "Server": "result_completed_samples_per_sec"}
_TIMES = {
    "min_s": "result_min_latency_ns",
    "mean_s": "result_mean_latency_ns",
    "p50_s": "result_50.00_percentile_latency_ns",
    "p90_s": "result_90.00_percentile_latency_ns",
    "p99_s": "result_99.00_percentile_latency_ns",
}


class Ask(NamedTuple):
    """One run. rate: of Server; seconds, requests: at least; images: how many there are to choose from."""

    scenario: Scenario
    rate: float
    seconds: float
    requests: int
    target_s: float
    images: int
    seed: int


def run_loadgen(ask: Ask, answer: Callable[[int], object]) -> dict[str, Any]:
    """Fields of `LoadGenRun`. answer: is given the place of an image. EngineError if an answer fails."""
    answers = _Answers(answer)
    issue = answers.put if ask.scenario == "Server" else answers.take
    worker = Thread(target=answers.work)
    worker.start()
    with TemporaryDirectory(prefix="harmony-loadgen-") as folder:
        sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
        qsl = mlperf_loadgen.ConstructQSL(ask.images, ask.images, lambda places: None, lambda places: None)
        try:
            mlperf_loadgen.StartTestWithLogSettings(sut, qsl, _settings(ask), _log_settings(folder))
        finally:
            answers.end()
            worker.join()
            mlperf_loadgen.DestroyQSL(qsl)
            mlperf_loadgen.DestroySUT(sut)
        if answers.problem is not None:
            raise EngineError(f"an answer to LoadGen failed: {answers.problem}") from answers.problem
        return read_log(Path(folder) / _LOG, ask.scenario) | {"loadgen_version": version(PACKAGE)}


class _Answers:
    """Queries, answered at once or by the thread that works. LoadGen waits for every query, and no exception may pass
    through it: a failed one is answered as well, and told afterwards."""

    def __init__(self, answer: Callable[[int], object]) -> None:
        self._answer, self._waiting = answer, SimpleQueue[tuple[int, int] | None]()
        self.problem: Exception | None = None

    def put(self, queries: Iterable[Any]) -> None:
        """Leave them to the thread."""
        for query in queries:
            self._waiting.put((query.id, query.index))

    def take(self, queries: Iterable[Any]) -> None:
        """Answer them now."""
        for query in queries:
            self._complete(query.id, query.index)

    def work(self) -> None:
        """Answer what was put, until the end."""
        while (query := self._waiting.get()) is not None:
            self._complete(*query)

    def end(self) -> None:
        """Nothing more will be put."""
        self._waiting.put(None)

    def _complete(self, identity: int, place: int) -> None:
        try:
            if self.problem is None:
                self._answer(place)
        except Exception as error:
            self.problem = error
        mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(identity, 0, 0)])


def _settings(ask: Ask) -> Any:
    found = mlperf_loadgen.TestSettings()
    found.scenario = getattr(mlperf_loadgen.TestScenario, ask.scenario)
    found.mode = mlperf_loadgen.TestMode.PerformanceOnly
    found.min_duration_ms, found.min_query_count = round(1000 * ask.seconds), ask.requests
    found.server_target_qps, found.server_target_latency_ns = ask.rate, round(1e9 * ask.target_s)
    found.qsl_rng_seed = found.sample_index_rng_seed = found.schedule_rng_seed = ask.seed
    return found


def _log_settings(folder: str) -> Any:
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    found = mlperf_loadgen.LogSettings()
    found.log_output, found.enable_trace = output, False
    return found


def read_log(path: Path, scenario: Scenario) -> dict[str, Any]:
    """Fields of `LoadGenRun` in LoadGen's detailed log. EngineError if one is not there."""
    lines = [line for line in path.read_text().splitlines() if line.startswith(_MARK)]
    said = {one["key"]: one["value"] for one in map(json.loads, (line[len(_MARK) :] for line in lines))}
    try:
        times = {name: said[key] / 1e9 for name, key in _TIMES.items()}
        valid, requests, rate = (said[key] for key in ("result_validity", "result_query_count", _RATES[scenario]))
    except KeyError as error:
        raise EngineError(f"LoadGen's log does not tell {error}", where=path) from None
    return {"valid": valid == "VALID", "requests": requests, "answered_rate": rate, **times}
