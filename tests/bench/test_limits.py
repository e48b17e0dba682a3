"""Cgroups of both versions for memory and CPU, what is refused, and what is said where there are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harmony.bench import quota
from harmony.bench.cgroups import Controller, Group, new_group
from harmony.bench.limits import run_in
from harmony.bench.quota import quota_of, run_with_share
from harmony.core.errors import ConfigError


def _missing(controller: Controller) -> str:
    """Why no cgroup of that controller can be made here; empty if one can."""
    try:
        with new_group(controller, "probe"):
            return ""
    except ConfigError as error:
        return str(error)


NO_MEMORY, NO_CPU = _missing("memory"), _missing("cpu")


@pytest.mark.skipif(bool(NO_MEMORY), reason=NO_MEMORY)
def test_the_kernel_ends_what_takes_too_much_and_it_is_told_from_other_ends() -> None:
    """A real process that wants 64 MiB, with 8 and with 256."""
    greedy = [sys.executable, "-S", "-c", "x = bytearray(64 << 20); x[::4096] = b'1' * (len(x) // 4096)"]
    outcomes = []
    for mib in (8, 256):
        with new_group("memory") as group:
            group.limit_memory(mib << 20)
            done = run_in(group, greedy, dict(os.environ))
            outcomes.append((done.returncode, group.killed()))
            folder = group.folder
        assert not folder.exists()
    assert outcomes == [(-signal.SIGKILL, 1), (0, 0)]


@pytest.mark.skipif(bool(NO_CPU), reason=NO_CPU)
def test_a_share_of_a_cpu_is_what_the_kernel_gives(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are taken to be long enough: the process is made to wait with the quota, and only with it."""
    monkeypatch.setattr(quota, "LEAST_WORK_S", 0.0)
    found = run_with_share(federation.devices[0], 0.01, engine="onnxruntime", rounds=2, per_round=100)
    assert (found.quota_us, found.period_us) == (1000, 100_000)
    assert found.throttled > 0
    assert (found.full.n, found.held.n, found.stretch.rounds) == (200, 200, 2)
    with new_group("cpu", "read") as group:
        group.limit_cpu(1000, 4000)
        names = ("cpu.max",) if group.version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        assert " ".join((group.folder / name).read_text().strip() for name in names) == "1000 4000"
        assert group.throttled() == 0


@pytest.mark.skipif(bool(NO_CPU), reason=NO_CPU)
def test_a_short_answer_is_refused_with_the_reason(federation: Any) -> None:
    says = r"an answer takes \S+ ms of CPU time; a quota is faithful from 5 ms on, .* .slow it down in virtual time"
    with pytest.raises(ConfigError, match=says):
        run_with_share(federation.devices[0], 0.25, engine="onnxruntime")


@pytest.mark.parametrize(
    ("share", "quota_us", "period_us"),
    [(0.5, 2000, 4000), (0.25, 1000, 4000), (0.1, 1000, 10_000), (0.001, 1000, 10**6)],
)
def test_the_period_rule(share: float, quota_us: int, period_us: int) -> None:
    """period = max(4 ms, 1 ms / share), and never less than the kernel's shortest quota, 1 ms."""
    assert quota_of(share) == (quota_us, period_us)


@pytest.mark.parametrize("share", [0, -1, 1, 1.5, 0.0001, float("nan")])
def test_shares_that_no_quota_can_give(share: float) -> None:
    with pytest.raises(ConfigError, match=r"--cpu: \S+ of a CPU cannot be had"):
        quota_of(share)


def test_files_of_version_2(tmp_path: Path) -> None:
    """Read and written as the kernel documents them; no such kernel is at hand."""
    group = Group(tmp_path, 2)
    for name, text in (
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n"),
        ("memory.peak", "8388608\n"),
        ("cpu.stat", "usage_usec 9\nuser_usec 9\nsystem_usec 0\nnr_periods 7\nnr_throttled 3\nthrottled_usec 50\n"),
    ):
        (tmp_path / name).write_text(text)
    group.limit_memory(8 << 20)
    group.limit_cpu(1000, 4000)
    assert (tmp_path / "memory.max").read_text() == "8388608"
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert (tmp_path / "cpu.max").read_text() == "1000 4000"
    assert (group.killed(), group.peak(), group.throttled()) == (1, 8 << 20, 3)
    (tmp_path / "memory.peak").unlink()
    assert group.peak() is None


def test_a_kernel_without_quotas_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the kernel takes no CPU quota"):
        Group(tmp_path / "gone", 1).limit_cpu(1000, 4000)


@pytest.mark.parametrize(
    ("controller", "instead"), [("memory", "peak memory without a limit"), ("cpu", "a slower CPU in virtual time")]
)
def test_where_no_group_can_be_made_it_is_said_what_can_be_had(
    tmp_path: Path, controller: Controller, instead: str
) -> None:
    def refused(problem: str) -> None:
        with pytest.raises(ConfigError, match=f"{problem}.*{instead}"), new_group(controller, root=tmp_path):
            pass

    refused(f"no {controller} controller is there .")
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("\n")
    refused(rf"the {controller} controller is not handed on .*echo \+{controller} > ")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / f"harmony-{os.getpid()}-limit").write_text("in the way")
    refused(f"no {controller} cgroup can be made here: File exists .run it as root;")


@pytest.mark.skipif(os.geteuid() != 0 or bool(NO_MEMORY or NO_CPU), reason="needs root, to stop being it")
def test_somebody_without_privileges_is_told_what_can_be_had() -> None:
    code = (
        "import os; from harmony.bench.cgroups import new_group; from harmony.core.errors import ConfigError\n"
        "os.setuid(65534)\n"
        "for controller in ('memory', 'cpu'):\n"
        "    try:\n"
        "        new_group(controller).__enter__()\n"
        "    except ConfigError as error:\n"
        "        print(error.problem, error.mend, sep='; ')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    memory, cpu = done.stdout.splitlines()
    assert memory.startswith("no memory cgroup can be made here: Permission denied; run it as root; peak memory")
    assert cpu.startswith("no cpu cgroup can be made here: Permission denied; run it as root; a slower CPU in virtual")
