"""Advice within a budget, and what is said of the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harmony.bench.advise import Advice, Budget, Question, advise
from harmony.bench.quantities import seconds, size
from harmony.bench.result_files import write_result
from harmony.bench.sweep.schema import Memory, SweepResult
from harmony.core.errors import ConfigError

COMMAND = [sys.executable, "-m", "harmony.cli.main", "advise"]


def ask(sweep: SweepResult, **changed: Any) -> Advice:
    budget = {name: changed.pop(name) for name in list(changed) if name in Budget.model_fields}
    fields: dict[str, Any] = {"device": "pixel-3a", "link": "lte", "rho": 1.0, "budget": Budget(**budget)}
    return advise(sweep, Question(**(fields | changed)))


@pytest.fixture
def two(sweep_of: Any, unit_of: Any) -> SweepResult:
    """A larger and more accurate architecture beside the first."""
    points = tuple(
        point.model_copy(update={"choice": tuple(one + 0.05 for one in point.choice)}) for point in unit_of().points
    )
    large = unit_of(
        name="client-001", client=1, architecture="resnet-w24-d1", points=points,
        memory=Memory(peak_bytes=90 << 20, process="python"),
    )  # fmt: skip
    result: SweepResult = sweep_of(unit_of(), large)
    return result


def test_without_limits_the_most_accurate_wins_and_no_image_is_sent(two: SweepResult) -> None:
    advice = ask(two)
    assert advice.best is not None
    assert (advice.best.architecture, advice.best.rule) == ("resnet-w24-d1", "cloud-feature")
    assert advice.architectures == ("resnet-w24-d1", "resnet-w16-d1")
    allowed = ask(two, images=True).best
    assert allowed is not None
    assert allowed.rule == "cloud-image"


def test_limits_take_others_out_and_say_why(two: SweepResult) -> None:
    advice = ask(two, p90_s=0.03, memory=80 << 20)
    assert advice.best is not None
    assert (advice.best.architecture, advice.best.rule) == ("resnet-w16-d1", "following 5 %")
    reasons = {(one.architecture, one.strategy): (one.fits, one.reason) for one in advice.verdicts}
    assert reasons["resnet-w24-d1", "fallback"] == (False, "peak memory: 90.0 MiB is above 80.0 MiB")
    fits, reason = reasons["resnet-w16-d1", "cloud-feature"]
    assert (fits, reason.startswith("p90 7")) == (False, True)
    assert reason.endswith("is above 30 ms")
    assert reasons["resnet-w16-d1", "device"] == (
        True,
        "fits, but is 12.0 points less accurate on the images to choose by",
    )


def test_a_sure_time_is_the_upper_end_of_its_range(two: SweepResult) -> None:
    slow = 0.02 * 0.088  # p90 of the device alone; its range ends 1.25 times higher
    assert ask(two, link=None, p90_s=1.1 * slow).best is not None
    assert ask(two, link=None, p90_s=1.1 * slow, sure=True).best is None
    assert ask(two, link=None, p90_s=1.3 * slow, sure=True).best is not None


def test_without_a_link_the_cloud_is_not_asked(two: SweepResult) -> None:
    assert {one.strategy for one in ask(two, link=None).verdicts} == {"device"}


def test_of_two_that_are_alike_devices_do_what_is_taken(sweep_of: Any, unit_of: Any) -> None:
    points = {point.rule.name: point for point in unit_of().points}
    fixed = points["fallback as shipped"]
    alike = fixed.model_copy(update={"rule": points["following as shipped"].rule})
    advice = ask(sweep_of(unit_of(points=(fixed, alike))))
    assert [(one.rule, one.reason) for one in advice.verdicts] == [
        ("following as shipped", "the best within the budget"),
        ("fallback as shipped", "fits, as accurate on the images to choose by, and as quick"),
    ]


def test_other_limits(two: SweepResult) -> None:
    for limit in ({"sent": 100.0}, {"offload": 0.05}, {"file": 1000.0}, {"first_s": 0.01}, {"median_s": 0.0001}):
        broken = [one for one in ask(two, **limit).verdicts if not one.fits]
        assert broken, limit


def test_what_was_not_measured_is_said(two: SweepResult) -> None:
    with pytest.raises(ConfigError, match=r"ρ = 0\.5 was not measured .choose from 0, 1"):
        ask(two, rho=0.5)
    with pytest.raises(ConfigError, match="the sparse regime was not measured"):
        ask(two, regime="sparse")
    with pytest.raises(ConfigError, match="'5g' is no link"):
        ask(two, link="5g")


@pytest.mark.parametrize(
    ("text", "value"), [("30ms", 0.03), ("1.5 s", 1.5), ("250us", 0.00025), (".5s", 0.5), ("30MS", 0.03)]
)
def test_times(text: str, value: float) -> None:
    assert seconds(text, "--p90") == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("32MiB", 32 << 20), ("1kB", 1000), ("784B", 784), ("2gib", 2 << 30)])
def test_sizes(text: str, value: float) -> None:
    assert size(text, "--max-memory") == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("30", "--p90: '30' has no unit .write for example 30ms; units: us, µs, ms, s."),
        ("fast", "--p90: 'fast' is no number with a unit"),
        ("30MiB", "--p90: 'MiB' is no unit of it .use one of us, µs, ms, s."),
        ("-3ms", "is no number with a unit"),
        ("0ms", "must be more than nothing"),
        ("nan s", "is no number"),
    ],
)
def test_what_is_no_time(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        seconds(text, "--p90")


@pytest.fixture
def folder(tmp_path: Path, two: SweepResult) -> Path:
    (tmp_path / "sweep").mkdir()
    write_result(tmp_path / "sweep", two)
    return tmp_path / "sweep"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command(folder: Path) -> None:
    done = run(folder, "--device", "pixel-3a", "--link", "lte", "--p90", "30ms", "--max-memory", "80MiB")
    assert done.returncode == 0
    assert "take   resnet-w16-d1 in onnxruntime, fp32, trained by harmony: following 5 %" in done.stdout
    assert "3 % of images to the cloud, 3.0 % of own ones" in done.stdout
    assert "exit 2 ≥ -3 while the stream looks foreign, else nothing is sent" in done.stdout
    assert "peak memory: 90.0 MiB is above 80.0 MiB" in done.stdout
    assert "train  harmony train --arch resnet-w16-d1 --set exits.offload=0.05\n" in done.stdout


def test_the_command_for_scripts(folder: Path) -> None:
    done = run(folder, "--device", "pixel-3a", "--p90", "1us", "--json")
    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert (value["format"], value["best"], value["architectures"]) == ("harmony-advice", None, [])
    assert Advice.model_validate(value).question.budget.p90_s == pytest.approx(1e-6)


def test_an_unknown_device_lists_the_known_ones(folder: Path) -> None:
    done = run(folder, "--device", "pixel-9")
    assert done.returncode == 2
    assert done.stderr.startswith("harmony: ConfigError: device: 'pixel-9' is no known device (choose from pixel, ")
