"""Reports: tables and plots say what the cells say, and the documents say what the result files say."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from matplotlib import image

from harmony.bench.experiment import ExperimentResult, Grid, cells_of, collect, restore
from harmony.bench.experiment.grid import Published
from harmony.bench.experiment.plots import save_plots
from harmony.bench.experiment.published import BEGIN, END, page_block, publish, readme_block, save_report
from harmony.bench.experiment.results import CellResult
from harmony.bench.experiment.summary import best_rival, lines, metrics, places
from harmony.bench.experiment.tables import Table, ablation, accuracy, beside_published, budgets, gaps, gates, to_csv
from harmony.bench.host import Watch
from harmony.bench.result_files import read_result
from harmony.core.errors import ConfigError
from harmony.train.gates import GateJudgement

ROOT = Path(__file__).resolve().parents[3]
RESULTS = sorted((ROOT / "results").glob("experiment-*.json"))


@pytest.fixture(scope="module")
def result(grid: Grid, ran: Path) -> ExperimentResult:
    return collect(grid, ran, Watch())


Change = Callable[[CellResult], CellResult | None]


def with_cells(result: ExperimentResult, change: Change) -> ExperimentResult:
    """The result with every cell changed, or left out where the change is None."""
    cells = tuple(new for cell in result.cells if (new := change(cell)) is not None)
    return result.model_copy(update={"cells": cells})


def scoring(**overall: tuple[float, float]) -> Change:
    """Give methods (by their first letters) overall accuracies at the largest ρ, one a seed."""

    def change(cell: CellResult) -> CellResult:
        for start, values in overall.items():
            if cell.method.startswith(start):
                curve = cell.evaluation["mean"]
                last = curve[-1] | {"overall": values[cell.seed], "adaptive": values[cell.seed]}
                return cell.model_copy(update={"evaluation": cell.evaluation | {"mean": [*curve[:-1], last]}})
        return cell

    return change


def row(table: Table | None, name: str) -> dict[str, str]:
    assert table is not None
    (found,) = [one for one in table.rows if one[0] == name]
    return dict(zip(table.columns, found, strict=True))


def test_a_table_holds_means_and_deviations_over_seeds(result: ExperimentResult) -> None:
    place = places(result)[0]
    assert place.label == "few, two widths"
    values = [
        100 * cell.evaluation["mean"][-1]["server_ood"]
        for cell in result.cells
        if (cell.method, cell.family) == ("SplitGP", "two widths")
    ]
    assert (
        row(accuracy(result, place), "SplitGP")["cloud, other"].strip("*")
        == f"{mean(values):.1f} ± {stdev(values):.1f}"
    )
    assert row(accuracy(result, place), "SplitGP")["seeds"] == "2"


def test_the_best_is_bold_and_a_reference_never(result: ExperimentResult) -> None:
    changed = with_cells(result, scoring(HARMONY=(0.5, 0.6), SplitGP=(0.4, 0.5), alike=(0.9, 0.9)))
    table = accuracy(changed, places(changed)[0])
    assert row(table, "HARMONY")["ρ = 1"] == "**55.0 ± 7.1**"
    assert row(table, "SplitGP")["ρ = 1"] == "45.0 ± 7.1"
    assert row(table, "alike")["ρ = 1"] == "90.0 ± 0.0"


def test_equal_to_the_last_digit_is_equally_bold(result: ExperimentResult) -> None:
    changed = with_cells(result, scoring(HARMONY=(0.5, 0.5), SplitGP=(0.5001, 0.5001), **{"−": (0.2, 0.2)}))
    table = accuracy(changed, places(changed)[0])
    assert row(table, "HARMONY")["ρ = 1"] == row(table, "SplitGP")["ρ = 1"] == "**50.0 ± 0.0**"


def test_what_training_sends_is_counted_and_has_no_deviation(result: ExperimentResult) -> None:
    sent = {cell.traffic.sent for cell in result.cells if cell.method == "SplitGP" and cell.traffic is not None}
    assert len(sent) == 1
    assert row(accuracy(result, places(result)[0]), "SplitGP")["kB sent"] == f"{sent.pop() / 1e3:.1f}"


def test_missing_seeds_are_shown(result: ExperimentResult, tmp_path: Path) -> None:
    fewer = with_cells(result, lambda cell: None if (cell.method, cell.seed) == ("SplitGP", 1) else cell)
    line = row(accuracy(fewer, places(fewer)[0]), "SplitGP")
    assert line["seeds"] == "1 of 2"
    assert "±" not in line["ρ = 0"]
    text = page_block([fewer], "plots")
    assert "1 of 10 runs were not made" in text
    assert "not made" not in page_block([result], "plots")


def test_the_readme_waits_for_every_seed(result: ExperimentResult) -> None:
    headline = result.model_copy(update={"grid": result.grid.model_copy(update={"headline": True})})
    fewer = with_cells(headline, lambda cell: None if (cell.method, cell.seed) == ("SplitGP", 1) else cell)
    page = Path("docs/results.md")
    assert {"### few, two widths", "### few, two families"} <= set(readme_block([headline], page).splitlines())
    assert "### few, two widths" not in readme_block([fewer], page)  # where SplitGP runs
    assert "### few, two families" in readme_block([fewer], page)
    bare = with_cells(headline, lambda cell: None if cell.seed else cell)
    assert "|" not in readme_block([bare], page)
    assert "docs/results.md" in readme_block([bare], page)


def test_gaps_are_to_the_best_rival(result: ExperimentResult) -> None:
    changed = with_cells(result, scoring(HARMONY=(0.5, 0.6), SplitGP=(0.6, 0.8), alike=(0.9, 0.9)))
    assert row(gaps(changed), "few, two widths")["ρ = 1"] == "−15.0 ± 7.1 (SplitGP)"  # 50 − 60 and 60 − 80
    here = lines(changed, places(changed)[0])
    best = best_rival(here, metrics(changed)["high"])
    assert best is not None
    assert best.method == "SplitGP"


def test_an_ablation_is_compared_seed_by_seed(result: ExperimentResult) -> None:
    changed = with_cells(result, scoring(HARMONY=(0.5, 0.7), **{"−": (0.4, 0.6)}))
    table = ablation(changed, places(changed)[0])
    assert row(table, "HARMONY")["ρ = 1"] == "60.0 ± 14.1"
    assert row(table, "− simulation")["ρ = 1"] == "−10.0 ± 0.0"  # the seeds differ, the differences do not


def test_gates_are_listed_where_they_were_judged(result: ExperimentResult) -> None:
    assert gates(result, places(result)[0]) is None
    one = GateJudgement(name="entropy", auroc=0.6, fpr95=0.9, overall=0.5, overall0=0.8, id_to_server=0.1)
    judged = with_cells(result, lambda cell: cell.model_copy(update={"gates": (one,)}))
    assert row(gates(judged, places(judged)[0]), "entropy")["AUROC"] == "60.0 ± 0.0"


def test_other_promises_are_listed_for_ours(result: ExperimentResult) -> None:
    place = places(result)[0]
    cells = next(line for line in lines(result, place) if line.role == "ours").cells
    found = row(budgets(result, place), "20 %")
    curves = [next(one for one in cell.evaluation["budgets"] if one["budget"] == 0.2) for cell in cells]
    assert found["ρ 1"].startswith(f"{100 * mean(one['adaptive'][-1] for one in curves):.1f} ± ")
    assert found["own sent"].startswith(f"{100 * mean(one['id_to_server'] for one in curves):.1f} ± ")
    assert found["seeds"] == "2"
    words = [one["word"][-1] for one in curves]
    assert found["ρ 1, word"].startswith(f"{100 * mean(words):.1f} ± ")
    assert row(budgets(result, place), "1 %")["own answered"] == "–"
    old = with_cells(result, lambda cell: cell.model_copy(update={"evaluation": _without(cell.evaluation, "budgets")}))
    assert budgets(old, place) is None


def _without(table: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


def test_published_figures_stand_beside_ours(result: ExperimentResult) -> None:
    assert beside_published(result) is None
    other = Published(name="Theirs", source="a paper", accuracy={"few": 90.02})
    another = Published(name="Hers", source="a paper", accuracy={"few": 1.0})
    changed = result.model_copy(update={"grid": result.grid.model_copy(update={"published": (other, another)})})
    assert "Theirs, Hers: a paper." in page_block([changed], "plots")
    table = beside_published(changed)
    assert row(table, "Theirs")["few"] == "90.02"
    assert "±" in row(table, "HARMONY, here, two widths")["few"]
    assert row(table, "HARMONY, here, two families")["few"] == "–"


def test_the_readme_shows_published_figures_beside_what_is_whole(result: ExperimentResult) -> None:
    other = Published(name="Theirs", source="a paper", accuracy={"few": 90.02})
    headline = result.grid.model_copy(update={"published": (other,), "headline": True})
    changed, page = result.model_copy(update={"grid": headline}), Path("docs/results.md")
    fewer = with_cells(changed, lambda cell: None if (cell.method, cell.seed) == ("SplitGP", 1) else cell)
    assert "| Theirs | 90.02 |" in readme_block([fewer], page)
    assert "Theirs: a paper." in readme_block([fewer], page)
    assert "| HARMONY, here, two widths | " in readme_block([fewer], page)
    assert "SplitGP, here" not in readme_block([fewer], page)
    assert "| SplitGP, here, two widths | " in readme_block([changed], page)
    bare = with_cells(changed, lambda cell: None if cell.seed else cell)
    assert "|" not in readme_block([bare], page), "published figures alone are nothing of ours"


def test_the_csv_holds_every_cell_and_field(result: ExperimentResult) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert len(rows) == 2 * len(result.cells)
    first = result.cells[0]
    assert rows[0]["method"] == first.method
    for name, value in first.evaluation["mean"][0].items():
        assert rows[0][name] == ("" if value is None else str(value))


def test_a_legend_of_long_names_is_not_cut_off(result: ExperimentResult, tmp_path: Path) -> None:
    """One narrow panel, three methods whose names side by side are wider than it."""
    one = with_cells(result, lambda cell: cell if cell.family == "two widths" else None)
    names = {method.name: f"{method.name}, with another part of it" for method in result.grid.methods}
    methods = [method.model_copy(update={"name": names[method.name]}) for method in result.grid.methods]
    grid = one.grid.model_copy(update={"methods": tuple(methods), "families": one.grid.families[:1]})
    cells = tuple(cell.model_copy(update={"method": names[cell.method]}) for cell in one.cells)
    save_plots(one.model_copy(update={"grid": grid, "cells": cells}), tmp_path, kinds=("png",))
    for path in tmp_path.glob("*-rho.png"):
        picture = image.imread(path)[..., :3]
        assert picture[:, [0, -1]].min() == 1, "something is drawn over the edge"
    assert any(tmp_path.glob("*-rho.png"))


def test_a_report_has_every_plot_and_table(result: ExperimentResult, tmp_path: Path) -> None:
    save_report([result], tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    plots = {f"tiny-{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}
    assert names == plots | {"tiny.csv", "report.md"}
    text = (tmp_path / "report" / "report.md").read_text()
    for name in PLOTS:
        assert f"](tiny-{name}.svg)" in text
        picture = (tmp_path / "report" / f"tiny-{name}.svg").read_text()
        assert picture.count("</svg>") == 1
    assert "HARMONY" in (tmp_path / "report" / "tiny-rho.svg").read_text()  # text stays text


PLOTS = ("rho", "rounds", "clients", "gate", "cka", "features")


def marked(folder: Path) -> tuple[Path, Path]:
    page, readme = folder / "docs" / "results.md", folder / "README.md"
    page.parent.mkdir()
    for path in (page, readme):
        path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return page, readme


def test_publishing_rewrites_the_blocks_alone(result: ExperimentResult, tmp_path: Path) -> None:
    page, readme = marked(tmp_path)
    headline = result.model_copy(update={"grid": result.grid.model_copy(update={"headline": True})})
    publish([headline], page, readme)
    for path, block in ((page, page_block([headline], "results")), (readme, readme_block([headline], page))):
        assert path.read_text() == f"before\n{BEGIN}\n\n{block}\n\n{END}\nafter\n"
        assert "### few, two widths" in path.read_text()
    for name in PLOTS:
        assert f"(results/tiny-{name}.svg)" in page.read_text()
        assert (tmp_path / "docs" / "results" / f"tiny-{name}.svg").is_file()
    publish([result], page, readme)
    assert "few, two widths" not in readme.read_text()


@pytest.mark.parametrize("commit", ["0123456789ab+", None])
def test_code_that_is_in_no_commit_is_not_published(
    commit: str | None, result: ExperimentResult, tmp_path: Path
) -> None:
    page, readme = marked(tmp_path)
    dirty = with_cells(result, lambda cell: cell.model_copy(update={"commits": ("0123456789ab", commit)}))
    with pytest.raises(ConfigError, match="in no commit"):
        publish([dirty], page, readme)
    assert "old" in page.read_text()
    assert "old" in readme.read_text()


def test_the_documents_publish_the_result_files() -> None:
    results: list[Any] = [read_result(path, ExperimentResult) for path in RESULTS]
    page, readme = ROOT / "docs" / "results.md", ROOT / "README.md"
    assert f"{BEGIN}\n\n{page_block(results, 'results')}\n\n{END}" in page.read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{readme_block(results, page)}\n\n{END}" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_published_result_is_of_committed_code_and_of_the_grid_beside_it(path: Path) -> None:
    from harmony.bench.experiment import load_grid
    from harmony.bench.experiment.published import require_committed

    result = read_result(path, ExperimentResult)
    require_committed(result)
    assert result.grid == load_grid(ROOT / "experiments" / f"{result.grid.name}.toml")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_published_grid_goes_on_from_all_that_it_has(path: Path, tmp_path: Path) -> None:
    """Its settings mean today what they meant when its cells ran: none would be trained anew."""
    result = read_result(path, ExperimentResult)
    cells = cells_of(result.grid)
    assert restore(result, cells, tmp_path) == len(result.cells)
