"""What is published of experiments: a report folder, docs/results.md, the README's tables; from result files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harmony.bench.experiment.plots import plot_names, save_plots
from harmony.bench.experiment.results import ExperimentResult
from harmony.bench.experiment.summary import Line, lines, places
from harmony.bench.experiment.tables import (
    FIXED,
    ROUTING,
    Table,
    ablation,
    accuracy,
    beside_published,
    budgets,
    gaps,
    gates,
    over_rho,
    representation,
    to_csv,
)
from harmony.bench.published import rewrite
from harmony.core.errors import ConfigError
from harmony.core.storage import storing

BEGIN = "<!-- experiments: begin (written by `harmony experiment --report --publish`) -->"
END = "<!-- experiments: end -->"
HEADLINE = ("low", "high", "worst_low", "worst_high", "server_ood", "auroc", "sent_kb")
HEADLINE_READING = """\
Accuracy in %, mean ± standard deviation over the seeds, last round. ρ is the number of images of other classes for each
image of an own class; what stands under it is the accuracy of device and cloud together; `worst 10 %` is the mean over
the worst tenth of the clients, `cloud, other` the cloud's accuracy on the classes that a client does not hold, AUROC
the gate's, `kB` what a client sends in a round of training: HARMONY's clients are in step at every step, and pay for it
there. A reference has what the others lack."""
CAPTIONS = {
    "rho": "Accuracy of device and cloud together over ρ; a band is one standard deviation over the seeds.",
    "rounds": "The cloud on classes that the client does not hold, by round, on a part of the test images, "
    "before the clients personalise.",
    "clients": "Accuracy of every client at the largest ρ with fixed thresholds, sorted.",
    "gate": "The gate at exit 2: own classes kept against other classes kept, mean over clients at ρ = 1.",
    "cka": "CKA between architectures on the same images: at the cut (light) and in the cloud (dark), after training; "
    "the black mark is before it.",
    "features": "The cloud's embeddings on their principal plane, first seed.",
}
PROMISES = """\
Had devices promised to send at most another share of own images, by thresholds that follow the stream. With the cloud's
`word`, the device's answer stands where the cloud is as sure that the image is of an own class as its images held out
say it has to be, so that the cloud answers no more own images (`own answered`) than the run itself promised to send:"""
READING = """\
All figures are %, mean ± standard deviation over the seeds, of the last round. ρ is the number of images of other
classes for each image of an own class; what stands under a ρ is the accuracy of device and cloud together, with
thresholds that follow the stream of each device's scores, or with `fixed` ones from held-out images. `worst 10 %` is
the mean over the worst tenth of the clients; `device, own` and `cloud, own` are either's accuracy alone on the client's
own classes, `cloud, other` the cloud's on all other classes; `CPU s` is the time of training, `kB` what a client sends
and gets in one round. In the tables of routing, the fixed thresholds decide who answers, unless `cloud's word` lets the
device's answer stand where the cloud, too, takes the image for one of an own class, `fused` joins both answers, or
`perfect routing` keeps own classes and sends the rest; AUROC and FPR95 are the gate's; `own sent` and `other kept` are
its errors. Bold is the best of HARMONY and its rivals; a reference has what they lack."""


def save_report(results: Sequence[ExperimentResult], folder: Path) -> None:
    """Write report.md, and for each result its CSV and its plots, into `folder`. StorageError if the disk refuses."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for result in results:
            (folder / f"{result.grid.name}.csv").write_text(to_csv(result), encoding="utf-8")
            save_plots(result, folder)
        parts = [section(result, plot_names(result), "") for result in results]
        (folder / "report.md").write_text("\n\n".join(["# Experiments", READING, *parts]) + "\n", encoding="utf-8")


def publish(results: Sequence[ExperimentResult], page: Path, readme: Path) -> None:
    """Rewrite the block of docs/results.md with its plots beside it, and the README's.

    ConfigError if a cell was trained by code that no commit holds, or a file has not both marks.
    """
    for result in results:
        require_committed(result)
    plots = page.with_suffix("")
    with storing(plots):
        plots.mkdir(parents=True, exist_ok=True)
        for result in results:
            save_plots(result, plots, kinds=("svg",))
    rewrite(page, BEGIN, END, page_block(results, plots.name))
    rewrite(readme, BEGIN, END, readme_block(results, page))


def require_committed(result: ExperimentResult) -> None:
    """ConfigError unless every cell was trained and evaluated by committed code."""
    for cell in result.cells:
        for commit in cell.commits:
            if commit is None or commit.endswith("+"):
                problem = f"was run by code that is in no commit ({commit or 'no checkout'})"
                raise ConfigError(problem, where=result.grid.name, field=cell.folder, mend="commit, then run it anew")


def page_block(results: Sequence[ExperimentResult], plots: str) -> str:
    """The Markdown between the marks of docs/results.md, headline grids first."""
    if not results:
        return "Nothing is published yet."
    parts = [section(result, plot_names(result), f"{plots}/") for result in _in_order(results)]
    return "\n\n".join([READING, *parts])


def _in_order(results: Sequence[ExperimentResult]) -> list[ExperimentResult]:
    """Headlines first, our own comparisons before those with published figures."""
    return sorted(results, key=lambda result: (not result.grid.headline, result.grid.published != (), result.grid.name))


def readme_block(results: Sequence[ExperimentResult], page: Path) -> str:
    """The Markdown between the marks of the README: the headline grids, of what is whole in all seeds."""
    parts = [part for result in _in_order(results) if result.grid.headline for part in _headline(result)]
    link = f"Every table and plot of the experiments: [{page.parent.name}/{page.name}]({page.parent.name}/{page.name})."
    return "\n\n".join([*parts, link])


def _headline(result: ExperimentResult) -> list[str]:
    """One grid: a table beside published figures if it names some, otherwise one a place. Empty if nothing is whole."""
    title = f"## {result.grid.title}"
    if (beside := beside_published(result, whole=True)) is not None:
        ours = len(beside.rows) > len(result.grid.published)
        return [title, result.grid.about, beside.markdown(), _sources(result), _provenance(result)] if ours else []
    whole = [place for place in places(result) if all(line.whole for line in lines(result, place))]
    tables = [_with_title(accuracy(result, place, HEADLINE)) for place in whole]
    about = [result.grid.about] if result.grid.about else []
    return [title, *about, HEADLINE_READING, *tables, _provenance(result)] if tables else []


def section(result: ExperimentResult, plots: Sequence[str], folder: str) -> str:
    """One result as Markdown: what was run, tables, plots, what is missing, where it was measured."""
    grid = result.grid
    parts = [f"## {grid.title}", grid.about, _settings(result), *_tables(result)]
    for name in plots:
        caption = CAPTIONS[name.removeprefix(f"{grid.name}-")]
        parts.append(f"![{caption}]({folder}{name}.svg)\n\n{caption}")
    return "\n\n".join(part for part in [*parts, _missing(result), _provenance(result)] if part)


def _tables(result: ExperimentResult) -> Iterator[str]:
    spots = places(result)
    if (beside := beside_published(result)) is not None:
        yield _with_title(beside)
        yield _sources(result)
    for place in spots:
        yield _with_title(accuracy(result, place))
        if len(set(result.grid.rhos)) > 1:
            yield f"With fixed thresholds:\n\n{accuracy(result, place, FIXED).markdown()}"
            yield f"Routing at ρ = {max(result.grid.rhos):g}:\n\n{accuracy(result, place, ROUTING).markdown()}"
            yield f"Over ρ:\n\n{over_rho(result, place).markdown()}"
    if (gap := gaps(result)) is not None:
        yield f"Against the best rival, in points, paired by seed:\n\n{gap.markdown()}"
    lost = [table for place in spots if (table := ablation(result, place)) is not None]
    if lost:
        yield "Against the whole method, in points, paired by seed:"
        yield from map(_with_title, lost)
    judged = [table for place in spots if (table := gates(result, place)) is not None]
    if judged:
        yield "Every exit gate on the checkpoints of the whole method, each with the same promise of own images sent:"
        yield from map(_with_title, judged)
    promised = [table for place in spots if (table := budgets(result, place)) is not None]
    if promised:
        yield PROMISES
        yield from map(_with_title, promised)
    alike = [table for place in spots if (table := representation(result, place)) is not None]
    if alike:
        yield (
            "Architectures on the same images: CKA of their features at the cut and of the cloud's embeddings (1: "
            "alike), and how often a linear probe tells from the cloud's embedding which architecture made it:"
        )
        yield from map(_with_title, alike)


def _sources(result: ExperimentResult) -> str:
    """Where published figures come from, and whose they are."""
    sources: dict[str, str] = {}
    for other in result.grid.published:
        sources[other.source] = f"{sources[other.source]}, {other.name}" if other.source in sources else other.name
    return " ".join(f"{names}: {source}." for source, names in sources.items())


def _with_title(table: Table) -> str:
    return f"### {table.title}\n\n{table.markdown()}" if table.title else table.markdown()


def _settings(result: ExperimentResult) -> str:
    """What a place's cells have in common, and what single methods have of their own."""
    return "\n".join(f"- {place.label}: {_place(lines(result, place))}" for place in places(result))


def _place(here: Sequence[Line]) -> str:
    configs = {line.method: line.cells[0].config for line in here if line.cells}
    common: list[str] = []
    for describe in (_clients, _budget, _learning_rate, _architectures):
        texts = {method: describe(config) for method, config in configs.items()}
        usual, _ = Counter(texts.values()).most_common(1)[0]
        others = [f"{method}: {text}" for method, text in texts.items() if text != usual]
        common.append(f"{usual} ({'; '.join(others)})" if others else usual)
    return "; ".join(common)


def _clients(config: dict[str, Any]) -> str:
    dealt = {name: value for name, value in config["partition"].items() if name not in {"kind", "clients"} and value}
    how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in dealt.items())
    return f"{config['partition']['clients']} clients by {config['partition']['kind']}, {how}"


def _budget(config: dict[str, Any]) -> str:
    return f"{config['rounds']} rounds of {config['steps']} × {config['batch']} images a client"


def _learning_rate(config: dict[str, Any]) -> str:
    return f"learning rate {config['learning_rate']:g}"


def _architectures(config: dict[str, Any]) -> str:
    return ", ".join(config["architectures"])


def _missing(result: ExperimentResult) -> str:
    lines = [f"- {one.method}, {one.data}, {one.family}, seed {one.seed}: {one.error}" for one in result.failed]
    absent = result.planned - len(result.cells) - len(result.failed)
    if absent:
        lines.append(f"- {absent} of {result.planned} runs were not made")
    return "\n".join(["Missing:", "", *lines]) if lines else ""


def _provenance(result: ExperimentResult) -> str:
    commits = sorted({commit or "no commit" for cell in result.cells for commit in cell.commits})
    torch = sorted({cell.torch_version for cell in result.cells})
    processors = sorted({cell.processor or result.host.cpu for cell in result.cells})
    seeds = ", ".join(map(str, result.grid.seeds))
    return (
        f"Seeds {seeds}; {len(result.cells)} runs; {', '.join(processors)}, {result.host.cores} cores; torch "
        f"{', '.join(torch)}; commit {', '.join(commits)}; `harmony experiment experiments/{result.grid.name}.toml`."
    )
