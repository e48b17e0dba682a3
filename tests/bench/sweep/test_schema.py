"""What a sweep's file refuses to be, and to be read as."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harmony.bench.devices import DEVICES, find_device
from harmony.bench.sweep.combine import cases
from harmony.bench.sweep.compare import compare
from harmony.bench.sweep.files import CASES_CSV, CASES_JSON, SWEEP_JSON, flat, read_sweep, save_sweep
from harmony.bench.sweep.schema import PathCost, RegimeCosts, SweepResult
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactTooNew,
    ConfigError,
    ContractMismatch,
    RunExists,
)


def test_costs_of_two_tiers_are_never_in_one_file(sweep_of: Any, unit_of: Any) -> None:
    counted = tuple(PathCost(path=one.path, samples=one.samples, rounds=one.rounds) for one in unit_of().costs[0].paths)
    other = unit_of(name="client-001", costs=(RegimeCosts(regime="hot", paths=counted),))
    with pytest.raises(ValidationError, match="costs of another tier among those of virtual-time"):
        sweep_of(unit_of(), other)
    with pytest.raises(ValidationError, match="costs of another tier among those of arm-instructions"):
        sweep_of(tier="arm-instructions")
    calibration = sweep_of().calibrations[0].model_copy(update={"host_s": None})
    assert sweep_of(other, tier="arm-instructions", calibrations=(calibration,)).units == (other,)


def test_every_unit_was_calibrated_and_knows_its_cloud(sweep_of: Any, unit_of: Any) -> None:
    with pytest.raises(ValidationError, match="ran in native, which was not calibrated"):
        sweep_of(unit_of(engine="executorch", runtime="native"))
    with pytest.raises(ValidationError, match="asks a cloud that is not among the clouds"):
        sweep_of(unit_of(cloud="elsewhere"))


def test_sweeps_of_two_tiers_are_not_compared(sweep_of: Any, unit_of: Any) -> None:
    timed = sweep_of()
    counted = timed.model_copy(update={"tier": "arm-instructions"})
    with pytest.raises(ContractMismatch, match="never put side by side: virtual-time and arm-instructions"):
        compare(timed, counted)
    with pytest.raises(ContractMismatch, match="no bundle and engine in common"):
        compare(timed, sweep_of(unit_of(run="another")))


def test_a_folder_holds_the_same_numbers_three_times(tmp_path: Path, sweep_of: Any) -> None:
    save_sweep(tmp_path / "out", sweep_of())
    result = read_sweep(tmp_path / "out")
    assert result == sweep_of() == read_sweep(tmp_path / "out" / SWEEP_JSON)
    expected = [flat(one) for one in cases(result)]
    table = json.loads((tmp_path / "out" / CASES_JSON).read_text())
    assert (table["format"], table["format_version"]) == ("harmony-sweep-cases", 2)
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]] == expected
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / CASES_CSV).read_text())))
    assert [float(row["latency_p90_s"]) for row in rows] == [one["latency_p90_s"] for one in expected]
    assert rows[0]["link"] == ""
    for column in ("tier", "calibration", "regime", "engine", "threads", "precision"):
        assert all(row[column] for row in rows)


def test_an_existing_folder_is_kept(tmp_path: Path, sweep_of: Any) -> None:
    save_sweep(tmp_path / "out", sweep_of())
    with pytest.raises(RunExists):
        save_sweep(tmp_path / "out", sweep_of())
    save_sweep(tmp_path / "out", sweep_of(seconds=1.0), replace=True)
    assert read_sweep(tmp_path / "out").seconds == 1.0


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"format_version": 3}, ArtifactTooNew, "has schema version 3, this program reads 2"),
        ({"format_version": 1}, ArtifactCorrupt, "has schema version 1, this program reads 2"),
        ({"format": "harmony-bench"}, ArtifactCorrupt, "is a 'harmony-bench', not a 'harmony-sweep'"),
        ({"tier": "guess"}, ArtifactCorrupt, "tier: Input should be 'virtual-time'"),
    ],
)
def test_files_of_another_schema_are_refused_by_name(
    tmp_path: Path, sweep_of: Any, changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(sweep_of().model_dump_json()) | changed))
    with pytest.raises(error, match=says):
        read_sweep(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no sweep here"):
        read_sweep(tmp_path)


def test_the_schema_says_what_fields_mean() -> None:
    described = SweepResult.model_json_schema()["$defs"]
    assert all(described[name].get("description") for name in ("Unit", "PathCost", "Rule", "Point", "Calibration"))


def test_every_device_row_tells_where_it_is_from() -> None:
    for device in DEVICES.values():
        for row in (device.reference, *device.checks):
            assert row.source
            assert row.threads == 1
        assert device.reference.model == "mobilenet-v1"
    with pytest.raises(ConfigError, match=r"'pixel-9' is no known device .choose from pixel, pixel-2, pixel-3a"):
        find_device("pixel-9")
