"""What learning may cost: seconds and memory, looked at before every step."""

from __future__ import annotations

import time

from harmony.core.errors import ConfigError
from harmony.device.memory import peak_bytes


class Budget:
    """seconds: from now until the last step begins; memory: MiB of the whole process at its peak. None: no limit."""

    def __init__(self, seconds: float | None = None, memory: float | None = None) -> None:
        if seconds is not None and not seconds > 0:
            raise ConfigError(f"{seconds:g} seconds", where="--max-seconds", mend="give more than 0")
        if memory is not None and not memory > 0:
            raise ConfigError(f"{memory:g} MiB", where="--max-memory", mend="give more than 0")
        self._seconds, self._memory, self._start = seconds, memory, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._start

    def spent(self) -> bool:
        """Whether the seconds are over."""
        return self._seconds is not None and self.elapsed >= self._seconds

    def require_time(self, doing: str) -> None:
        """ConfigError if the seconds were over before the first step."""
        if self._seconds is not None and self.spent():
            problem = f"{self._seconds:g} s are too few: {doing} alone took {self.elapsed:.1f} s"
            raise ConfigError(problem, where="--max-seconds", mend="give more; nothing was changed")

    def require_memory(self) -> None:
        """ConfigError if the process has taken more than it may."""
        if self._memory is not None and peak_bytes() > self._memory * 2**20:
            problem = f"{self._memory:g} MiB are too few: the process has taken {peak_bytes() / 2**20:.0f}"
            raise ConfigError(problem, where="--max-memory", mend="give more, or fewer images; nothing was changed")
