"""What a bench found is handed over in one way: to a file, to scripts, to people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from harmony.bench.results import Bar
from harmony.cli.output import hand_over
from harmony.core.errors import StorageError

BAR = Bar(name="work", value=2.5, limit=9, unit="s")


def _show(bar: Bar) -> None:
    typer.echo(f"for people: {bar.value}")


@pytest.mark.parametrize("named", [True, False])
def test_to_people(named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "bar.json"
    assert hand_over(lambda: BAR, _show, out=out if named else None, as_json=False) == BAR
    assert capsys.readouterr().out == "for people: 2.5\n" + (f"written: {out}\n" if named else "")
    assert out.exists() == named


def test_to_scripts_and_to_a_file_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_over(lambda: BAR, _show, out=tmp_path / "bar.json", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "bar.json").read_bytes()) == BAR.model_dump(mode="json")


def test_what_cannot_be_written_is_said_before_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    measured: list[Bar] = []

    def measure() -> Bar:
        measured.append(BAR)
        return BAR

    with pytest.raises(StorageError, match=r"file.bar\.json: cannot be written"):
        hand_over(measure, _show, out=tmp_path / "file" / "bar.json", as_json=False)
    assert measured == []
