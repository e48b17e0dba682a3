"""`harmony --help`: the whole story, light, and every command with examples."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from harmony.cli.main import STORY, app

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_story_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command in STORY, command
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_in_its_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"  harmony {command}" in result.output


def test_help_imports_no_room() -> None:
    program = (
        "import sys; sys.argv = ['harmony', '--help']\n"
        "from harmony.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'fastapi', 'pydantic', 'rich', 'matplotlib', 'sqlalchemy'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: harmony" in done.stdout
    assert done.stderr == ""


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"harmony {version('harmony-sfl')}\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harmony.cli.main", "fly"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    """`harmony data | head -1`, as everybody types it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "harmony.cli.main", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
