"""Other servers with the same model, each in an environment of its own that is made once in the cache folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from harmony.core.errors import ServiceError

PeerName = Literal["litserve", "bentoml"]
PEERS: tuple[PeerName, ...] = ("litserve", "bentoml")
PATHS: dict[PeerName, str] = {"litserve": "/predict", "bentoml": "/raw/predict"}
_HERE = Path(__file__).resolve().parent
_START_SECONDS = 60.0


class Peer(NamedTuple):
    """A server that answers, while it is awake."""

    name: PeerName
    pid: int
    port: int

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for the length of the block, and at no other time: some look for work without a pause, and would
        take a core from whoever is measured then."""
        _signal(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """Stop it where it stands."""
        _signal(self.pid, signal.SIGSTOP)


def environment(name: PeerName, cache: Path) -> Path:
    """The interpreter of a peer's environment, made if it is not there. ServiceError if it cannot be installed."""
    folder = cache / f"peer-{name}"
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists():
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "--quiet", name, "onnxruntime", "numpy"]
        subprocess.run(install, check=True, capture_output=True, timeout=900)
    except (subprocess.SubprocessError, OSError) as error:
        raise ServiceError(f"{name} cannot be installed: {error}", where=folder, mend="leave --peers out") from None
    done.touch()
    return python


def versions_of(name: PeerName, python: Path) -> dict[str, str]:
    """Of a peer and of its ONNX Runtime, which should be the one that our service has."""
    code = f"import importlib.metadata as m; print(m.version({name!r}), m.version('onnxruntime'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    peer, runtime = done.stdout.split()
    return {name: peer, f"onnxruntime of {name}": runtime}


@contextmanager
def running_peer(name: PeerName, python: Path, program: Path) -> Iterator[Peer]:
    """Serve an ONNX file with a peer, for the length of the block; its processes are gone afterwards. It rests until it
    is woken."""
    port = _free_port()
    arguments, more = _command(name, python, program, port)
    child = subprocess.Popen(
        arguments,
        env={**os.environ, **more},
        cwd=_HERE,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(child, port, name)
        peer = Peer(name, child.pid, port)
        peer.rest()
        yield peer
    finally:
        _signal(child.pid, signal.SIGCONT)  # who is stopped hears no SIGTERM
        _end(child)


def _signal(pid: int, number: signal.Signals) -> None:
    """To a process and all that it started; whoever has ended meanwhile needs none."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for one in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def _command(name: PeerName, python: Path, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
    if name == "litserve":
        return [str(python), str(_HERE / "serving_peer_litserve.py"), str(program), str(port)], {}
    serve = [str(python), "-m", "bentoml", "serve", "serving_peer_bentoml:Front"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(_HERE)]
    return [*serve, *where], {"HARMONY_PEER_ONNX": str(program), "BENTOML_DO_NOT_TRACK": "1"}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _await(child: subprocess.Popen[bytes], port: int, name: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            time.sleep(3.0)  # both listen some seconds before their model is there
            return
    raise ServiceError(f"{name} did not start", where=f"127.0.0.1:{port}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Its whole process group: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(5)
            time.sleep(0.5)
        except subprocess.TimeoutExpired:
            continue
    child.wait()
