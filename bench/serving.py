"""The service under load, beside the same model without HTTP: `python -m harmony.bench.serving --help`.

Each round measures, one after the other, the no-HTTP probe and every case; what is compared is CPU time a request, of
all processes of a server, because it survives a busy machine. Shares are of the probe of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from platformdirs import user_cache_path

from harmony.bench.host import Watch
from harmony.bench.serving_load import LoadResult, LoadSettings
from harmony.bench.serving_models import WIDTHS, write_bundles
from harmony.bench.serving_peers import PATHS, PEERS, PeerName, environment, running_peer
from harmony.bench.serving_requests import CUT
from harmony.cloud.process import RunningService, running_service
from harmony.cloud.torch_program import has_bfloat16
from harmony.core.errors import HarmonyError

_PATIENT = ("--queue-seconds", "10")
_TIGHT = ("--queue-seconds", "0.05")
Values = dict[str, float]


class Case(NamedTuple):
    """One thing to measure: a service's answer to one kind of load. limit: the probe that it is compared with."""

    name: str
    limit: str | None
    run: Callable[[], Values]


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
        case("fp32, 32 connections", "probe fp32", plain, "tensor"),
        case("fp32, full protocol, 32 connections", "probe fp32", plain, "full"),
        case("fp32, 128 connections", "probe fp32", plain, "tensor", connections=128),
        case("int8 model and features, 32 connections", "probe int8", quantised, "int8-zstd"),
        case("int8 model, fp32 features, 32 connections", "probe int8", quantised, "tensor"),
        case("peak with a short queue, 64 connections", None, tight, "tensor", **over | {"connections": 64}),
        case("4x overload, Retry-After heeded", None, tight, "tensor", **over),
        case("4x overload, hammering", None, tight, "tensor", **over, after_503="hammer"),
    ]


def measure(width: int, rounds: int, seconds: float, peers: Sequence[PeerName], cache: Path) -> dict[str, Any]:
    """The whole result, ready to be written."""
    watch = Watch()
    versions: dict[str, str] = {name: metadata.version(name) for name in ("uvicorn", "uvloop", "httptools")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain, quantised, mflop = write_bundles(Path(folder), width)
        cases = _own_cases(stack, plain, quantised, seconds)
        for name in peers:
            peer = stack.enter_context(running_peer(name, environment(name, cache), plain / "back_end.onnx"))
            versions[name] = peer.version
            url, settings = f"http://127.0.0.1:{peer.port}", LoadSettings(connections=32, seconds=seconds)
            run = _peer_run(peer.pid, url, settings, PATHS[name])
            run()  # its first seconds are slower
            cases.append(Case(name, "probe fp32", run))
        found = _rounds(cases, rounds)
    limits = {case.name: case.limit for case in cases}
    return {
        "what": "harmony serving benchmark",
        "config": {
            "width": width,
            "mflop": mflop,
            "cut": str(CUT),
            "rounds": rounds,
            "seconds": seconds,
            "queue": {"patient": _PATIENT[1], "tight": _TIGHT[1]},
        },
        "host": watch.host().model_dump(mode="json"),
        "versions": versions,
        "cases": {name: summary(name, found, limits[name]) for name in found},
    }


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
        Case("probe fp32", None, lambda: probe(plain, seconds / 2)),
        Case("probe int8", None, lambda: probe(quantised, seconds / 2)),
        *service_cases(services[0], services[1], services[2], seconds),
        *(_torch_case(engine, service, seconds) for engine, service in in_torch.items()),
    ]


def _torch_case(engine: str, service: RunningService, seconds: float) -> Case:
    """The same weights in PyTorch; its limit is still ONNX Runtime's."""
    settings = LoadSettings(connections=32, seconds=seconds)

    def run() -> Values:
        return measured(service.pid, lambda: load(service.url, service.key, "tensor", settings))

    return Case(f"{engine}, 32 connections", "probe fp32", run)


def _peer_run(pid: int, url: str, settings: LoadSettings, path: str) -> Callable[[], Values]:
    return lambda: measured(pid, lambda: load(url, None, "raw", settings, path))


def _rounds(cases: Sequence[Case], rounds: int) -> dict[str, list[Values]]:
    found: dict[str, list[Values]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            sys.stderr.write(f"\rround {number + 1} of {rounds}: {case.name:50}")
            sys.stderr.flush()
            found[case.name].append(case.run())
    sys.stderr.write("\n")
    return found


def summary(name: str, found: dict[str, list[Values]], limit: str | None) -> dict[str, Any]:
    """Median and range of each value over the rounds; `share`: of the limit, round by round."""
    rounds = [dict(values) for values in found[name]]
    for number, values in enumerate(rounds):
        if limit is not None and "cpu_ms" in values:
            values["share"] = found[limit][number]["cpu_ms"] / values["cpu_ms"]
    keys = rounds[0].keys() & set.intersection(*(set(values) for values in rounds))
    series = {key: [values[key] for values in rounds] for key in sorted(keys)}
    return {
        key: {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
        for key, values in series.items()
    }


def table(result: dict[str, Any]) -> str:
    """Medians, for people."""
    columns = ("cpu_ms", "share", "goodput", "p50_ms", "p99_ms", "p99_over_p50")
    lines = [f"{'median of the rounds':45}" + "".join(f"{column:>13}" for column in columns)]
    for name, values in result["cases"].items():
        cells = [f"{values[key]['median']:13.3f}" if key in values else f"{'':13}" for key in columns]
        lines.append(f"{name:45}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--width", type=int, choices=WIDTHS, default=40, help="of the back end: 30.7 or 45.0 MFLOP")
    parser.add_argument("--peers", action="store_true", help="LitServe and BentoML too; installs them from PyPI")
    parser.add_argument(
        "--cache", type=Path, default=user_cache_path("harmony") / "peers", help="of their environments"
    )
    parser.add_argument("--out", type=Path, default=Path("results/serving.json"))
    given = parser.parse_args(arguments)
    try:
        result = measure(given.width, given.rounds, given.seconds, PEERS if given.peers else (), given.cache)
    except HarmonyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{table(result)}\nwritten: {given.out}\n")


if __name__ == "__main__":
    main()
