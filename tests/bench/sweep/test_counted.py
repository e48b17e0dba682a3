"""Counted instructions in the place of CPU times: which units have them, what they say, and what cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harmony.bench.advise import Advice, Budget, Question, advise
from harmony.bench.arm.calibration import describe, nets, predict
from harmony.bench.arm.results import ArmResult, BundleCount, PathCount
from harmony.bench.devices import DEVICES
from harmony.bench.result_files import write_result
from harmony.bench.results import AnswerPath
from harmony.bench.sweep.combine import cases
from harmony.bench.sweep.counted import counted
from harmony.bench.sweep.schema import SweepResult
from harmony.core.errors import ConfigError

PIXEL = DEVICES["pixel-3a"]
EXECUTORCH: dict[str, Any] = {"engine": "executorch", "runtime": "native", "program": "a" * 64}
COUNTS: dict[AnswerPath, int] = {"exit1": 1_000_000, "exit2": 3_000_000, "cloud": 4_000_000}
RECORD = Path("counts.json")


@pytest.fixture
def both(sweep_of: Any, unit_of: Any) -> SweepResult:
    """One bundle under both engines, and a second client of its shape under ExecuTorch."""
    first, second = unit_of(**EXECUTORCH), unit_of(**EXECUTORCH | {"client": 1, "program": "b" * 64})
    calibration = sweep_of().calibrations[0]
    other = calibration.model_copy(update={"engine": "executorch", "runtime": "native"})
    result: SweepResult = sweep_of(unit_of(), first, second, calibrations=(calibration, other))
    return result


def record(both: SweepResult, **changed: Any) -> ArmResult:
    fields: dict[str, Any] = {
        "name": "client-000", "architecture": "resnet-w16-d1", "parameters": 50_000, "engine": "executorch",
        "core": "a75", "program": "a" * 64, "opening": 5_000_000,
        "paths": tuple(PathCount(path=path, instructions=n, first=2 * n, engine=n) for path, n in COUNTS.items()),
    }  # fmt: skip
    versions = {"executorch": changed.pop("executorch", nets().versions["executorch"])}
    return ArmResult(harmony_version="0", versions=versions, host=both.host, bundles=(BundleCount(**fields | changed),))


def ask(both: SweepResult, arm: dict[Path, ArmResult], **changed: Any) -> Advice:
    budget = Budget(**changed.pop("budget", {}))
    fields: dict[str, Any] = {"device": "pixel-3a", "link": "lte", "rho": 1.0, "budget": budget}
    return advise(both, Question(**fields | changed), arm)


def test_a_count_serves_every_unit_of_its_shape_and_says_what_bench_arm_says(both: SweepResult) -> None:
    found = counted(both, {RECORD: record(both)}, PIXEL)
    assert (found.result.tier, [unit.client for unit in found.result.units], found.unused) == (
        "arm-instructions", [0, 1], ()
    )  # fmt: skip
    for one in cases(found.result, devices=[PIXEL], links=[], rhos=[1.0]):
        span = predict(COUNTS["exit2"], 50_000, PIXEL, "a75")
        ends = (one.latency.p90_low_s, one.latency.p90_s, one.latency.p90_high_s)
        assert [1000 * end for end in ends] == pytest.approx([span.low, span.ms, span.high])
        assert 1000 * one.first_s == pytest.approx(predict(5_000_000 + 8_000_000, 50_000, PIXEL, "a75").ms)
        assert one.tier == "arm-instructions"


def test_a_count_of_its_own_comes_before_one_of_its_shape(both: SweepResult) -> None:
    more = tuple(PathCount(path=path, instructions=n + 7, first=n, engine=n) for path, n in COUNTS.items())
    records = {RECORD: record(both), Path("b.json"): record(both, program="b" * 64, paths=more)}
    first, second = counted(both, records, PIXEL).result.units
    assert first.costs[0].paths[0].samples[0] < second.costs[0].paths[0].samples[0]


def test_no_choice_has_times_of_two_tiers_and_each_names_its_own(both: SweepResult) -> None:
    advice = ask(both, {RECORD: record(both)}, images=True)
    tiers = {(one.engine, one.strategy): one.choice.tier for one in advice.verdicts}
    assert {strategy for (engine, strategy), tier in tiers.items() if tier == "arm-instructions"} == {
        "device", "fallback", "following", "cloud-feature"
    }  # fmt: skip
    assert {engine for (engine, _), tier in tiers.items() if tier == "arm-instructions"} == {"executorch"}
    assert tiers["executorch", "cloud-image"] == tiers["onnxruntime", "device"] == "virtual-time"
    assert [one.tier for one in advice.bases] == ["virtual-time", "arm-instructions"]
    assert advice.bases[1].calibration == describe(PIXEL, "a75")
    assert [one.tier for one in ask(both, {}).bases] == ["virtual-time"]


def test_of_the_equally_accurate_what_was_counted_is_taken(both: SweepResult) -> None:
    """Though the other seems to be quicker: times of two tiers are not held against each other."""
    slow = tuple(PathCount(path=path, instructions=50 * n, first=n, engine=n) for path, n in COUNTS.items())
    advice = ask(both, {RECORD: record(both, paths=slow)}, link=None)
    assert advice.best is not None
    assert (advice.best.engine, advice.best.tier) == ("executorch", "arm-instructions")
    assert "fits, as accurate on the images to choose by, by times of virtual-time" in {
        one.reason for one in advice.verdicts
    }
    assert ask(both, {}, link=None).best != advice.best


def test_counts_of_some_clients_only_do_not_stand_for_all(both: SweepResult, unit_of: Any) -> None:
    other = unit_of(**EXECUTORCH | {"client": 2, "program": "c" * 64, "own_classes": ("Coat",)})
    more = SweepResult.model_validate(dict(both) | {"units": (*both.units, other)})
    advice = ask(more, {RECORD: record(both)})
    assert {one.choice.tier for one in advice.verdicts} == {"virtual-time"}
    assert advice.unused == ("resnet-w16-d1: counts are there for 2 of 3 clients only",)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"engine": "onnxruntime"}, "ran in onnxruntime, whose instructions have no milliseconds"),
        ({"precision": "int8"}, "is int8, and calibration is in fp32"),
        ({"core": "a53"}, "was counted on a53, the device has the kernels of a75"),
        ({"executorch": "0.1"}, r"was counted with executorch 0\.1, calibration with 1\.5"),
        ({"program": "f" * 64}, "is not in the sweep"),
        ({"paths": (PathCount(path="exit1", instructions=1, first=1, engine=1),)}, "lacks the count of an exit"),
    ],
)
def test_what_cannot_be_used_says_why(both: SweepResult, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"--arm: nothing can be used for pixel-3a: counts\.json: client-000 {says}"):
        ask(both, {RECORD: record(both, **changed)})
    advice = ask(both, {RECORD: record(both), Path("b.json"): record(both, **changed)})
    assert [line.partition(": ")[0] for line in advice.unused] == ["b.json"]


def test_what_instructions_cannot_tell(both: SweepResult, unit_of: Any) -> None:
    arm = {RECORD: record(both)}
    with pytest.raises(ConfigError, match=r"cortex-a53 cannot be calibrated .*leave --arm out, or choose one of pixel"):
        ask(both, arm, device="cortex-a53")
    costs = unit_of().costs[0]
    sparse = unit_of(costs=(costs, costs.model_copy(update={"regime": "sparse"})))
    paused = SweepResult.model_validate(dict(both) | {"units": (sparse, *both.units[1:])})
    with pytest.raises(ConfigError, match="--arm: instructions know no pauses"):
        ask(paused, arm, regime="sparse")


def test_the_command(both: SweepResult, tmp_path: Path) -> None:
    write_result(tmp_path, both)
    (tmp_path / "counts.json").write_text(record(both).model_dump_json())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harmony.cli.main", "advise", str(tmp_path), "--device", "pixel-3a", "--arm"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)

    done = run(str(tmp_path / "counts.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "virtual-time: mobilenet-v1 88 ms" in done.stdout
    assert "arm-instructions: 2.360 million instructions a ms, from MobileNetV1" in done.stdout
    span = predict(COUNTS["exit2"], 50_000, PIXEL, "a75")
    assert f"p90 {span.ms:.3g} ms ({span.low:.3g} … {span.high:.3g}), median" in done.stdout
    assert ", by arm-instructions; " in done.stdout
    assert "[virtual-time]" in done.stdout
    done = run(str(tmp_path / "counts.json"), "--json")
    assert [one["tier"] for one in json.loads(done.stdout)["bases"]] == ["virtual-time", "arm-instructions"]
    done = run(str(tmp_path / "results.json"))
    assert done.returncode == 2
    assert "is a 'harmony-sweep', not a 'harmony-bench-arm'" in done.stderr
