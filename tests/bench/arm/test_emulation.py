"""What the plugin writes, read: pairs of marks, their own cost taken off, and no second thread."""

from __future__ import annotations

import pytest

from harmony.bench.arm.cores import CORES, core_name
from harmony.bench.arm.emulation import read_counts
from harmony.core.errors import ConfigError, EngineError


def test_counts_are_those_between_the_marks_of_a_pair() -> None:
    assert read_counts("100 0\n119 0\n200 0\n1219 0\n2000 0\n2029 0\n") == (1000, 10)


@pytest.mark.parametrize("text", ["", "1 0\n", "1 0\n2 0\n", "1 0\n2 0\n3 0\n", "1 0\n2 0\n3 0\n4\n"])
def test_a_missing_mark_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="marks, so that pairs of them are missing"):
        read_counts(text)


def test_work_in_another_thread_is_refused_and_an_idle_one_is_not() -> None:
    assert read_counts("0 500\n19 500\n20 900\n100039 910\n") == (100000,)
    with pytest.raises(EngineError, match="works in several threads"):
        read_counts("0 500\n19 500\n20 900\n100039 50900\n")


def test_a_core_is_alone_and_says_its_part() -> None:
    for name, core in CORES.items():
        assert core_name(name) == core.name
        lines = [tuple(map(str.strip, line.split(":"))) for line in core.cpuinfo.splitlines() if line]
        assert [value for key, value in lines if key == "processor"] == ["0"]
        assert ("CPU part", f"0x{core.part:03x}") in lines
    assert len({core.part for core in CORES.values()}) == len(CORES)


def test_an_unknown_core_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--core: 'a7' is no known core \(choose from a53, a55, a72, a73, a75"):
        core_name("a7")
