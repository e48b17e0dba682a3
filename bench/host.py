"""Which machine measured this, and how quiet it was meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from harmony.bench.results import Host

_PACKAGES = ("harmony-sfl", "numpy", "onnxruntime", "executorch", "torch")


class Watch:
    """Load and steal since it was made, and the commit that the code was at then."""

    def __init__(self) -> None:
        self.commit = commit_of(Path(__file__).resolve().parent.parent)
        self._load = os.getloadavg()[0]
        self._steal, self._total = cpu_ticks(Path("/proc/stat"))

    def host(self) -> Host:
        """The machine, and its noise from the start until now."""
        steal, total = cpu_ticks(Path("/proc/stat"))
        passed = total - self._total
        return Host(
            cpu=cpu_name(Path("/proc/cpuinfo")),
            cores=os.cpu_count() or 0,
            affinity=_affinity(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            versions=_versions(),
            commit=self.commit,
            load_before=self._load,
            load_after=os.getloadavg()[0],
            steal=min(1.0, max(0.0, (steal - self._steal) / passed)) if passed > 0 else 0.0,
        )


def cpu_ticks(stat: Path) -> tuple[int, int]:
    """(stolen, all) clock ticks over all cores since boot, (0, 0) where the system does not say.

    The columns of Linux's /proc/stat are user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); guest time
    after them is counted in user already.
    """
    if not stat.is_file():
        return 0, 0
    ticks = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def cpu_name(cpuinfo: Path) -> str:
    """The processor's marketing name, or what Python knows."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _affinity() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit_of(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, with '+' if files differ from it; None outside a checkout."""
    if not (folder / ".git").exists():  # an installed package must not report the commit of a project around it
        return None
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
