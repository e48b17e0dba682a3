"""Counted Arm instructions in the place of a sweep's CPU times, for the bundles that were counted.

A cost is then the predicted time over that of MobileNetV1 on the device. Accuracies, bytes and memory stay what the
sweep measured, and so does the cloud's own time, which is no time of the device. What costs the device nothing, sending
every image, has no counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from harmony.bench.arm.calibration import CORE_OF, calibrated, describe, milliseconds, net_ms, nets
from harmony.bench.arm.cores import CoreName
from harmony.bench.arm.results import ArmResult, BundleCount
from harmony.bench.devices import REFERENCE, Device
from harmony.bench.results import AnswerPath
from harmony.bench.statistics import ratio
from harmony.bench.sweep.calibrate import checks_of
from harmony.bench.sweep.schema import Calibration, PathCost, PathName, RegimeCosts, SweepResult, Unit
from harmony.core.errors import ConfigError

_PATHS: dict[PathName, AnswerPath] = {"exit1": "exit1", "exit2": "exit2", "send": "cloud"}


class Counted(NamedTuple):
    """result: of the tier of instructions, with the units that have counts; calibration: what they are divided by;
    unused: counts that could not be used, and why."""

    result: SweepResult
    calibration: str
    unused: tuple[str, ...]


def counted(result: SweepResult, records: Mapping[Path, ArmResult], device: Device) -> Counted:
    """The sweep's units with the costs that `records` count for `device`. One count serves all units of its shape.

    ConfigError if the device cannot be calibrated, or no count is for it and for a bundle of the sweep.
    """
    if device.name not in CORE_OF:
        mend = f"leave --arm out, or choose one of {', '.join(CORE_OF)}"
        raise ConfigError(f"{device.name} cannot be calibrated for Arm instructions", where="--device", mend=mend)
    _, core = calibrated(device.name, None)
    programs = {unit.program for unit in result.units}
    counts: dict[str, BundleCount] = {}
    unused = []
    for path, record in records.items():
        for one in record.bundles:
            if problem := _problem(record, one, core, programs):
                unused.append(f"{path}: {one.name} {problem}")
            else:
                counts[one.program] = one
    if not counts:
        raise ConfigError(f"nothing can be used for {device.name}: {'; '.join(unused)}", where="--arm")
    return Counted(_of_counts(result, counts, device, core), describe(device, core), tuple(unused))


def _problem(record: ArmResult, one: BundleCount, core: CoreName, programs: set[str]) -> str | None:
    then, now = nets().versions["executorch"], record.versions.get("executorch")
    if one.engine != "executorch":
        return f"ran in {one.engine}, whose instructions have no milliseconds"
    if one.precision != "fp32":
        return f"is {one.precision}, and calibration is in fp32"
    if one.core != core:
        return f"was counted on {one.core}, the device has the kernels of {core}"
    if now != then:
        return f"was counted with executorch {now}, calibration with {then}"
    if {path.path for path in one.paths} != set(_PATHS.values()):
        return "lacks the count of an exit"
    return None if one.program in programs else "is not in the sweep"


def _of_counts(result: SweepResult, counts: Mapping[str, BundleCount], device: Device, core: CoreName) -> SweepResult:
    by_shape = {unit.shape: counts[unit.program] for unit in result.units if unit.program in counts}

    def cost(instructions: int, count: BundleCount) -> float:
        return milliseconds(instructions, count.parameters, device, core) / device.reference.ms

    units = [
        _with_counts(unit, counts.get(unit.program, by_shape[unit.shape]), cost)
        for unit in result.units
        if unit.shape in by_shape
    ]
    models: dict[str, float] = {
        row.model: net_ms(row.model, device, core) / device.reference.ms for row in device.checks
    }
    calibration = Calibration(
        engine="executorch", runtime="native", reference=REFERENCE, host_s=None, checks=checks_of(models, [device])
    )
    changed = {"tier": "arm-instructions", "units": units, "calibrations": (calibration,), "speed": ()}
    return SweepResult.model_validate(dict(result) | changed)


def _with_counts(unit: Unit, count: BundleCount, cost: Callable[[int, BundleCount], float]) -> Unit:
    paths = {one.path: one for one in count.paths}
    costs = tuple(
        PathCost(path=name, samples=(share,), rounds=ratio([share]))
        for name, share in ((name, cost(paths[path].instructions, count)) for name, path in _PATHS.items())
    )
    changed = {
        "runtime": "native",
        "first_cost": cost(count.opening + paths["cloud"].first, count),
        "costs": (RegimeCosts(regime="hot", paths=costs),),
        "points": tuple(point for point in unit.points if point.rule.strategy != "cloud-image"),
    }
    return unit.model_copy(update=changed)
