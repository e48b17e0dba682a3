"""`harmony data`: tables for people, JSON for scripts, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from harmony.cli import data
from harmony.cli.main import app as whole_app
from harmony.cli.main import main
from harmony.core.errors import ConfigError, DataMissing

app = typer.Typer()
app.callback()(lambda: None)
app.command("data")(data.show)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["data", *arguments])


def document(*arguments: str) -> Any:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_embedded_set_and_its_licence_need_nothing() -> None:
    result = run()
    assert result.exit_code == 0
    for text in ("fashion-mnist-mini", "MIT", "28x28x1 uint8", "10000", "Ankle boot", "Who holds what", "007"):
        assert text in result.stdout
    assert result.stderr == ""


def test_json_says_who_holds_what() -> None:
    found = document("--clients", "5", "--classes", "2", "--seed", "7")
    assert found["data"]["train"] == 10_000
    assert found["data"]["classes"][0] == "T-shirt/top"
    assert found["partition"] == {
        "kind": "classes", "clients": 5, "classes": 2, "samples_per_class": None, "seed": 7,
    }  # fmt: skip
    assert [row["client"] for row in found["clients"]] == list(range(5))
    assert all(len(row["images"]) == 2 for row in found["clients"])
    assert sum(row["train"] + row["holdout"] for row in found["clients"]) == 10_000
    assert found == document("--clients", "5", "--classes", "2", "--seed", "7")


def test_other_partitions() -> None:
    shards = document("--partition", "shards", "--clients", "20", "--shards", "3")
    assert shards["partition"]["shards_per_client"] == 3
    dirichlet = document("--partition", "dirichlet", "--alpha", "0.5")
    assert dirichlet["partition"]["alpha"] == 0.5


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    x, y = np.zeros((40, 16, 3), np.float32), np.arange(40) % 4
    np.savez(tmp_path / "windows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    found = document("--data", str(tmp_path / "windows.npz"), "--clients", "2")
    assert found["data"]["name"] == "windows"
    assert found["data"]["image"] == "16x3x1 float32"
    assert found["data"]["licence"] == "your own data"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("--data", "nosuch"), DataMissing, "known: fashion-mnist-mini"),
        (("--data", "cifar10"), DataMissing, "add --download"),
        (("--clients", "0"), ConfigError, "clients"),
        (("--classes", "11"), ConfigError, "the data have 10"),
        (("--partition", "dirichlet", "--alpha", "nan"), ConfigError, "alpha"),
        (("--seed", "-1"), ConfigError, "negative"),
    ],
)
def test_mistakes_are_named_errors(arguments: tuple[str, ...], error: type[Exception], text: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert result.stdout == ""


@pytest.mark.skipif(len(whole_app.registered_commands) < 2, reason="typer drops the name of an only command")
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["harmony", "data", "--data", "nosuch"])
    with pytest.raises(SystemExit) as stop:
        main()
    written = capsys.readouterr()
    assert stop.value.code == 2
    assert written.out == ""
    assert written.err.startswith("harmony: DataMissing: nosuch: ")
    assert written.err.count("\n") == 1


def test_help_has_examples_and_loads_no_data_room() -> None:
    result = run("--help")
    assert "harmony data --partition shards --clients 50" in result.stdout
    probe = (
        "import sys, harmony.cli.data; sys.exit(any(m in sys.modules for m in ('numpy', 'PIL', 'pydantic', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_a_download_shows_a_bar_and_no_download_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with data._progress_bar():
        pass
    assert capsys.readouterr().err == ""
    with data._progress_bar() as progress:
        progress("cifar-10-binary.tar.gz", 0, None)
        progress("cifar-10-binary.tar.gz", 1000, 1000)
    written = capsys.readouterr()
    assert "cifar-10-binary.tar.gz" in written.err
    assert written.out == ""
