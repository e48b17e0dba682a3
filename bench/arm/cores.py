"""Arm cores: what /proc/cpuinfo says on them, by which libraries choose their kernels, and how they are emulated."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from harmony.core.errors import ConfigError

CoreName = Literal["a53", "a55", "a72", "a73", "a75", "a76", "x1"]
_V80 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V80} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"


class Core(NamedTuple):
    """A core. part: ARM's number for it in MIDR_EL1; emulated: QEMU's name of a core with the same instruction sets."""

    name: CoreName
    title: str
    part: int
    emulated: str
    features: str

    @property
    def cpuinfo(self) -> str:
        """The file /proc/cpuinfo of a machine with a single one of it: a second would make counts vary."""
        return (
            f"processor\t: 0\nBogoMIPS\t: 38.40\nFeatures\t: {self.features}\n"
            f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
            f"CPU part\t: {self.part:#05x}\nCPU revision\t: 0\n\n"
        )


CORES: dict[CoreName, Core] = {
    core.name: core
    for core in (
        Core("a53", "Cortex-A53", 0xD03, "cortex-a53", _V80),
        Core("a55", "Cortex-A55", 0xD05, "cortex-a76", _V82),
        Core("a72", "Cortex-A72", 0xD08, "cortex-a72", _V80),
        Core("a73", "Cortex-A73", 0xD09, "cortex-a72", _V80),
        Core("a75", "Cortex-A75", 0xD0A, "cortex-a76", _V82),
        Core("a76", "Cortex-A76", 0xD0B, "cortex-a76", _V82),
        Core("x1", "Cortex-X1", 0xD44, "cortex-a76", _V82),
    )
}


def core_name(text: str) -> CoreName:
    """`text`, if it is the name of a core; ConfigError lists the known ones."""
    for name in get_args(CoreName):
        if name == text:
            return CORES[name].name
    raise ConfigError(f"'{text}' is no known core", where="--core", mend=f"choose from {', '.join(CORES)}")
