"""A device process held short of memory for real: the native runner in a cgroup, ended by the kernel if it takes more.

A cgroup is charged what the process touches first: its own memory, and pages of files that were not in memory yet. The
libraries that another process has read already cost nothing in it. So what a limit shows is the memory that a bundle
needs beside libraries; all that is resident, libraries included, is the peak of `harmony bench sweep`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Literal

from harmony.bench.cgroups import ROOT, Group, new_group
from harmony.bench.limits_results import MemoryRun
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import EngineError
from harmony.device.native_build import OVERRIDE, PROGRAM, ensure_native

_LONGEST_S = 120


def run_limited(bundle: Path, image: Path, limit: int, root: Path = ROOT) -> MemoryRun:
    """Open the bundle and answer one raw image with at most `limit` bytes. ArtifactError, EngineUnavailable."""
    precision = open_device_bundle(bundle).precision
    program = ensure_native() / PROGRAM
    command = [str(program), str(bundle), str(image), "--limit", "1", "--time"]
    with new_group("memory", root=root) as group:
        group.limit_memory(limit)
        done = run_in(group, command, os.environ | {OVERRIDE: str(program.parent)})
        killed, charged = group.killed(), group.peak()
    said = done.stderr.decode(errors="replace").strip()[-500:]
    if done.returncode == -signal.SIGKILL and killed:
        result: Literal["answered", "out-of-memory", "failed"] = "out-of-memory"
    else:
        result = "failed" if done.returncode else "answered"
    peak = int(json.loads(done.stdout.splitlines()[-1])["peak_kib"]) * 1024 if result == "answered" else None
    return MemoryRun(
        bundle=str(bundle), precision=precision, limit_bytes=limit, result=result, version=group.version,
        charged_bytes=charged, peak_rss_bytes=peak, said=said,
    )  # fmt: skip


def run_in(group: Group, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """The child joins the group before it becomes the program, so that not a page of it is charged elsewhere."""

    def join() -> None:
        members.write(b"0")  # the process that writes it

    with group.members.open("wb", buffering=0) as members:
        return subprocess.run(
            command, capture_output=True, check=False, env=environment, timeout=_LONGEST_S,
            preexec_fn=join,
        )  # fmt: skip


def smallest(
    bundle: Path, image: Path, *, step: int = 1 << 20, most: int = 1 << 30, root: Path = ROOT
) -> list[MemoryRun]:
    """Runs that close in on the smallest limit, to within `step` bytes, under which the bundle still answers; the last
    that answered is it. EngineError if it does not answer with `most` either."""
    found = [run_limited(bundle, image, most, root)]
    if found[0].result != "answered":
        raise EngineError(f"gives no answer with {most} bytes either: {found[0].said}", where=bundle)
    low, high = 0, most // step
    while high - low > 1:
        middle = (low + high) // 2
        found.append(run_limited(bundle, image, middle * step, root))
        low, high = (low, middle) if found[-1].result == "answered" else (middle, high)
    return found
