"""Cgroups of both versions, one for the time of a block: so much memory, or so much of a CPU.

    v1   memory.limit_in_bytes, memory.memsw.limit_in_bytes, memory.max_usage_in_bytes, memory.oom_control
         cpu.cfs_quota_us, cpu.cfs_period_us, cpu.stat
    v2   memory.max, memory.swap.max, memory.peak, memory.events
         cpu.max, cpu.stat

Linux, and root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from harmony.core.errors import ConfigError

ROOT = Path("/sys/fs/cgroup")
Controller = Literal["memory", "cpu"]
_MARKS = {"memory": "memory.limit_in_bytes", "cpu": "cpu.shares"}
"""Files of version 1 that show a controller."""
_INSTEAD = {
    "memory": "peak memory without a limit needs no privileges: harmony bench sweep",
    "cpu": "a slower CPU in virtual time needs no privileges: harmony bench sweep, or harmony bench --slowdown",
}


class Group(NamedTuple):
    """A cgroup of one controller."""

    folder: Path
    version: Literal[1, 2]

    @property
    def members(self) -> Path:
        """Where a process joins by writing its number, or 0 for itself."""
        return self.folder / "cgroup.procs"

    def limit_memory(self, size: int) -> None:
        """Memory in bytes, and no swap beside it."""
        if self.version == 2:
            alone, (swap, beside) = "memory.max", ("memory.swap.max", 0)
        else:
            alone, (swap, beside) = "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", size)
        (self.folder / alone).write_text(str(size))
        with suppress(OSError):  # a kernel without swap has no such file
            (self.folder / swap).write_text(str(beside))

    def limit_cpu(self, quota_us: int, period_us: int) -> None:
        """So many microseconds of CPU in each period. ConfigError where the kernel has no quotas."""
        try:
            if self.version == 2:
                (self.folder / "cpu.max").write_text(f"{quota_us} {period_us}")
            else:
                (self.folder / "cpu.cfs_period_us").write_text(str(period_us))
                (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        except OSError as error:
            problem = f"the kernel takes no CPU quota: {error.strerror}"
            raise ConfigError(problem, where=self.folder, mend=_INSTEAD["cpu"]) from None

    def throttled(self) -> int:
        """In how many periods its processes had to wait for the next one."""
        return _counts(self.folder / "cpu.stat").get("nr_throttled", 0)

    def killed(self) -> int:
        """How many processes the kernel has killed in it."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _counts(self.folder / name).get("oom_kill", 0)

    def peak(self) -> int | None:
        """Most memory that was charged; None where the kernel does not say (v2 before 5.19)."""
        file = self.folder / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else None


def _counts(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, file.read_text().splitlines())}


@contextmanager
def new_group(controller: Controller, name: str = "limit", root: Path = ROOT) -> Iterator[Group]:
    """A new cgroup, gone after the block. name: tells those of one process apart. ConfigError where none can be made,
    with what to do, and what can be had without."""
    parent, version = _parent(controller, root)
    folder = parent / f"harmony-{os.getpid()}-{name}"
    try:
        folder.mkdir()
    except OSError as error:
        problem = f"no {controller} cgroup can be made here: {error.strerror}"
        raise ConfigError(problem, where=parent, mend=f"run it as root; {_INSTEAD[controller]}") from None
    try:
        yield Group(folder, version)
    finally:
        folder.rmdir()


def _parent(controller: Controller, root: Path) -> tuple[Path, Literal[1, 2]]:
    if (root / controller / _MARKS[controller]).exists():
        return root / controller, 1
    if controller in _words(root / "cgroup.subtree_control"):
        return root, 2
    if controller in _words(root / "cgroup.controllers"):
        problem, mend = "is not handed on to new groups", f"as root: echo +{controller} > {root}/cgroup.subtree_control"
        raise ConfigError(f"the {controller} controller {problem}", where=root, mend=f"{mend}; {_INSTEAD[controller]}")
    raise ConfigError(f"no {controller} controller is there", where=root, mend=_INSTEAD[controller])


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
