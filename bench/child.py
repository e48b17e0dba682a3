"""Device processes: started, waited for, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from harmony.core.errors import EngineError

TIMEOUT_S = 3600.0


def run_module(
    module: str, arguments: Sequence[str], *, where: object, environment: Mapping[str, str] | None = None
) -> None:
    """Run `python -OO -m module arguments` to its end. EngineError, with its last word, if it fails.

    -OO: a device carries no docstrings, which are 2.5 MB of its imports.

    environment: variables beside this process's own. Whatever ends the wait (Ctrl-C too) ends the child first; it has
    a session of its own, so that a Ctrl-C in the terminal reaches only its parent.
    """
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-OO", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=_environment(environment or {}),
            start_new_session=True,
        )
        try:
            code = child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _end(child)
            raise EngineError(f"the device process took more than {TIMEOUT_S:g} s", where=where) from None
        except BaseException:
            _end(child)
            raise
        if code:
            raise EngineError(f"the device process ended with code {code}: {_last_line(log)}", where=where)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's, but the child may keep its bytecode: to compile at every start is no part of a device."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | dict(added)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
