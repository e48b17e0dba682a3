"""What a process has in RAM, by the kernel's own count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harmony.core.errors import ConfigError
from harmony.device import memory
from harmony.device.memory import peak_bytes, resident_bytes

MIB = 1 << 20


def test_what_is_taken_is_counted_and_what_is_given_back_is_not() -> None:
    before = resident_bytes()
    taken = bytearray(b"x") * (64 * MIB)
    during = resident_bytes()
    del taken
    assert during - before == pytest.approx(64 * MIB, abs=8 * MIB)
    assert resident_bytes() - before < 8 * MIB
    assert peak_bytes() > during - 8 * MIB


def test_it_is_what_the_kernel_says_in_pages() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert resident_bytes() == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), abs=8 * MIB)


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert peak_bytes() > MIB
    with pytest.raises(ConfigError, match="this system: does not say how much memory"):
        resident_bytes()
