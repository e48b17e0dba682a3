"""The serving benchmark's own parts: its back ends, its probe, its arithmetic. Figures are not asserted here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from harmony.bench import serving_attack_results
from harmony.bench.host import Watch
from harmony.bench.result_files import read_result
from harmony.bench.serving import cpu_seconds, main, measured
from harmony.bench.serving_attack import main as attack
from harmony.bench.serving_attack_results import AttackResult, Fuzz, Memory, Soak, Swaps
from harmony.bench.serving_load import LoadResult, LoadSettings
from harmony.bench.serving_models import write_bundles
from harmony.bench.serving_peers import PEERS, Peer, environment
from harmony.bench.serving_probe import probe
from harmony.bench.serving_requests import CUT
from harmony.bench.serving_results import AHEAD, BEGIN, END, PEAK, Bar, ServingResult, bars, block, summary, table
from harmony.cloud.models import Weights, open_model, open_models
from harmony.core.bundle import VECTORS, read_vectors
from harmony.core.errors import ServiceError

ROOT = Path(__file__).resolve().parents[2]


def test_back_ends_are_served_as_they_are_and_quantised(tmp_path: Path) -> None:
    plain, quantised, mflop = write_bundles(tmp_path, 32)
    assert 30 < mflop < 31
    (fp32,), (int8,) = open_models(plain), open_models(quantised)
    assert fp32.feature == int8.feature == CUT
    feature = read_vectors(plain / VECTORS)["feature"]
    exact, rounded = fp32.program.run(feature), int8.program.run(feature)
    assert 0 < np.abs(exact - rounded).max() < 0.05, "a quantised model is nearly the same, and not the same"
    in_torch = open_model(plain, weights=Weights(plain.parent / "checkpoint"))
    np.testing.assert_allclose(in_torch.program.run(feature), exact, atol=1e-5)
    assert (quantised / "back_end.onnx").stat().st_size < (plain / "back_end.onnx").stat().st_size / 2
    found = probe(plain, 0.01)
    assert set(found) == {"8", "16", "32"}
    assert min(found.values()) > 0


def result(statuses: dict[str, int]) -> LoadResult:
    return LoadResult(
        settings=LoadSettings(),
        seconds=1,
        sent=sum(statuses.values()),
        statuses=statuses,
        broken=0,
        unanswered=0,
        goodput=float(statuses.get("200", 0)),
        latency=None,
        late_ms=0,
        sent_bytes=0,
        received_bytes=0,
    )


def test_cpu_is_counted_for_answers_alone() -> None:
    def burn() -> LoadResult:
        before = cpu_seconds(os.getpid())
        while cpu_seconds(os.getpid()) < before + 0.1:
            pass
        return result({"200": 10, "503": 90})

    values = measured(os.getpid(), burn)
    assert 9.9 < values["cpu_ms"] < 40
    assert values["refused"] == 90
    assert "cpu_ms" not in measured(os.getpid(), lambda: result({"503": 5}))


def test_shares_are_of_the_same_round() -> None:
    found = {"probe": [{"cpu_ms": 1.0}, {"cpu_ms": 2.0}, {"cpu_ms": 4.0}], "case": [{"cpu_ms": 2.0}, {"cpu_ms": 2.5}]}
    found["case"].append({"cpu_ms": 4.0, "p99_ms": 3.0})
    found["peer"] = [{"cpu_ms": 20.0}, {"cpu_ms": 20.0}, {"cpu_ms": 60.0}]
    values = summary("case", found, "probe").values
    assert values["share"].rounds == (0.5, 0.8, 1.0)
    assert values["share"].median == 0.8
    assert "p99_ms" not in values, "what one round lacks has no median"
    peer = summary("peer", found, "probe", "case")
    assert peer.values["times_ours"].rounds == (10.0, 8.0, 15.0)
    assert peer.values["share"].rounds == (0.05, 0.1, 4 / 60)


@pytest.fixture(scope="module")
def committed() -> ServingResult:
    return read_result(ROOT / "results" / "serving.json", ServingResult)


def test_the_document_publishes_the_result_file(committed: ServingResult) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{block(committed)}\n\n{END}" in text


def test_a_report_needs_no_measurement(
    committed: ServingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    main(["--report", str(ROOT / "results" / "serving.json"), "--publish", str(page)])
    assert capsys.readouterr().out == table(committed) + "\n"
    assert page.read_text() == f"before\n{BEGIN}\n\n{block(committed)}\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="put both marks"):
        main(["--report", str(ROOT / "results" / "serving.json"), "--publish", str(page)])


def test_bars_say_what_is_missed(committed: ServingResult) -> None:
    """Each kind of limit, kept and not; a peer's is that of its name, whatever model it serves."""
    found = {one.name: one for one in bars(committed)}
    assert Bar("", 0.75, "≥", 0.75).verdict == Bar("", 1.5, "≤", 1.5).verdict == "met"
    assert Bar("", 0.74, "≥", 0.75).verdict == Bar("", 1.6, "≤", 1.5).verdict == "missed"
    for name, case in committed.cases.items():
        if case.ours is not None:
            bar = found[f"CPU time a request over ours, {name}"]
            assert bar.value == case.values["times_ours"].median
            assert bar.limit == AHEAD[name.partition(",")[0]]
    assert set(AHEAD) == set(PEERS)
    alone = committed.model_copy(update={"cases": {PEAK: committed.cases[PEAK]}})
    assert bars(alone) == [], "what was not measured has no verdict"


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ServiceError, match="litserve cannot be installed"):
        environment("litserve", tmp_path / "cache")


@pytest.mark.parametrize(("kind", "count"), [("fuzz", 300), ("soak", 400), ("swaps", 4)])
def test_a_short_attack(kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long ones are commands; what they say when all is well, and that they look at all. So few say nothing about
    growth."""
    monkeypatch.setattr(serving_attack_results, "MOST_GROWTH", 1.0)
    out = tmp_path / "out.json"
    attack([kind, "--count", str(count), "--connections", "3", "--seed", "5", "--out", str(out)])
    found = read_result(out, AttackResult).attack
    assert (found.kind, found.count) == (kind, count)
    assert 1 << 20 < min(found.memory.before_bytes, found.memory.after_bytes) <= found.memory.largest_bytes
    if isinstance(found, Fuzz):
        assert sum(found.statuses.values()) == count
        assert {"200", "400"} <= set(found.statuses)
        assert found.right >= 1
    elif isinstance(found, Swaps):
        assert set(found.statuses) == {"200"}
        assert set(found.by_version) == {"1", "2"}
        assert found.failed == 0
    else:
        assert found.statuses == {"200": count}


def test_an_attack_that_was_not_borne_is_named() -> None:
    memory = Memory(before_bytes=100, after_bytes=104, largest_bytes=150)
    grown = Memory(before_bytes=100, after_bytes=105, largest_bytes=105)
    swaps = Swaps(
        count=1, warm_up=1, seconds=1, statuses={"200": 9, "broken": 1}, memory=memory, connections=1, failed=1,
        by_version={"1": 9}, swap_seconds=1,
    )  # fmt: skip
    soak = Soak(
        count=1, warm_up=1, seconds=1, statuses={"200": 1}, memory=memory, connections=1, broken=0, goodput=1, p99_ms=1
    )
    host = Watch().host()

    def problems(attack: Soak | Swaps) -> str:
        return "; ".join(AttackResult(host=host, cut=str(CUT), attack=attack).problems())

    assert problems(soak) == ""
    assert "1 requests failed" in problems(swaps)
    assert "grew by 5.0%" in problems(soak.model_copy(update={"memory": grown}))
    assert "1 connections broken" in problems(soak.model_copy(update={"broken": 1}))
    assert "not everything" in problems(soak.model_copy(update={"statuses": {"200": 1, "503": 1}}))


def test_a_peer_rests_until_it_is_woken() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        peer, process = Peer("litserve", child.pid, 1), psutil.Process(child.pid)

        def wait_for(*states: str) -> None:
            while process.status() not in states:
                time.sleep(0.01)

        peer.rest()
        wait_for(psutil.STATUS_STOPPED)
        with peer.awake():
            wait_for(psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING)
        wait_for(psutil.STATUS_STOPPED)
        child.kill()
    peer.rest()  # who has ended is left alone
