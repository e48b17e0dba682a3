"""The report needs nothing but itself, and says what the results say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harmony.bench.curves import MethodCurves
from harmony.bench.report import write_report
from harmony.bench.results import BenchResult

_VOID = {"meta", "br", "link", "img", "input", "hr"}
_LOADING = {"src", "srcset", "data", "poster", "action", "background"}


class _Page(HTMLParser):
    """Collects tags and text, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        references = {name: value for name, value in values.items() if name in _LOADING or name.endswith("href")}
        self.loads += [value for value in references.values() if not value.startswith("#")]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(tmp_path: Path, result: BenchResult, curves: dict[str, MethodCurves]) -> str:
    path = tmp_path / "report.html"
    write_report(path, "A <title> & more", result, curves=curves, lead="Lead.", provenance={"seed": "17"})
    return path.read_text()


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = _Page(page)
    assert parsed.loads == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(parsed.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    ids = _Page(page).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page)) != set()
    for pair in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page):
        assert "".join(pair) in ids


def test_it_shows_the_numbers(page: str) -> None:
    text = " ".join(_Page(page).text)
    assert "HARMONY 77.5" in text  # the end of a line in the accuracy plot: 0.93 − 0.12 − 0.01 · 3.5
    assert "SplitGP 50.5" in text
    for cell in ("0.34 s", "missed", "1.08 ×", "≤ 1.15 ×", "6,284", "WebPageTest connectivity profile LTE", "17"):
        assert cell in text
    assert page.count("<svg") == 6


def test_text_is_escaped(page: str) -> None:
    assert "<h1>A &lt;title&gt; &amp; more</h1>" in page


def test_the_same_results_give_the_same_bytes(
    tmp_path: Path, page: str, result: BenchResult, curves: dict[str, MethodCurves]
) -> None:
    path = tmp_path / "again.html"
    write_report(path, "A <title> & more", result, curves=curves, lead="Lead.", provenance={"seed": "17"})
    assert path.read_text() == page


def test_a_device_without_a_cloud_and_a_single_mix(tmp_path: Path, result: BenchResult) -> None:
    bare = [
        one.model_copy(update={"predictions": (), "timings": (), "mixes": one.mixes[:1]}) for one in result.bundles[:1]
    ]
    path = tmp_path / "report.html"
    write_report(path, "Bench", result.model_copy(update={"bundles": tuple(bare), "speed": ()}))
    assert _Page(path.read_text()).tags.count("svg") == 4
