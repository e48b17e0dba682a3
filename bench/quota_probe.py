"""`python -m harmony.bench.quota_probe JOB OUT`: a device process that times itself with a CPU quota and without. No
torch.

It moves itself between two cgroups, of which one has a quota, so that both ways take turns in one process. It opens and
warms up without.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field

from harmony.bench.child import reply
from harmony.bench.pictures import grey
from harmony.bench.probe import WARM_UP, lap
from harmony.bench.results import AnswerPath
from harmony.core.bundle import open_device_bundle
from harmony.core.spec import Frozen
from harmony.device import Device
from harmony.device.engine import EngineChoice


class QuotaJob(Frozen):
    """full, held: cgroup.procs of the groups without and with the quota; least_s: CPU seconds of an answer under which
    nothing is held."""

    bundle: Path
    engine: EngineChoice
    full: Path
    held: Path
    rounds: Annotated[int, Field(ge=1)]
    per_round: Annotated[int, Field(ge=1)]
    least_s: float


class QuotaTimes(Frozen):
    """Seconds of answers, one row a round. work_s: CPU time of those without the quota, full_s and held_s: wall clock
    of those without and with it, held_s empty where the work is too short. exit: where the image leaves."""

    exit: AnswerPath
    work_s: tuple[tuple[float, ...], ...]
    full_s: tuple[tuple[float, ...], ...]
    held_s: tuple[tuple[float, ...], ...]


def measure(job: QuotaJob) -> QuotaTimes:
    """The errors of opening a bundle, and OSError if a group cannot be joined."""
    image = grey(open_device_bundle(job.bundle).image)
    device = Device.open(job.bundle, engine=job.engine)
    job.full.write_text("0")
    taken: AnswerPath = [device.answer(image) for _ in range(WARM_UP)][-1].exit
    full, held = [], []
    for _ in range(job.rounds):
        full.append([lap(device.answer, image) for _ in range(job.per_round)])
        if median(one.cpu_s for one in full[0]) < job.least_s:
            break
        job.held.write_text("0")
        held.append([lap(device.answer, image) for _ in range(job.per_round)])
        job.full.write_text("0")
    return QuotaTimes(
        exit=taken,
        work_s=tuple(tuple(one.cpu_s for one in row) for row in full),
        full_s=tuple(tuple(one.wall_s for one in row) for row in full),
        held_s=tuple(tuple(one.wall_s for one in row) for row in held),
    )


if __name__ == "__main__":
    sys.exit(reply(QuotaJob, measure))
