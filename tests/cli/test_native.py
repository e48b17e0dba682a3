"""harmony native build: what it refuses, before anything is compiled. What it builds is tested where it is used."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from harmony.cli.main import main


def _fails(*arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["harmony", "native", "build", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--target", "aarch64"), "ConfigError: --out: is needed for another machine"),
        (
            ("--target", "aarch64", "--out", "{tmp}/out"),
            "executorch: aarch64 needs an executorch wheel for it (pip download",
        ),
        (("--out", "{tmp}/out", "--executorch", "{tmp}/no.whl"), "cannot be read as a wheel"),
        (("--out", "{tmp}/out", "--executorch", "{tmp}/text.whl"), "cannot be read as a wheel"),
        (("--out", "{tmp}/out", "--executorch", "{tmp}/other.whl"), "is no wheel of executorch"),
        (("--out", "{tmp}/out", "--executorch", "{tmp}"), "holds no lib/libexecutorch.so"),
        (("--out", "{tmp}/text.whl"), "RunExists"),
    ],
)
def test_what_cannot_be_meant(
    arguments: tuple[str, ...],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.whl").write_text("not a wheel")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("numpy/__init__.py", "")
    before = sorted(tmp_path.iterdir())
    given = [one.format(tmp=tmp_path) for one in arguments]
    assert error in _fails(*given, monkeypatch=monkeypatch, capsys=capsys)
    assert sorted(tmp_path.iterdir()) == before
