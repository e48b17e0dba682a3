"""The one page that every report is: tiles, sections of plots and tables, facts. It needs nothing else to be read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harmony.core.storage import write_atomically

_TEMPLATE = "report.html"


class Figure(NamedTuple):
    """A plot and what the reader should know to read it."""

    title: str
    caption: str
    svg: str


class Table(NamedTuple):
    """Cells as text; the first column names the row. Columns are flush right but for the first and those of words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Tile(NamedTuple):
    """One figure worth remembering."""

    value: str
    label: str


class Section(NamedTuple):
    """A heading, a sentence or two, plots, tables."""

    title: str
    text: str
    figures: Sequence[Figure]
    tables: Sequence[Table]


def write_page(
    path: Path,
    *,
    title: str,
    lead: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    facts: Mapping[str, str],
    version: str,
    words: Collection[str] = (),
) -> None:
    """Write the page to `path`, whole or not at all. facts: how it was measured; words: columns that hold words."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {
        "title": title,
        "lead": lead,
        "tiles": tiles,
        "sections": sections,
        "facts": dict(facts),
        "version": version,
        "words": frozenset(words),
    }
    write_atomically(path, environment.get_template(_TEMPLATE).render(values).encode())
