"""A sweep's folder: results.json (what was measured), cases.csv and cases.json (every combination), report.html."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harmony.bench.folder import result_folder
from harmony.bench.result_files import JSON_FILE, REPORT_FILE, read_result, write_result
from harmony.bench.sweep.combine import Case, cases
from harmony.bench.sweep.schema import SweepResult
from harmony.core.errors import ArtifactMissing

SWEEP_JSON, CASES_CSV, CASES_JSON = JSON_FILE, "cases.csv", "cases.json"
CASES_FORMAT, CASES_VERSION = "harmony-sweep-cases", 2


def save_sweep(out: Path, result: SweepResult, *, replace: bool = False) -> None:
    """Write `out`, whole or not at all. RunExists if it is there, unless `replace` and it holds an earlier sweep."""
    from harmony.bench.sweep.report import write_report  # noqa: PLC0415 - matplotlib takes a second to import

    with result_folder(out, SweepResult.FORMAT, replace=replace) as draft:
        write_result(draft, result)
        rows = list(map(flat, cases(result)))
        (draft / CASES_CSV).write_text(to_csv(rows))
        with (draft / CASES_JSON).open("w") as file:
            file.writelines(_json_lines(rows))
        write_report(draft / REPORT_FILE, result)


def read_sweep(path: Path) -> SweepResult:
    """A sweep's folder, or its results.json. ArtifactMissing, ArtifactCorrupt, ArtifactTooNew by name."""
    file = path / SWEEP_JSON if path.is_dir() else path
    if not file.exists():
        raise ArtifactMissing("no sweep here", where=path, mend="make one with: harmony bench sweep BUNDLE…")
    return read_result(file, SweepResult)


def flat(case: Case) -> dict[str, Any]:
    """One level: accuracy_overall, latency_median_s and so on, of six digits. None: does not apply."""
    found: dict[str, Any] = {}
    for name, value in case.model_dump().items():
        inner = {f"{name}_{part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: float(f"{one:.6g}") if isinstance(one, float) else one for key, one in inner.items()}
    return found


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """The same numbers as the JSON; an empty cell is a value that does not apply."""
    kept = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(kept[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    return text.getvalue()


def _json_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One object: format, format_version, columns, and a list a row. Names once, not ten thousand times."""
    head = {"format": CASES_FORMAT, "format_version": CASES_VERSION, "columns": list(rows[0])}
    yield json.dumps(head)[:-1] + ', "rows": [\n'
    last = len(rows) - 1
    for index, row in enumerate(rows):
        yield json.dumps(list(row.values()), allow_nan=False) + ("\n" if index == last else ",\n")
    yield "]}\n"
