"""Schema, JSON, CSV and folders."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from harmony.bench.curves import MethodCurves, curves_of
from harmony.bench.endurance import EnduranceResult
from harmony.bench.exporting import ExportBench
from harmony.bench.folder import result_folder
from harmony.bench.peers.results import PeersBench
from harmony.bench.personal_results import PersonalBench
from harmony.bench.result_files import JSON_FILE, read_result, to_csv, write_result
from harmony.bench.results import BenchResult, BenchSettings, Versioned
from harmony.bench.training import TrainingBench
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactTooNew, RunExists


def test_json_round_trip(result: BenchResult, tmp_path: Path) -> None:
    write_result(tmp_path, result)
    again = read_result(tmp_path / JSON_FILE, BenchResult)
    assert again.model_dump() == result.model_dump()


def test_the_key_is_never_written(result: BenchResult, tmp_path: Path) -> None:
    write_result(tmp_path, result)
    assert result.settings.key == "secret-key"
    assert "secret-key" not in (tmp_path / JSON_FILE).read_text()
    assert "secret-key" not in repr(result.settings)


def test_csv_says_what_json_says(result: BenchResult) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    pairs = [(bundle, mix) for bundle in result.bundles for mix in bundle.mixes]
    assert len(rows) == len(pairs) == 24
    for row, (bundle, mix) in zip(rows, pairs, strict=True):
        assert (row["bundle"], int(row["client"]), float(row["rho"])) == (bundle.name, bundle.client, mix.rho)
        assert float(row["accuracy_overall"]) == mix.accuracy.overall
        assert row["accuracy_ood"] == ("" if mix.accuracy.ood is None else str(mix.accuracy.ood))
        timing = bundle.timings[0].path("exit2")
        assert timing is not None
        assert float(row["exit2_p90_s"]) == timing.wall.p90


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"{", ArtifactCorrupt, "is not JSON"),
        (b"[]", ArtifactCorrupt, "is a 'None', not a 'harmony-bench'"),
        (b'{"format": "harmony-demo"}', ArtifactCorrupt, "is a 'harmony-demo'"),
        (b'{"format": "harmony-bench", "format_version": 2}', ArtifactTooNew, "schema version 2.*update harmony-sfl"),
        (b'{"format": "harmony-bench", "format_version": 0}', ArtifactCorrupt, "schema version 0"),
        (b'{"format": "harmony-bench", "format_version": 1}', ArtifactCorrupt, "harmony_version: Field required"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused(
    content: bytes, error: type[Exception], says: str, tmp_path: Path
) -> None:
    path = tmp_path / JSON_FILE
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        read_result(path, BenchResult)


@pytest.mark.parametrize("kind", [PeersBench, PersonalBench, EnduranceResult, TrainingBench, ExportBench])
def test_every_result_file_says_what_it_is_and_another_version_is_refused(
    kind: type[Versioned], tmp_path: Path
) -> None:
    fields = {name: field.default for name, field in kind.model_fields.items()}
    assert (fields["format"], fields["format_version"]) == (kind.FORMAT, kind.VERSION)
    path = tmp_path / JSON_FILE
    path.write_text(json.dumps({"format": kind.FORMAT, "format_version": kind.VERSION + 1}))
    with pytest.raises(ArtifactTooNew, match=f"schema version {kind.VERSION + 1}, .*update harmony-sfl"):
        read_result(path, kind)
    path.write_text(json.dumps({"format": "harmony-bench", "format_version": kind.VERSION}))
    with pytest.raises(ArtifactCorrupt, match=f"is a 'harmony-bench', not a '{kind.FORMAT}'"):
        read_result(path, kind)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no such result file"):
        read_result(tmp_path / JSON_FILE, BenchResult)


def test_one_cloud_only() -> None:
    with pytest.raises(ValidationError, match="not both"):
        BenchSettings(bundles=(Path("a"),), rhos=(1.0,), cloud=Path("b"), server="http://127.0.0.1:1")


def test_curves_mean_over_clients(result: BenchResult, curves: dict[str, MethodCurves]) -> None:
    first, *_, last = curves["harmony"].mean
    assert (first.rho, last.rho) == (0.0, 1.0)
    assert last.accuracy.overall == pytest.approx(0.93 - 0.12 - 0.01 * 3.5)
    assert first.accuracy.ood is None
    measured = curves_of(result.bundles)
    assert list(measured) == ["harmony"]
    assert [one.client for one in measured["harmony"].clients] == list(range(8))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, result: BenchResult) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="halfway"), result_folder(out, "harmony-bench", replace=False) as draft:
        write_result(draft, result)
        raise RuntimeError("halfway")
    assert list(tmp_path.iterdir()) == []


def test_only_results_are_replaced_and_only_when_asked(tmp_path: Path, result: BenchResult) -> None:
    out = tmp_path / "out"
    for replace in (False, True):
        with result_folder(out, "harmony-bench", replace=replace) as draft:
            write_result(draft, result)
            (draft / str(replace)).touch()
    assert sorted(path.name for path in out.iterdir()) == ["True", JSON_FILE]
    with pytest.raises(RunExists, match="add --force"), result_folder(out, "harmony-bench", replace=False):
        pass
    with pytest.raises(RunExists, match="something else"), result_folder(out, "harmony-demo", replace=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_replacement_keeps_the_old_results(tmp_path: Path, result: BenchResult) -> None:
    out = tmp_path / "out"
    with result_folder(out, "harmony-bench", replace=False) as draft:
        write_result(draft, result)
    with pytest.raises(KeyboardInterrupt), result_folder(out, "harmony-bench", replace=True):
        raise KeyboardInterrupt
    assert json.loads((out / JSON_FILE).read_bytes())["format"] == "harmony-bench"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
