"""What the native core costs: `python -m harmony.bench.native BUNDLE… [--images FILE] [--rounds 15] [--json]`.

For each bundle, with the ways taking turns in every round:

    start     one answer in a new process, from its begin to its end: wall and CPU milliseconds (medians), peak memory
    answers   median microseconds an image by where it left: inside ExecuTorch alone, and all of harmony_answer

Ways: harmony-run; Python with the native engine; Python with ONNX Runtime. The wall clock counts what else the machine
does; CPU time and the ratio of neighbouring clock readings hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from harmony.bench.pictures import noise
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import EngineError, HarmonyError
from harmony.device.native_build import OVERRIDE, PROGRAM, ensure_native

WAYS = ("harmony-run", "python native", "python onnxruntime")
_IMAGES = 200


class Start(NamedTuple):
    """One process that answered one image."""

    wall_ms: float
    cpu_ms: float
    peak_kib: int


def measure(bundle: Path, work: Path, *, rounds: int, images: Path | None = None) -> dict[str, Any]:
    """The figures of one device bundle with an ExecuTorch program; ways whose files it lacks are left out.

    images: a file for harmony-run, random ones by default; work: a folder for files. HarmonyError.
    """
    manifest = open_device_bundle(bundle)
    program, ways = ensure_native() / PROGRAM, _ways(manifest)
    made = _random_images(manifest, work)
    raw = images or made
    commands = {way: _command(way, program, bundle, raw, work) for way in ways}
    found: dict[str, list[Start]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, command in commands.items():
            found[way].append(_start(command, way, work))
    return {
        "bundle": str(bundle),
        "architecture": str(manifest.architecture),
        "parameters": manifest.parameters,
        "start": {way: _medians(starts) for way, starts in found.items()},
        "answers": _answers(program, bundle, raw),
    }


def _ways(manifest: DeviceManifest) -> list[str]:
    return [way for way in WAYS if way != "python onnxruntime" or "onnxruntime" in manifest.engines]


def _random_images(manifest: DeviceManifest, work: Path) -> Path:
    """Raw for harmony-run, and as safetensors for the device process."""
    images = noise(manifest.image, _IMAGES)
    (work / "images.bin").write_bytes(images.tobytes())
    save_file({"images": images[:1].copy()}, work / "images.safetensors")
    return work / "images.bin"


def _command(way: str, program: Path, bundle: Path, raw: Path, work: Path) -> list[str]:
    if way == "harmony-run":
        return [str(program), str(bundle), str(raw), "--limit", "1", "--time"]
    device = [sys.executable, "-OO", "-m", "harmony.device.stream", str(bundle)]  # -OO: see harmony.bench.child
    device += ["--images", str(work / "images.safetensors")]
    return [*device, "--out", str(work / "report.json"), "--limit", "1", "--engine", way.split()[1]]


def _start(command: Sequence[str], way: str, work: Path) -> Start:
    environment = os.environ | {OVERRIDE: str(ensure_native())}
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None  # noqa: S101  (asked for, above)
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise EngineError(f"ended with code {child.returncode}", where=" ".join(command))
    if way == "harmony-run":
        peak = int(json.loads(output.splitlines()[-1])["peak_kib"])
    else:
        peak = int(json.loads((work / "report.json").read_bytes())["peak_rss_bytes"]) // 1024
    return Start(1e3 * wall, 1e3 * (usage.ru_utime + usage.ru_stime), peak)


def _medians(starts: Sequence[Start]) -> dict[str, float]:
    wall, cpu, peak = zip(*starts, strict=True)
    return {"wall_ms": median(wall), "cpu_ms": median(cpu), "peak_mib": max(peak) / 1024}


def _answers(program: Path, bundle: Path, raw: Path) -> dict[str, dict[str, float]]:
    """By where the images left: how many, microseconds inside ExecuTorch and in all, and the share added to it."""
    done = subprocess.run([str(program), str(bundle), str(raw), "--time"], capture_output=True, check=False)
    if done.returncode:
        raise EngineError(done.stderr.decode(errors="replace").strip(), where=PROGRAM)
    times = json.loads(done.stdout.splitlines()[-1])["microseconds"]
    rows = {}
    for place, one in times.items():
        if one["images"]:
            engine = one["exit1"] + one.get("exit2", 0)
            rows[place] = {
                "images": one["images"], "engine_us": engine, "total_us": one["total"],
                "overhead": one["total"] / engine - 1,
            }  # fmt: skip
    return rows


def _print(found: dict[str, Any]) -> None:
    sys.stdout.write(f"{found['bundle']}  {found['architecture']}, {found['parameters']} parameters\n")
    for way, one in found["start"].items():
        figures = f"{one['wall_ms']:8.1f} ms  {one['cpu_ms']:8.1f} CPU ms  {one['peak_mib']:7.1f} MiB"
        sys.stdout.write(f"  start    {way:20}{figures}\n")
    for place, one in found["answers"].items():
        figures = f"{one['engine_us']:9.1f} µs ExecuTorch  {one['total_us']:9.1f} µs in all  {one['overhead']:+.1%}"
        sys.stdout.write(f"  answers  {place:8}{one['images']:6} images{figures}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a named error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.native", description=__doc__.split("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+", help="device bundles with an ExecuTorch program")
    parser.add_argument("--images", type=Path, help="images for harmony-run: .npy, or raw (random ones by default)")
    parser.add_argument("--rounds", type=int, default=15, help="processes of each way (default 15)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)
    documents = []
    try:
        for bundle in options.bundles:
            with tempfile.TemporaryDirectory(prefix="harmony-native-bench-") as work:
                documents.append(measure(bundle, Path(work), rounds=options.rounds, images=options.images))
            if not options.json:
                _print(documents[-1])
    except HarmonyError as error:
        sys.stderr.write(f"harmony.bench.native: {type(error).__name__}: {error}\n")
        return error.exit_code
    if options.json:
        sys.stdout.write(json.dumps(documents, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
