"""A command whose packages are not installed says what to type."""

from __future__ import annotations

import platform
import sys

import pytest

from harmony.cli import extras
from harmony.cli.main import main

COMMANDS = {
    "train": [["train"], ["evaluate", "run"]],
    "export": [["export", "run", "--out", "bundles"]],
    "cloud": [["serve", "bundles"]],
    "bench": [["bench", "bundle"]],
    "ray": [["serve", "bundles", "--ray"]],
    "executorch": [["demo"]],
    "loadgen": [["bench", "sustained", "bundle", "--generator", "loadgen"]],
}


@pytest.mark.parametrize(("extra", "arguments"), [(extra, one) for extra, all_ in COMMANDS.items() for one in all_])
def test_what_is_missing_is_named_with_its_extra(
    extra: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.PACKAGES, extra, ("no_such_package", "json"))
    monkeypatch.setattr(sys, "argv", ["harmony", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    line = f"needs no_such_package, not installed here (pip install 'harmony-sfl[{extra}]')\n"
    assert capsys.readouterr().err.endswith(line)


def test_nothing_is_missing_here() -> None:
    """LoadGen has no wheel for other machines, and is no part of the development extra there; Ray is of none."""
    here = set(extras.PACKAGES) - {"ray"} - (set() if platform.machine() == "x86_64" else {"loadgen"})
    extras.require(*here)
