"""The service under load, beside the same model without HTTP: `python -m harmony.bench.serving --help`.

Each round measures, one after the other, the no-HTTP probe and every case; what is compared is CPU time a request, of
all processes of a server, because it survives a busy machine. Shares are of the probe of the same round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from platformdirs import user_cache_path

from harmony.bench import serving_results as results
from harmony.bench.host import Watch
from harmony.bench.published import rewrite
from harmony.bench.result_files import read_result
from harmony.bench.serving_load import LoadResult, LoadSettings
from harmony.bench.serving_models import PROGRAM, WIDTHS, write_bundles
from harmony.bench.serving_peers import PATHS, PEERS, Peer, PeerName, environment, running_peer, versions_of
from harmony.bench.serving_requests import CUT
from harmony.bench.serving_results import ServingConfig, ServingResult, Values
from harmony.cloud.process import RunningService, running_service
from harmony.cloud.torch_program import has_bfloat16
from harmony.core.errors import ConfigError, HarmonyError
from harmony.core.sealed import write_atomically

_PATIENT = ("--queue-seconds", "10")
_TIGHT = ("--queue-seconds", "0.05")
_FP32, _INT8 = "probe fp32", "probe int8"
_WAKING_SECONDS = 1.0
"""Of load on what has rested or just begun, before it is measured: its first answers are slower, and a peer whose own
connections ended meanwhile fails some."""


class Case(NamedTuple):
    """One thing to measure: a service's answer to one kind of load.

    limit: the probe that it is compared with; ours: for a peer, our own case of the same model and the same body.
    """

    name: str
    limit: str | None
    run: Callable[[], Values]
    ours: str | None = None


class LoadFailed(HarmonyError):
    """A load did not come through."""


def load(url: str, key: str | None, form: str, settings: LoadSettings, path: str | None = None) -> LoadResult:
    """Drive a service from a process of its own, so that its CPU time is nobody else's."""
    order = {"url": url, "key": key, "form": form, "path": path, "settings": settings.model_dump(mode="json")}
    command = [sys.executable, "-m", "harmony.bench.serving_driver"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(done.stderr.strip().splitlines()[-1] if done.stderr else "the load driver ended", where=url)
    return LoadResult.model_validate_json(done.stdout)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, with those that ended."""
    total = 0.0
    for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def measured(pid: int, drive: Callable[[], LoadResult]) -> Values:
    """CPU-ms a request that was answered with 200, goodput and latency."""
    before = cpu_seconds(pid)
    result = drive()
    spent = cpu_seconds(pid) - before
    good = result.statuses.get("200", 0)
    values = {"goodput": result.goodput, "refused": float(sum(result.statuses.values()) - good)}
    if result.settings.warm_up == 0 and good:
        values["cpu_ms"] = 1e3 * spent / good
    if result.latency is not None:
        values |= {"p50_ms": result.latency.p50, "p99_ms": result.latency.p99}
        values["p99_over_p50"] = result.latency.p99 / result.latency.p50
    return values


def probe(bundle: Path, seconds: float) -> Values:
    """CPU-ms a sample without HTTP, at the best batch size, in a process of its own."""
    command = [sys.executable, "-m", "harmony.bench.serving_probe", str(bundle), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Values = json.loads(done.stdout)
    return {"cpu_ms": min(found.values())}


def service_cases(
    plain: RunningService, quantised: RunningService, tight: RunningService, seconds: float
) -> list[Case]:
    """What is measured of our service."""

    def case(name: str, limit: str | None, service: RunningService, form: str, **more: Any) -> Case:
        settings = LoadSettings(**({"connections": 32, "seconds": seconds} | more))
        return Case(name, limit, lambda: measured(service.pid, lambda: load(service.url, service.key, form, settings)))

    over = {"connections": 256, "warm_up": 5.0}  # by then those who are refused stay away as long as they are asked to
    return [
        case(results.FP32, _FP32, plain, "tensor"),
        case(results.FULL, _FP32, plain, "full"),
        case(results.CROWD, _FP32, plain, "tensor", connections=128),
        case(results.INT8, _INT8, quantised, "int8-zstd"),
        case(results.INT8_MODEL, _INT8, quantised, "tensor"),
        case(results.PEAK, None, tight, "tensor", **over | {"connections": 64}),
        case(results.HEEDED, None, tight, "tensor", **over),
        case(results.HAMMERED, None, tight, "tensor", **over, after_503="hammer"),
    ]


def measure(
    width: int, rounds: int, seconds: float, peers: Sequence[PeerName], cache: Path, *, on_ray: bool = False
) -> ServingResult:
    """The whole result, ready to be written. on_ray: our application on Ray Serve, too."""
    watch = Watch()
    versions: dict[str, str] = {name: metadata.version(name) for name in ("uvicorn", "uvloop", "httptools")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain, quantised, mflop = write_bundles(Path(folder), width)
        cases = _own_cases(stack, plain, quantised, seconds)
        if on_ray:
            versions["ray"] = metadata.version("ray")
            cases.append(_ray_case(plain, seconds))
        for name in peers:
            python = environment(name, cache)
            versions |= versions_of(name, python)
            cases += _peer_cases(stack, name, python, (plain, quantised), seconds)
        found = _rounds(cases, rounds)
    return ServingResult(
        config=ServingConfig(
            width=width,
            mflop=mflop,
            cut=str(CUT),
            rounds=rounds,
            seconds=seconds,
            queue={"patient": _PATIENT[1], "tight": _TIGHT[1]},
        ),
        host=watch.host(),
        versions=versions,
        cases={case.name: results.summary(case.name, found, case.limit, case.ours) for case in cases},
    )


def _peer_cases(
    stack: ExitStack, name: PeerName, python: Path, bundles: tuple[Path, Path], seconds: float
) -> list[Case]:
    """A peer with each of the ONNX files that our own service has, asked with the same values."""
    cases, settings = [], LoadSettings(connections=32, seconds=seconds)
    kinds = (("fp32", _FP32, results.FP32), ("int8", _INT8, results.INT8_MODEL))
    for (kind, limit, ours), bundle in zip(kinds, bundles, strict=True):
        peer = stack.enter_context(running_peer(name, python, bundle / PROGRAM))
        run = _peer_run(peer, settings)
        run()  # its first seconds are slower
        cases.append(Case(f"{name}, {kind}", limit, run, ours))
    return cases


def _own_cases(stack: ExitStack, plain: Path, quantised: Path, seconds: float) -> list[Case]:
    """The probes, and our service with each back end."""
    services = [
        stack.enter_context(running_service(bundle, *options))
        for bundle, options in ((plain, _PATIENT), (quantised, _PATIENT), (plain, _TIGHT))
    ]
    in_torch = {
        engine: stack.enter_context(running_service(plain.parent, *_PATIENT, "--engine", engine))
        for engine in ("torch", *(["torch-bf16"] if has_bfloat16() else []))
    }
    return [
        Case(_FP32, None, lambda: probe(plain, seconds / 2)),
        Case(_INT8, None, lambda: probe(quantised, seconds / 2)),
        *service_cases(services[0], services[1], services[2], seconds),
        *(_tensor_case(f"{engine}, 32 connections", service, seconds) for engine, service in in_torch.items()),
    ]


def _tensor_case(name: str, service: RunningService, seconds: float) -> Case:
    """The same model under another engine or server; its limit is still that of ONNX Runtime alone."""
    settings = LoadSettings(connections=32, seconds=seconds)

    def run() -> Values:
        return measured(service.pid, lambda: load(service.url, service.key, "tensor", settings))

    return Case(name, _FP32, run)


def _ray_case(bundle: Path, seconds: float) -> Case:
    """Started for each of its rounds: Ray's own processes are never idle."""
    name = "on Ray Serve, 32 connections"

    def run() -> Values:
        with running_service(bundle, *_PATIENT, "--ray") as service:
            _tensor_case(name, service, _WAKING_SECONDS).run()
            return _tensor_case(name, service, seconds).run()

    return Case(name, _FP32, run)


def _peer_run(peer: Peer, settings: LoadSettings) -> Callable[[], Values]:
    url, path = f"http://127.0.0.1:{peer.port}", PATHS[peer.name]
    waking = settings.model_copy(update={"seconds": _WAKING_SECONDS})

    def run() -> Values:
        with peer.awake():
            load(url, None, "raw", waking, path)
            return measured(peer.pid, lambda: load(url, None, "raw", settings, path))

    return run


def _rounds(cases: Sequence[Case], rounds: int) -> dict[str, list[Values]]:
    found: dict[str, list[Values]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            sys.stderr.write(f"\rround {number + 1} of {rounds}: {case.name:50}")
            sys.stderr.flush()
            found[case.name].append(case.run())
    sys.stderr.write("\n")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--width", type=int, choices=WIDTHS, default=40, help="of the back end: 30.7 or 45.0 MFLOP")
    parser.add_argument("--peers", action="store_true", help="LitServe and BentoML too; installs them from PyPI")
    parser.add_argument("--ray", action="store_true", help="our application on Ray Serve too; needs the extra [ray]")
    parser.add_argument(
        "--cache", type=Path, default=user_cache_path("harmony") / "peers", help="of their environments"
    )
    parser.add_argument("--out", type=Path, default=Path("results/serving.json"))
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing, read this result file")
    parser.add_argument(
        "--publish", type=Path, nargs="?", const=Path("docs/serving.md"), metavar="FILE.md", help="write its tables too"
    )
    given = parser.parse_args(arguments)
    try:
        result = read_result(given.report, ServingResult) if given.report else _measured_anew(given)
        sys.stdout.write(results.table(result) + "\n")
        if given.publish is not None:
            rewrite(given.publish, results.BEGIN, results.END, results.block(result))
    except HarmonyError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _measured_anew(given: argparse.Namespace) -> ServingResult:
    if given.ray and find_spec("ray") is None:
        raise ConfigError("Ray is not installed", where="--ray", mend="pip install 'harmony-sfl[ray]'")
    peers = PEERS if given.peers else ()
    result = measure(given.width, given.rounds, given.seconds, peers, given.cache, on_ray=given.ray)
    write_atomically(given.out, result.model_dump_json(indent=1).encode() + b"\n")
    sys.stderr.write(f"written: {given.out}\n")
    return result


if __name__ == "__main__":
    main()
