"""How much memory this process has, and ever had. No torch."""

from __future__ import annotations

import sys
from pathlib import Path

from harmony.core.errors import ConfigError

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process ever had in RAM, shared libraries included.

    The kernel's own count (VmHWM, proc(5)). What getrusage(2) says, which is all there is elsewhere, begins with what
    the parent had when it started this process.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    import resource  # noqa: PLC0415  (only here)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """What this process has in RAM now, shared libraries included (VmRSS, proc(5)). ConfigError without /proc."""
    found = _status("VmRSS")
    if found is None:
        raise ConfigError("does not say how much memory a process has", where="this system", mend="use Linux")
    return found


def _status(name: str) -> int | None:
    """A line of the kernel's, in bytes; None where there is none."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
