"""Matplotlib figures as inline SVG that follows the page: its font, and its colours in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 380
"""Figure width in points: about that of a phone in CSS pixels, so that text is as large there as it was drawn."""

# What matplotlib writes, and the CSS variable of report.html that the browser reads in its place.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
METHODS = ("#010104", "#010105", "#010106", "#010107")
EXIT1, EXIT2, CLOUD = "#010108", "#010109", "#01010a"
ON_EXIT1, ON_EXIT2, ON_CLOUD = "#01010b", "#01010c", "#01010d"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    **{colour: f"method-{index}" for index, colour in enumerate(METHODS)},
    EXIT1: "exit1",
    EXIT2: "exit2",
    CLOUD: "cloud",
    ON_EXIT1: "on-exit1",
    ON_EXIT2: "on-exit2",
    ON_CLOUD: "on-cloud",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and takes the page's font
    "svg.hashsalt": "harmony",  # the same figure gives the same bytes
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11.5,
    "axes.labelsize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


@contextmanager
def drawing(height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure, WIDTH × height points, in the report's style. No global state of matplotlib is touched."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def log_scale(axes: Axes) -> None:
    """Times or sizes from left to right, as plain numbers. Where less than two decades are shown, twos and fives are
    named too, and more where that would leave hardly any."""

    def minor(value: float, _: object) -> str:
        low, high = axes.get_xlim()
        named = "23457" if high < 6 * low else "25" if high < 100 * low else ""
        return f"{value:g}" if f"{value:e}"[0] in named else ""

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(minor)
    axes.tick_params(axis="x", which="both", labelsize=10.5, length=0, pad=6, labelcolor=MUTED)


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element. name: unique in the page; description: what a screen reader says."""
    with matplotlib.rc_context(_STYLE):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name, escape(description, quote=True))


def _inline(document: str, name: str, label: str) -> str:
    """An SVG document as an element among others of one page: no namespaces, sizes or style rules of its own."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]+\")[^>]*>", rf'<svg role="img" aria-label="{label}" \1>', body, count=1)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return body
