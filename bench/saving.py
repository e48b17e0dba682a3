"""A bench's folder: results.json, results.csv, report.html."""

from __future__ import annotations

from pathlib import Path

from harmony.bench.folder import result_folder
from harmony.bench.result_files import CSV_FILE, REPORT_FILE, to_csv, write_result
from harmony.bench.results import BenchResult


def save_bench(out: Path, result: BenchResult, *, replace: bool = False) -> None:
    """Write `out`, whole or not at all. RunExists if it is there, unless `replace` and it holds earlier results."""
    from harmony.bench.report import write_report  # noqa: PLC0415 - matplotlib takes a second to import

    with result_folder(out, BenchResult.FORMAT, replace=replace) as draft:
        write_result(draft, result)
        (draft / CSV_FILE).write_text(to_csv(result))
        write_report(draft / REPORT_FILE, "HARMONY bench", result, lead=_lead(result))


def _lead(result: BenchResult) -> str:
    count = len({one.name for one in result.bundles})
    asked = "and a cloud to ask" if result.settings.cloud or result.settings.server else "without a cloud"
    return f"{count} device bundle{'s' if count > 1 else ''}, each in a process of its own, {asked}."
