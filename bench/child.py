"""Device processes: started, asked, waited for, and never left behind.

A question and its answer are one JSON file each. `ask` is this side of it; `reply`, which a child module calls with its
question's type and what finds the answer, is the other:

    if __name__ == "__main__":
        sys.exit(reply(Job, measure))
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from pydantic import ValidationError

from harmony.core.errors import EngineError, HarmonyError
from harmony.core.spec import Frozen
from harmony.core.storage import write_atomically

TIMEOUT_S = 3600.0
QuestionT = TypeVar("QuestionT", bound=Frozen)
AnswerT = TypeVar("AnswerT", bound=Frozen)


def ask(
    module: str,
    question: Frozen,
    answer: type[AnswerT],
    *,
    where: object,
    environment: Mapping[str, str] | None = None,
) -> AnswerT:
    """What `module`, in a device process of its own, replies to `question`; see `run_module` for the rest.

    EngineError, with the child's last word, if it fails or leaves no answer of that type.
    """
    with tempfile.TemporaryDirectory(prefix="harmony-ask-") as folder:
        asked, replied = Path(folder) / "question.json", Path(folder) / "answer.json"
        write_atomically(asked, question.model_dump_json().encode())
        run_module(module, [str(asked), str(replied)], where=where, environment=environment)
        try:
            return answer.model_validate_json(replied.read_bytes())
        except (FileNotFoundError, ValidationError):
            raise EngineError(f"the device process left no {answer.__name__}", where=where) from None


def reply(question: type[QuestionT], find: Callable[[QuestionT], Frozen]) -> int:
    """The child's whole life: reads the question that its arguments name, writes what `find` says to it. Exit code.

    A named error is one line on stderr, which the parent passes on.
    """
    asked, replied = map(Path, sys.argv[1:])
    try:
        found = find(question.model_validate_json(asked.read_bytes()))
        write_atomically(replied, found.model_dump_json().encode())
    except HarmonyError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


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
