"""results.json and results.csv: reading and writing. The schema is in `harmony.bench.results`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harmony.bench.results import BenchResult, BundleResult, MixResult, Versioned
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactTooNew

JSON_FILE, CSV_FILE, REPORT_FILE = "results.json", "results.csv", "report.html"
VersionedT = TypeVar("VersionedT", bound=Versioned)


def write_result(folder: Path, result: Versioned) -> None:
    """Write results.json into `folder`."""
    (folder / JSON_FILE).write_bytes(result.model_dump_json(indent=2).encode() + b"\n")


def read_result(path: Path, kind: type[VersionedT]) -> VersionedT:
    """Read a result file; a named ArtifactError if it is not there, not one, or of another schema version."""
    try:
        value: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ArtifactMissing("no such result file", where=path, mend="check the path") from None
    except (ValueError, RecursionError):
        raise ArtifactCorrupt("is not JSON", where=path) from None
    _check_version(value, kind, path)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactCorrupt(first["msg"], where=path, field=".".join(map(str, first["loc"]))) from None


def _check_version(value: Any, kind: type[Versioned], path: Path) -> None:
    found = value.get("format") if isinstance(value, dict) else None
    if found != kind.FORMAT:
        raise ArtifactCorrupt(f"is a '{found}', not a '{kind.FORMAT}'", where=path, field="format")
    version = value.get("format_version")
    problem = f"has schema version {version}, this program reads {kind.VERSION}"
    if isinstance(version, int) and version > kind.VERSION:
        raise ArtifactTooNew(problem, where=path, field="format_version", mend="update harmony-sfl")
    if version != kind.VERSION:
        raise ArtifactCorrupt(problem, where=path, field="format_version", mend="measure again with this version")


def to_csv(result: BenchResult) -> str:
    """One row a bundle, engine and ρ; an empty cell is a value that was not measured. Same numbers as the JSON."""
    rows = [_row(bundle, mix) for bundle in result.bundles for mix in bundle.mixes]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(bundle: BundleResult, mix: MixResult) -> dict[str, object]:
    hot = bundle.hot
    local = {f"{path}_{name}_s": None for path in ("exit1", "exit2", "cloud") for name in ("median", "p90", "p99")}
    for timing in hot.paths if hot else ():
        local |= {f"{timing.path}_{name}_s": getattr(timing.wall, name) for name in ("median", "p90", "p99")}
    return {
        "bundle": bundle.name,
        "method": bundle.method,
        "client": bundle.client,
        "architecture": bundle.architecture,
        "engine": bundle.engine,
        **mix.model_dump(exclude={"accuracy"}),
        **{f"accuracy_{name}": value for name, value in mix.accuracy.model_dump().items()},
        **local,
        "request_bytes": bundle.wire.request.median if bundle.wire.request else None,
        "answer_bytes": bundle.wire.answer.median if bundle.wire.answer else None,
        "file_bytes": bundle.file_bytes[bundle.engine],
        "peak_rss_bytes": bundle.process.peak_rss_bytes,
        "ratio_to_bare": hot.ratio.median if hot and hot.ratio else None,
    }
