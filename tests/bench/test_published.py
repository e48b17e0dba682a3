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
def result() -> DemoResult:
    return read_result(ROOT / "results" / "demo.json", DemoResult)


def test_the_readme_publishes_its_result_file(result: DemoResult) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{block(result)}\n\n{END}" in text


def test_the_published_run_is_of_a_clean_commit_and_at_full_size(result: DemoResult) -> None:
    assert not result.fast
    assert result.bench.host.commit is not None
    assert not result.bench.host.commit.endswith("+")


def test_only_the_block_changes(result: DemoResult, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    publish(result, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old figures" not in text
    overall = result.curves["harmony"].mean[-1].accuracy.overall
    assert f"{100 * overall:.1f}" in text


def test_a_file_without_marks_is_left_alone(result: DemoResult, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nno end")
    with pytest.raises(ConfigError, match="put both marks"):
        publish(result, readme)
    assert readme.read_text() == f"{BEGIN}\nno end"
