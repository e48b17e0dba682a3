"""`harmony export`: what is printed, and that a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harmony.cli.main import main
from harmony.core import errors
from harmony.export import EngineReport, ExportReport

REPORTS = [
    ExportReport(
        bundle=Path("out/client-000"), client=0, architecture="resnet-w8-d1", parameters=1234, kept=False, seconds=1.5,
        engines=(
            EngineReport("onnxruntime", {"exit1.onnx": 1024, "exit2.onnx": 1024}, 2e-6, None, 0.1),
            EngineReport("executorch", {"front_end.pte": 4096}, 3e-6, 1.0, 0.2),
        ),
    ),
    ExportReport(Path("out/cloud"), None, None, 99, (), kept=True, seconds=0),
]  # fmt: skip


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harmony", "export", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the command hands to export_run, which itself is tested where it lives."""
    seen: dict[str, object] = {}

    def export_run(run: Path, out: Path, **options: object) -> list[ExportReport]:
        seen.update(run=run, out=out, **options)
        return REPORTS

    monkeypatch.setattr("harmony.export.export_run", export_run)
    return seen


def test_defaults_are_every_client_in_both_formats(
    asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(monkeypatch, "runs/first", "--out", "out") == 0
    assert (asked["clients"], asked["formats"]) == (None, ["onnx", "executorch"])
    assert (asked["run"], asked["out"]) == (Path("runs/first"), Path("out"))
    assert (asked["precision"], asked["min_agreement"]) == ("fp32", 0.99)
    printed = capsys.readouterr().out
    for words in ("out/client-000", "resnet-w8-d1", "1,234", "2 + 4", "2.0e-06 / 3.0e-06", "100%", "kept"):
        assert words in printed


def test_choices_reach_the_export_and_json_is_json(
    asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--client", "0, 5", "--format", "onnx", "--jobs", "3", "--noise", "--data-dir", "d", "--json")
    quantised = ("--precision", "int8", "--min-agreement", "0.9")
    assert _run(monkeypatch, "r", "--out", "o", *options, *quantised) == 0
    assert (asked["precision"], asked["min_agreement"]) == ("int8", 0.9)
    expected = {"clients": [0, 5], "formats": ["onnx"], "jobs": 3, "noise": True, "data_dir": Path("d")}
    assert {name: asked[name] for name in expected} == expected
    first, last = json.loads(capsys.readouterr().out)
    assert first["engines"][1]["delegated"] == 1
    assert (last["bundle"], last["kept"], last["client"]) == ("out/cloud", True, None)


def test_a_module_of_ones_own_is_not_quantised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "--module", "a:b", "--out", "o", "--precision", "int8") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harmony: ConfigError: --precision: --module is exported in fp32")


@pytest.mark.parametrize("client", ["x", "1,", "-1", "1-3", ""])
def test_clients_that_are_none(
    client: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "r", "--out", "o", f"--client={client}") == errors.HarmonyError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harmony: ConfigError: --client: ")


def test_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _run(monkeypatch, str(tmp_path / "gone"), "--out", str(tmp_path / "o")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"harmony: ArtifactMissing: {tmp_path / 'gone'}")
    assert not (tmp_path / "o").exists()
