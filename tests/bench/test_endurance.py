"""What grows is seen to grow, and a real device process reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harmony.bench.endurance import EnduranceResult, EnduranceSettings, endure
from harmony.bench.endurance_probe import READINGS, Course, course
from harmony.bench.result_files import read_result
from harmony.cli.main import main
from harmony.core.errors import ArtifactMissing

if TYPE_CHECKING:
    from tests.bench.conftest import Federation

MIB = 1 << 20


def test_a_leak_is_seen_and_what_is_steady_is_not() -> None:
    kept: list[bytearray] = []
    leaking = course(100, lambda number: kept.append(bytearray(b"x") * MIB))
    assert len(leaking.resident_bytes) == READINGS + 1
    assert leaking.resident_bytes[-1] - leaking.resident_bytes[0] == pytest.approx(100 * MIB, rel=0.1)
    assert leaking.growth > 0.1
    steady = course(100, lambda number: bytearray(b"x") * MIB)
    assert abs(steady.resident_bytes[-1] - steady.resident_bytes[0]) < 4 * MIB


def test_growth_is_of_the_last_over_the_first_reading() -> None:
    assert Course(count=10, resident_bytes=(100, 300, 105)).growth == pytest.approx(0.05)


def test_a_device_process_answers_and_opens_and_reports(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "endurance.json"
    words = [str(federation.devices[0]), "--answers", "40", "--openings", "20", "--fail-above", "1000"]
    monkeypatch.setattr("sys.argv", ["harmony", "bench", "endurance", *words, "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    result = read_result(out, EnduranceResult)
    assert json.loads(capsys.readouterr().out) == result.model_dump(mode="json")
    assert (result.settings.answers, result.settings.engine) == (40, "onnxruntime")
    (found,) = result.bundles
    assert found.bundle == str(federation.devices[0])
    assert (found.answers.count, found.openings.count) == (40, 20)
    assert len(found.answers.resident_bytes) == len(found.openings.resident_bytes) == READINGS + 1
    assert min(found.answers.resident_bytes) > 10 * MIB
    assert found.growth == max(found.answers.growth, found.openings.growth)


def test_no_bundle_is_a_named_error_before_another_is_measured(federation: Federation, tmp_path: Path) -> None:
    heard: list[Path] = []
    settings = EnduranceSettings(bundles=(federation.devices[0], tmp_path), answers=10, openings=10)
    with pytest.raises(ArtifactMissing):
        endure(settings, heard.append)
    assert heard == []
