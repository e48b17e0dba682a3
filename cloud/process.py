"""A real `harmony serve` as a child process, for programs and tests that need a service around them.

Imports nothing of the service itself, so that the caller's process stays small.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harmony.cloud.keys import generate_key
from harmony.core.errors import ServiceError

START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class RunningService:
    """A service that answers. models: their names. The key is known to this service alone."""

    url: str
    key: str
    pid: int
    models: tuple[str, ...]


@contextmanager
def running_service(folder: Path | None, *options: str) -> Iterator[RunningService]:
    """Serve `folder` on a free port of 127.0.0.1 with a key of its own, for the length of the block.

    folder: None to serve what the options name; options: further arguments of `harmony serve`. At the end the service
    is drained and gone, also after an exception; if this process is killed, the service notices that its stdin ended,
    and drains too.
    Raises ServiceError, with what the service said, if it does not start or does not stop cleanly.
    """
    key = generate_key()
    with tempfile.TemporaryFile() as log:
        child = _start(folder, options, key, log)
        try:
            said = _announcement(child, log)
            yield RunningService(said["url"], key, said["pid"], tuple(said["models"]))
        except BaseException:
            _stop(child)
            raise
        if code := _stop(child):
            raise ServiceError(f"the service ended with code {code}: {_last_line(log)}", where=folder)


def _start(folder: Path | None, options: Sequence[str], key: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harmony.cli.main", "serve", "--port", "0", "--json", "--until-stdin-ends"]
    return subprocess.Popen(
        [*command, *options, *([] if folder is None else [str(folder)])],
        stdin=subprocess.PIPE,  # held open for as long as this process lives, and by nobody else
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "HARMONY_KEY": key},  # not an argument: those are visible to every user of the machine
        start_new_session=True,  # Ctrl-C reaches the caller alone, which then stops the service in order
    )


def _announcement(child: subprocess.Popen[bytes], log: IO[bytes]) -> dict[str, Any]:
    """The one JSON line that the service prints once it listens."""
    line = _read_line(child, time.monotonic() + START_SECONDS)
    if not line.endswith(b"\n"):
        raise ServiceError(f"the service did not start: {_last_line(log) or 'no answer'}")
    value: dict[str, Any] = json.loads(line)
    return value


def _read_line(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert child.stdout is not None  # noqa: S101  # asked for in _start
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(child.stdout.fileno(), 65536)
            if not part:
                break
            line += part
    return line


def _stop(child: subprocess.Popen[bytes]) -> int:
    """SIGTERM, wait, and if that is not enough, SIGKILL. Returns the exit code; nothing is left behind."""
    try:
        if child.poll() is None:
            child.terminate()
        return child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return _kill(child)
    except BaseException:  # a second Ctrl-C while it drains
        _kill(child)
        raise
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _kill(child: subprocess.Popen[bytes]) -> int:
    child.kill()
    return child.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
