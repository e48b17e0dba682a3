"""A device process held short for real: the native runner in a memory cgroup, ended by the kernel if it takes more.

Linux, and root or a cgroup of one's own that may be written. Both versions of cgroups are known:

    v1   memory.limit_in_bytes, memory.memsw.limit_in_bytes, memory.max_usage_in_bytes, memory.oom_control
    v2   memory.max, memory.swap.max, memory.peak, memory.events

A cgroup is charged what the process touches first: its own memory, and pages of files that were not in memory yet. The
libraries that another process has read already cost nothing in it. So what a limit shows is the memory that a bundle
needs beside libraries; all that is resident, libraries included, is the peak of `harmony bench sweep`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError, EngineError
from harmony.core.spec import Frozen
from harmony.device.native_build import OVERRIDE, PROGRAM, ensure_native

ROOT = Path("/sys/fs/cgroup")
_LONGEST_S = 120
_MEND = "run it as root, or in a systemd scope of your own: systemd-run --user --scope -p Delegate=yes harmony bench …"


class Outcome(Frozen):
    """One run. result: it answered, was killed by the kernel for want of memory, or failed of itself (`said`)."""

    bundle: str
    limit_bytes: Annotated[int, Field(gt=0)]
    result: Literal["answered", "out-of-memory", "failed"]
    version: Literal[1, 2]
    charged_bytes: int | None
    peak_rss_bytes: int | None
    said: str


class Group(NamedTuple):
    """A memory cgroup."""

    folder: Path
    version: Literal[1, 2]

    def limit(self, size: int) -> None:
        """Memory, and no swap beside it."""
        if self.version == 2:
            (self.folder / "memory.max").write_text(str(size))
            with suppress(OSError):  # a kernel without swap has no such file
                (self.folder / "memory.swap.max").write_text("0")
        else:
            (self.folder / "memory.limit_in_bytes").write_text(str(size))
            with suppress(OSError):
                (self.folder / "memory.memsw.limit_in_bytes").write_text(str(size))

    def killed(self) -> int:
        """How many processes the kernel has killed in it."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        counts = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(counts.get("oom_kill", 0))

    def peak(self) -> int | None:
        """Most that was charged; None where the kernel does not say (v2 before 5.19)."""
        file = self.folder / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else None


@contextmanager
def memory_group(root: Path = ROOT) -> Iterator[Group]:
    """A new memory cgroup, gone after the block. ConfigError where none can be made, with what to do."""
    parent, version = _parent(root)
    folder = parent / f"harmony-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"no memory cgroup can be made here: {error.strerror}", where=parent,
            mend=f"{_MEND}; peak memory without a limit needs no privileges: harmony bench sweep",
        ) from None  # fmt: skip
    try:
        yield Group(folder, version)
    finally:
        folder.rmdir()


def _parent(root: Path) -> tuple[Path, Literal[1, 2]]:
    if (root / "memory" / "memory.limit_in_bytes").exists() or (root / "memory" / "cgroup.procs").exists():
        return root / "memory", 1
    controllers = root / "cgroup.subtree_control"
    if controllers.exists() and "memory" in controllers.read_text().split():
        return root, 2
    raise ConfigError("no memory controller is there", where=root, mend=_MEND)


def run_limited(bundle: Path, image: Path, limit: int, root: Path = ROOT) -> Outcome:
    """Open the bundle and answer one raw image with at most `limit` bytes. ArtifactError, EngineUnavailable."""
    open_device_bundle(bundle)
    program = ensure_native() / PROGRAM
    command = [str(program), str(bundle), str(image), "--limit", "1", "--time"]
    with memory_group(root) as group:
        group.limit(limit)
        done = _run_in(group, command, os.environ | {OVERRIDE: str(program.parent)})
        killed, charged = group.killed(), group.peak()
    said = done.stderr.decode(errors="replace").strip()[-500:]
    if done.returncode == -signal.SIGKILL and killed:
        result: Literal["answered", "out-of-memory", "failed"] = "out-of-memory"
    else:
        result = "failed" if done.returncode else "answered"
    peak = int(json.loads(done.stdout.splitlines()[-1])["peak_kib"]) * 1024 if result == "answered" else None
    return Outcome(
        bundle=str(bundle), limit_bytes=limit, result=result, version=group.version, charged_bytes=charged,
        peak_rss_bytes=peak, said=said,
    )  # fmt: skip


def _run_in(group: Group, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """The child joins the group before it becomes the program, so that not a page of it is charged elsewhere."""

    def join() -> None:
        members.write(b"0")  # the process that writes it

    with (group.folder / "cgroup.procs").open("wb", buffering=0) as members:
        return subprocess.run(
            command, capture_output=True, check=False, env=environment, timeout=_LONGEST_S,
            preexec_fn=join,
        )  # fmt: skip


def smallest(
    bundle: Path, image: Path, *, step: int = 1 << 20, most: int = 1 << 30, root: Path = ROOT
) -> list[Outcome]:
    """Runs that close in on the smallest limit, to within `step` bytes, under which the bundle still answers; the last
    that answered is it. EngineError if it does not answer with `most` either."""
    found = [run_limited(bundle, image, most)]
    if found[0].result != "answered":
        raise EngineError(f"gives no answer with {most} bytes either: {found[0].said}", where=bundle)
    low, high = 0, most // step
    while high - low > 1:
        middle = (low + high) // 2
        found.append(run_limited(bundle, image, middle * step))
        low, high = (low, middle) if found[-1].result == "answered" else (middle, high)
    return found
