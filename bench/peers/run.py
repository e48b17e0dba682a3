"""Runs one front end in every runtime that is here, and compares what they answer before it counts what they take."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.host import Watch
from harmony.bench.peers.convert import to_litert, to_ncnn
from harmony.bench.peers.environments import Environment, environment
from harmony.bench.peers.results import PeersBench, PeersSettings, RuntimeCost
from harmony.bench.pictures import noise
from harmony.bench.statistics import summarise
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.checkpoint import checkpoint_folder
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable, HarmonyError
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import MANIFEST, digest_of, hash_file, read_sealed
from harmony.device.native_build import ensure_native

WORKER = Path(__file__).parent / "worker.py"
REFERENCE = "harmony onnxruntime"
TOLERANCE = 1e-3
"""How far an output may lie from ours, in shares of its largest value: other orders of sums, other convolutions."""
_START_SECONDS = 300.0
OnTurn = Callable[[str, int, int], None]
Outputs = list[NDArray[np.float32]]


class _Worker(NamedTuple):
    """A process that waits to be told how many images to answer."""

    name: str
    child: subprocess.Popen[str]

    def cpu_ms(self, count: int) -> dict[str, float]:
        """CPU milliseconds an image, by exit."""
        assert self.child.stdin is not None and self.child.stdout is not None  # noqa: S101  (asked for)
        self.child.stdin.write(f"{count}\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise EngineError("ended in the middle of the measurement", where=self.name)
        return {exit_: 1e3 * seconds / count for exit_, seconds in json.loads(line).items()}


def bench_peers(settings: PeersSettings, on_turn: OnTurn = lambda what, done, total: None) -> PeersBench:
    """Measure one bundle. A runtime that is missing, cannot load the net or answers otherwise is named with the reason;
    ConfigError for a bundle without ONNX files or of 8 bits, and what opening it raises."""
    watch, manifest, digest = Watch(), open_device_bundle(settings.bundle), digest_of(settings.bundle)
    _require(settings, manifest)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="harmony-bench-peers-") as place, ExitStack() as running:
        folder = Path(place)
        _write_inputs(settings, manifest, folder)
        workers: dict[str, _Worker] = {}
        for name, prepare in _runtimes(settings, manifest, folder).items():
            on_turn(name, 0, settings.rounds)
            try:
                worker = running.enter_context(_started(name, prepare(), folder))
                _difference(name, folder)
                workers[name] = worker
            except HarmonyError as error:
                if name == REFERENCE:
                    raise
                skipped[name] = str(error)
        found = _turns(list(workers.values()), settings, on_turn)
        runtimes = tuple(_cost(name, folder, ms) for name, ms in found.items())
    return PeersBench(
        settings=settings, digest=digest, architecture=str(manifest.architecture),
        parameters=manifest.parameters, runtimes=runtimes, skipped=skipped, host=watch.host(),
    )  # fmt: skip


def _require(settings: PeersSettings, manifest: DeviceManifest) -> None:
    if "onnxruntime" not in manifest.engines or manifest.precision != "fp32":
        problem = "peers are compared on ONNX files of fp32"
        raise ConfigError(problem, where=settings.bundle, mend="harmony export --format onnx,executorch")
    if settings.run is not None:
        where = checkpoint_folder(settings.run) / MANIFEST
        if not where.is_file() or hash_file(where) != manifest.checkpoint:
            problem = "the bundle was not exported from this run"
            raise ConfigError(problem, where=settings.run, mend="name its own, or leave --run out")


def _write_inputs(settings: PeersSettings, manifest: DeviceManifest, folder: Path) -> None:
    """The images, and the files that runtimes load."""
    images = noise(manifest.image, settings.images, settings.seed)
    np.save(folder / "images.npy", Preprocessor(manifest.image)(images))
    (folder / "bundle").write_text(str(settings.bundle.resolve()))
    (folder / "run.json").write_text(
        json.dumps({"run": str(settings.run and settings.run.resolve()), "client": manifest.client})
    )
    for name, file in manifest.engines["onnxruntime"].items():
        (folder / f"{name}.onnx").write_bytes(read_sealed(settings.bundle, manifest, file))


def _runtimes(settings: PeersSettings, manifest: DeviceManifest, folder: Path) -> dict[str, Callable[[], Path]]:
    """By name, what prepares a runtime's files and gives its interpreter. The reference is the first."""
    here = Path(sys.executable)

    def ours(build: Callable[[], object] = lambda: None) -> Path:
        if "executorch" not in manifest.engines:
            mend = "export it with --format onnx,executorch"
            raise EngineUnavailable("the bundle holds no ExecuTorch program", mend=mend)
        build()
        return here

    def of_run() -> None:
        if settings.run is None:
            raise EngineUnavailable("needs the network itself", mend="name its run with --run")

    def torch() -> Path:
        of_run()
        return here

    def peer(name: str, prepare: Callable[[Environment, Path], None] = lambda found, folder: None) -> Path:
        found = environment(name, install=settings.install)
        prepare(found, folder)
        return found.python

    def litert() -> Path:
        of_run()
        return peer("litert", to_litert)

    return {
        REFERENCE: lambda: here,
        "harmony native": lambda: ours(ensure_native),
        "onnxruntime": lambda: here,
        "executorch": ours,
        "torch": torch,
        "openvino": lambda: peer("openvino"),
        "ncnn": lambda: peer("ncnn", to_ncnn),
        "litert": litert,
    }


@contextmanager
def _started(name: str, python: Path, folder: Path) -> Iterator[_Worker]:
    """The runtime's process, its first answers given. EngineError, with its last word, if it ends before."""
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [str(python), "-P", str(WORKER), name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        too_long = threading.Timer(_START_SECONDS, child.kill)
        too_long.start()
        try:
            assert child.stdout is not None  # noqa: S101  (asked for)
            ready = child.stdout.readline() == "ready\n"
            too_long.cancel()
            if not ready:
                child.wait()
                log.seek(0)
                said = log.read().strip().splitlines() or ["it said nothing"]
                raise EngineError(f"its process ended with code {child.returncode}: {said[-1][:300]}")
            yield _Worker(name, child)
        finally:
            too_long.cancel()
            child.kill()
            child.communicate()


def _difference(name: str, folder: Path) -> float:
    """The largest from our own answers, in shares of an output's largest value. EngineError beyond TOLERANCE."""
    ours, theirs = _outputs(REFERENCE, folder), _outputs(name, folder)
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        raise EngineError(f"gives {[one.shape for one in theirs]}, not {[one.shape for one in ours]}")
    worst = max(float(np.abs(a - b).max() / max(1e-6, np.abs(b).max())) for a, b in zip(theirs, ours, strict=True))
    if not worst <= TOLERANCE:
        raise EngineError(f"answers otherwise: an output is off by {worst:.2g} of its largest value")
    return worst


def _outputs(name: str, folder: Path) -> Outputs:
    with np.load(folder / f"{name}.npz") as found:
        return [found[f"arr_{at}"] for at in range(len(found.files))]


def _turns(workers: Sequence[_Worker], settings: PeersSettings, on_turn: OnTurn) -> dict[str, list[dict[str, float]]]:
    """Every runtime's CPU milliseconds, a row a round; who begins changes every round."""
    found: dict[str, list[dict[str, float]]] = {one.name: [] for one in workers}
    for index in range(settings.rounds):
        for turn in range(len(workers)):
            worker = workers[(turn + index) % len(workers)]
            on_turn(worker.name, index + 1, settings.rounds)
            found[worker.name].append(worker.cpu_ms(settings.count))
    return found


def _cost(name: str, folder: Path, rounds: Sequence[dict[str, float]]) -> RuntimeCost:
    start: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return RuntimeCost(
        name=name, version=start["version"], start_cpu_s=start["cpu_s"], peak_bytes=start["peak_bytes"],
        exit1_ms=summarise([one["exit1"] for one in rounds]), exit2_ms=summarise([one["exit2"] for one in rounds]),
        difference=_difference(name, folder),
    )  # fmt: skip
