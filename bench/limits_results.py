"""What `harmony bench limits --json` prints. Times in seconds, sizes in bytes; None: not measured, does not apply."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.results import AnswerPath, Count, Host, Precision, Ratio, Summary, Versioned
from harmony.core.spec import Frozen
from harmony.device.engine import EngineChoice

CgroupVersion = Literal[1, 2]


class MemoryRun(Frozen):
    """The native runner under a limit. result: it answered, was ended by the kernel for want of memory, or failed of
    itself (`said`); version: of cgroups; charged_bytes: the most that the group held."""

    bundle: str
    precision: Precision
    limit_bytes: Annotated[int, Field(gt=0)]
    result: Literal["answered", "out-of-memory", "failed"]
    version: CgroupVersion
    charged_bytes: Count | None
    peak_rss_bytes: Count | None
    said: str


class CpuRun(Frozen):
    """A Python device process that has `share` of a CPU: quota_us of every period_us.

    exit: where its image leaves; work: CPU time of an answer, the quota off; full, held: wall clock of an answer
    without and with the quota, in turns; stretch: what an answer takes with it, over work / share, a round each: 1 is
    what a CPU of that speed would take, if it were slower in all alike; throttled: periods in which it had to wait.
    """

    bundle: str
    engine: EngineChoice
    precision: Precision
    share: Annotated[float, Field(gt=0, lt=1)]
    quota_us: Count
    period_us: Count
    version: CgroupVersion
    exit: AnswerPath
    work: Summary
    full: Summary
    held: Summary
    stretch: Ratio
    throttled: Count


class LimitsResult(Versioned):
    """One tier, one thread, one kind of run. regime: answers follow each other without a pause."""

    FORMAT: ClassVar[str] = "harmony-bench-limits"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-limits"] = "harmony-bench-limits"
    format_version: Literal[1] = 1
    harmony_version: str
    tier: Literal["constrained"] = "constrained"
    threads: Literal[1] = 1
    regime: Literal["hot"] = "hot"
    host: Host
    memory: tuple[MemoryRun, ...] = ()
    cpu: tuple[CpuRun, ...] = ()
