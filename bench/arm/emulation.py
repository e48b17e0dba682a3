"""Runs a program of the environment on an emulated core, and reads what the plugin counted between its marks.

Nothing that differs between machines reaches the program: its environment is empty, its paths are relative to a folder
of its own, and its core is the only one. So two runs give the same counts, to the instruction.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harmony.bench.arm.cores import Core
from harmony.bench.arm.environment import BIN, CORES_DIR, PLUGIN, ArmEnvironment
from harmony.core.errors import EngineError

_COUNTS = "counts.txt"
_SECONDS = 3600
_IDLE = 1e-3
"""Share that other threads may have: ONNX Runtime keeps one that waits."""


class Counted(NamedTuple):
    """What a run said, and the instructions between each pair of its marks, without those of the marks themselves."""

    output: str
    between: tuple[int, ...]


def run_emulated(
    folder: Path, environment: ArmEnvironment, core: Core, command: Sequence[str], work: Path, *, counted: bool = True
) -> Counted:
    """Run `command` (a program of the environment's bin, then its arguments) in the folder `work`.

    counted: without, the program has no marks. EngineError with the program's own words if it fails, or does what makes
    counts vary.
    """
    (work / BIN).symlink_to(folder / BIN)
    plugin = ["-plugin", f"{folder / PLUGIN},out={_COUNTS}"] if counted else []
    # The seed is that of the random bytes which the C library gets at the start; libraries are for the emulator alone.
    options = ["-seed", "1", "-cpu", core.emulated, "-L", str(folder / CORES_DIR / core.name), *plugin]
    hide = ["-U", "LD_LIBRARY_PATH"] if environment.libraries else []
    variables = {"LD_LIBRARY_PATH": environment.libraries} if environment.libraries else {}
    program = [f"{BIN}/{command[0]}", *command[1:]]
    try:
        done = subprocess.run(
            [environment.emulator, *options, *hide, *program],
            cwd=work, env=variables, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"cannot be emulated: {error}", where=command[0]) from None
    finally:
        (work / BIN).unlink()
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise EngineError(f"failed on an emulated {core.title}: {said[-1]}", where=command[0])
    return Counted(done.stdout, read_counts((work / _COUNTS).read_text(encoding="ascii")) if counted else ())


def read_counts(text: str) -> tuple[int, ...]:
    """The plugin's lines, each the instructions of the first thread and of all others so far → those of the first
    between the marks of each pair. The first pair has nothing between: it is what marks cost, and taken off the others.

    EngineError if a mark is missing, or if other threads did any of the work.
    """
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    if len(rows) < 4 or len(rows) % 2 or any(len(row) != 2 for row in rows):
        raise EngineError(f"made {len(rows)} marks, so that pairs of them are missing")
    mine, others = ([end[at] - begin[at] for begin, end in zip(rows[::2], rows[1::2], strict=True)] for at in (0, 1))
    if sum(others) > _IDLE * sum(mine):
        raise EngineError("works in several threads, so that its instructions depend on who comes first")
    return tuple(each - mine[0] for each in mine[1:])
