"""The README's figures are those of the result file beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony.bench.demo import DemoResult
from harmony.bench.published import BEGIN, END, block, publish
from harmony.bench.result_files import read_result
from harmony.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results() -> list[DemoResult]:
    return [read_result(path, DemoResult) for path in sorted((ROOT / "results").glob("demo-*.json"))]


def test_the_readme_publishes_its_result_files(results: list[DemoResult]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{block(results)}\n\n{END}" in text


def test_the_published_runs_are_three_seeds_of_one_clean_commit(results: list[DemoResult]) -> None:
    assert len({one.seed for one in results}) >= 3
    (commit,) = {one.bench.host.commit for one in results}
    assert commit is not None
    assert not commit.endswith("+")


def test_only_the_block_changes_and_the_mean_is_in_it(results: list[DemoResult], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    publish(results, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old figures" not in text
    overall = [100 * one.curves["harmony"].mean[-1].accuracy.overall for one in results]
    assert f"{sum(overall) / len(overall):.1f} ± " in text


def test_a_file_without_marks_is_left_alone(results: list[DemoResult], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nno end")
    with pytest.raises(ConfigError, match="put both marks"):
        publish(results, readme)
    assert readme.read_text() == f"{BEGIN}\nno end"


def test_results_that_differ_in_more_than_the_seed_are_refused(results: list[DemoResult], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}")
    other = dict(results[1].configs) | {"harmony": results[1].configs["harmony"] | {"rounds": 1}}
    for wrong in ([results[0], results[0]], [results[0], results[1].model_copy(update={"configs": other})], []):
        with pytest.raises(ConfigError, match="results"):
            publish(wrong, readme)
