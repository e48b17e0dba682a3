"""The page of a sweep, and of two."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harmony.bench.result_files import write_result
from harmony.bench.statistics import ratio
from harmony.bench.sweep.compare import compare
from harmony.bench.sweep.report import write_report
from harmony.bench.sweep.schema import PathCost, RegimeCosts
from harmony.core.errors import ContractMismatch


def test_the_page_needs_nothing_else_and_says_how_it_was_measured(tmp_path: Path, sweep_of: Any) -> None:
    write_report(tmp_path / "page.html", sweep_of())
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<link|<img", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for words in ("virtual-time", "XNNPACK README", "2020-03-27", "0.50 … 1.25", "steal", "1 thread", "8.80", "+100 %"):
        assert words in page
    assert page.count("<svg") == 9


def test_a_sweep_without_a_cloud(tmp_path: Path, sweep_of: Any, unit_of: Any) -> None:
    alone = unit_of(cloud=None, points=unit_of().points[:1])
    write_report(tmp_path / "page.html", sweep_of(alone, clouds={}))
    assert "device as shipped" in (tmp_path / "page.html").read_text()


def _slower(unit: Any, factor: float) -> Any:
    paths = tuple(
        PathCost(
            path=path.path, samples=path.samples, host_s=path.host_s,
            rounds=ratio([factor * path.rounds.median * noise for noise in (0.9, 1, 1.1)]),
        )
        for path in unit.costs[0].paths
    )  # fmt: skip
    return unit.model_copy(update={"costs": (RegimeCosts(regime="hot", paths=paths),)})


def test_changes_are_told_from_noise(tmp_path: Path, sweep_of: Any, unit_of: Any) -> None:
    before, after = (sweep_of(_slower(unit_of(), factor)) for factor in (1, 1.5))
    (change,) = compare(before, after)
    assert [round(cost.ratio, 6) for cost in change.costs] == [1.5] * 3
    assert all(cost.apart for cost in change.costs)
    assert change.accuracy == (0.81, 0.81)
    assert not any(cost.apart for cost in compare(before, sweep_of(_slower(unit_of(), 1.05)))[0].costs)
    write_report(tmp_path / "page.html", after, before=before)
    page = (tmp_path / "page.html").read_text()
    assert "+50.0 %" in page
    assert "the median cost is 1.500 of before" in page


def test_two_precisions_are_never_in_one_plot(tmp_path: Path, sweep_of: Any, unit_of: Any) -> None:
    """Beside an int8 unit that knows nothing, the figures of the first one's precision stay what they are."""
    points = tuple(
        point.model_copy(
            update={
                "mixes": tuple(
                    mix.model_copy(update={"accuracy": mix.accuracy.model_copy(update={"overall": 0.0})})
                    for mix in point.mixes
                )
            }
        )
        for point in unit_of().points
    )
    write_report(tmp_path / "page.html", sweep_of(unit_of(), unit_of(precision="int8", points=points)))
    page = (tmp_path / "page.html").read_text()
    assert "<b>81.0 %</b><span>accuracy at ρ = 1, HARMONY, as shipped</span>" in page
    assert "ONNX int8" in page


def test_sweeps_without_a_common_regime_are_not_compared(sweep_of: Any, unit_of: Any) -> None:
    paused = unit_of(costs=(unit_of().costs[0].model_copy(update={"regime": "sparse"}),))
    with pytest.raises(ContractMismatch, match=r"no regime in common .sweep both with or without --sparse"):
        compare(sweep_of(), sweep_of(paused))


def test_the_command_writes_a_page_about_two_sweeps(tmp_path: Path, sweep_of: Any, unit_of: Any) -> None:
    sweeps = {"before": sweep_of(), "after": sweep_of(_slower(unit_of(), 2)), "other": sweep_of(unit_of(run="other"))}
    for name, sweep in sweeps.items():
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, sweep)

    def report(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harmony.cli.main", "bench", "report", "after", "--compare", name]
        return subprocess.run(
            [*command, "--out", "page.html"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    done = report("other")
    assert done.returncode == 2
    assert "the two sweeps have no bundle and engine in common" in done.stderr
    assert not (tmp_path / "page.html").exists()
    done = report("before")
    assert (done.returncode, done.stdout) == (0, "report: page.html\n")
    page = (tmp_path / "page.html").read_text()
    assert "Compared with an earlier sweep" in page
    assert "+100.0 %" in page
