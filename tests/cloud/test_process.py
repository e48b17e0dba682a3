"""A service around a program: it starts, it is gone afterwards, however the program ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harmony.cloud.process import RunningService, running_service
from harmony.core.errors import ServiceError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client

ClientOf = Callable[[RunningService], "Client"]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_answers_with_its_own_key_and_is_gone_afterwards(bundle: Bundle, client_of: ClientOf) -> None:
    with running_service(bundle.folder) as service:
        assert service.models == ("backend",)
        assert service.pid != os.getpid()
        assert client_of(service).get("/v2/models/backend").status == 200
        assert "torch" not in Path(f"/proc/{service.pid}/maps").read_text()
        assert service.key not in Path(f"/proc/{service.pid}/cmdline").read_text()
    assert not alive(service.pid)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(bundle: Bundle, error: type[BaseException]) -> None:
    with pytest.raises(error), running_service(bundle.folder) as service:
        raise error
    assert not alive(service.pid)


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"ArtifactMissing: .*no cloud bundle here"), running_service(tmp_path):
        pass


def test_what_does_not_stop_cleanly_is_named(bundle: Bundle) -> None:
    with pytest.raises(ServiceError, match="ended with code -9"), running_service(bundle.folder) as service:
        os.kill(service.pid, signal.SIGKILL)


def test_a_killed_program_leaves_no_service(bundle: Bundle) -> None:
    """kill -9 of the program: nothing in it can clean up, so the service has to notice by itself."""
    script = (
        "import sys, time, pathlib\n"
        "from harmony.cloud.process import running_service\n"
        "with running_service(pathlib.Path(sys.argv[1])) as service:\n"
        "    print(service.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(bundle.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert alive(pid)
        program.kill()
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_the_program_does_not_load_the_service() -> None:
    """The parent stays small: no FastAPI, no ONNX Runtime, no torch in it."""
    script = (
        "import sys; import harmony.cloud.process; "
        ""
        "print([name for name in ('fastapi', 'uvicorn', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
