"""Memory cgroups of both versions, and what is said where there are none."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from harmony.bench import limits
from harmony.bench.limits import Group, memory_group
from harmony.core.errors import ConfigError


def _allowed() -> bool:
    try:
        with memory_group():
            return True
    except (ConfigError, OSError):
        return False


@pytest.mark.skipif(not _allowed(), reason="no memory cgroup can be made here")
def test_the_kernel_ends_what_takes_too_much_and_it_is_told_from_other_ends() -> None:
    """A real process that wants 64 MiB, with 8 and with 256."""
    greedy = [sys.executable, "-S", "-c", "x = bytearray(64 << 20); x[::4096] = b'1' * (len(x) // 4096)"]
    outcomes = []
    for mib in (8, 256):
        with memory_group() as group:
            group.limit(mib << 20)
            done = limits._run_in(group, greedy, dict(os.environ))
            outcomes.append((done.returncode, group.killed()))
            folder = group.folder
        assert not folder.exists()
    assert outcomes == [(-signal.SIGKILL, 1), (0, 0)]


def test_files_of_version_2(tmp_path: Path) -> None:
    """Read and written as the kernel documents them; no such kernel is at hand."""
    group = Group(tmp_path, 2)
    for name, text in (("memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n"), ("memory.peak", "8388608\n")):
        (tmp_path / name).write_text(text)
    group.limit(8 << 20)
    assert (tmp_path / "memory.max").read_text() == "8388608"
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert (group.killed(), group.peak()) == (1, 8 << 20)
    (tmp_path / "memory.peak").unlink()
    assert group.peak() is None


def test_where_no_group_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no memory controller is there"), memory_group(tmp_path):
        pass
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / f"harmony-{os.getpid()}").write_text("in the way")
    says = r"no memory cgroup can be made here: File exists .*systemd-run"
    with pytest.raises(ConfigError, match=says), memory_group(tmp_path):
        pass
