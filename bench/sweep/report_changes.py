"""The part of a sweep's report that says what changed since an earlier one."""

from __future__ import annotations

from statistics import median

from harmony.bench.figures import ENGINE_NAMES
from harmony.bench.page import Figure, Section, Table
from harmony.bench.sweep import plots
from harmony.bench.sweep.compare import compare
from harmony.bench.sweep.schema import SweepResult, Unit
from harmony.bench.text import percent


def changes_section(before: SweepResult, after: SweepResult) -> Section:
    """What changed from one sweep to a later one of the same tier; ContractMismatch if they cannot be compared."""
    changes = compare(before, after)
    costs = [cost for change in changes for cost in change.costs]
    rows = [
        [
            _name(cost.unit), cost.path, f"{100 * (cost.ratio - 1):+.1f} %", "yes" if cost.apart else "no",
            f"{cost.before.median:.5f}", f"{cost.after.median:.5f}", cost.regime,
        ]
        for cost in costs
    ]  # fmt: skip
    columns = ["device", "until", "change", "beyond noise", "before", "after", "regime"]
    sizes = [
        [
            _name(one.after), one.after.architecture, f"{one.before.file_bytes:,}", f"{one.after.file_bytes:,}",
            f"{one.before.memory.peak_bytes / 2**20:.1f}", f"{one.after.memory.peak_bytes / 2**20:.1f}",
            *(percent(value) for value in one.accuracy or (None, None)),
        ]
        for one in changes
    ]  # fmt: skip
    size_columns = [
        "device", "architecture", "files before, B", "after", "peak before, MiB", "after", "accuracy before, %",
        "after",
    ]  # fmt: skip
    middle = median([cost.ratio for cost in costs])
    text = (
        f"{len(changes)} bundles and engines are in both; the median cost is {middle:.3f} of before. A change is "
        "beyond noise if no round of one reaches into the rounds of the other. "
        f"Before: {_when(before)}; after: {_when(after)}."
    )
    figure = Figure(
        "Cost, after over before",
        "A dot a bundle and path; 1: no change. Filled: beyond the noise of the rounds.",
        plots.changes(costs),
    )
    tables = [
        Table("Costs, in multiples of the reference model", columns, rows),
        Table("Sizes and accuracy, thresholds as shipped", size_columns, sizes),
    ]
    return Section("Compared with an earlier sweep", text, [figure], tables)


def _name(unit: Unit) -> str:
    return f"{unit.name}, {ENGINE_NAMES[unit.engine]} {unit.precision}"


def _when(result: SweepResult) -> str:
    return f"commit {result.host.commit or 'unknown'} on {result.host.cpu}"
