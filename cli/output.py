"""How every subcommand speaks: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

ResultT = TypeVar("ResultT", bound="BaseModel")


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def hand_over(
    measure: Callable[[], ResultT], show: Callable[[ResultT], None], *, out: Path | None, as_json: bool
) -> ResultT:
    """Measure, write the result to `out` as JSON, if that is named, and print it: as JSON too, or by `show`.

    The folder of `out` is made first: what cannot be written is said before it is measured. StorageError.
    """
    from harmony.core.storage import storing, write_atomically

    if out is not None:
        with storing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    result = measure()
    if out is not None:
        write_atomically(out, result.model_dump_json(indent=1).encode() + b"\n")
    if as_json:
        print_json(result.model_dump(mode="json"))
        return result
    show(result)
    if out is not None:
        sys.stdout.write(f"written: {out}\n")
    return result


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; the first column is the row's name, the rest are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for position, column in enumerate(columns):
        first = position == 0
        table.add_column(column, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)


def percent(share: float | None) -> str:
    """A share of 1 as percent with one digit; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"
