"""The limits that the project set itself, measured beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from harmony.bench.results import Bar, BundleResult
from harmony.core.errors import EngineError

HELP_RUNS = 3


def speed_bars(bundles: Sequence[BundleResult]) -> tuple[Bar, ...]:
    """Device path over bare ONNX Runtime (the slowest device), peak memory (the largest), and `harmony --help`."""
    bars = []
    ratios = [one.hot.ratio.median for one in bundles if one.hot is not None and one.hot.ratio is not None]
    if ratios:
        bars.append(Bar(name="device path over the bare engine call", value=max(ratios), limit=1.15, unit="×"))
    light = [one.process.peak_rss_bytes / 1e6 for one in bundles if not one.process.torch_loaded]
    if light:
        bars.append(Bar(name="peak memory of a device process", value=max(light), limit=80.0, unit="MB"))
    return (*bars, Bar(name="harmony --help, CPU time", value=help_cpu_s(), limit=0.3, unit="s"))


def help_cpu_s(runs: int = HELP_RUNS) -> float:
    """CPU seconds, user and system, of `harmony --help`: the least of a few runs, as noise only adds."""
    return min(_cpu_s([sys.executable, "-m", "harmony.cli.main", "--help"]) for _ in range(runs))


def _cpu_s(command: Sequence[str]) -> float:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise EngineError(
            f"ended with code {child.returncode}", where=" ".join(command), mend="is harmony-sfl installed whole?"
        )
    return usage.ru_utime + usage.ru_stime
