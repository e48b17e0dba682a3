"""`harmony bench export`: what is lowered is counted where it is lowered, and sharing is what saves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harmony.bench.exporting import ExportBench, ExportSettings, bench_export
from harmony.bench.result_files import read_result
from harmony.cli.main import main
from harmony.core.errors import ArtifactMissing, ConfigError
from harmony.core.sealed import hash_file


def test_an_architecture_is_lowered_once_in_one_go_and_for_each_client_by_itself(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "export.json"
    words = [str(tiny_run), "--clients", "2", "--format", "onnx", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["harmony", "bench", "export", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    result = read_result(out, ExportBench)
    assert result.checkpoint == hash_file(tiny_run / "checkpoint" / "manifest.json")
    (lowered,) = result.lowered
    assert (lowered.architecture, lowered.format, lowered.clients) == ("resnet-w8-d1", "onnx", 2)
    assert (lowered.together, lowered.apart, lowered.cpu_s.n) == (1, 2, 3)
    for cost in (result.together, result.apart):
        assert 0 < cost.lowering_s.median < cost.cpu_s.median
    assert result.ratio.median == pytest.approx(result.apart.cpu_s.median / result.together.cpu_s.median)
    printed = capsys.readouterr().out
    assert "each by itself takes" in printed
    assert "resnet-w8-d1, onnx" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert json.loads(out.read_text())["settings"]["formats"] == ["onnx"]


def test_what_cannot_be_measured_is_named(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the run has 3 clients, not 4 .ask for fewer with --clients"):
        bench_export(ExportSettings(run=tiny_run, clients=4))
    with pytest.raises(ArtifactMissing):
        bench_export(ExportSettings(run=tmp_path / "nothing"))
