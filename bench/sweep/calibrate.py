"""This host against published figures: the reference for every engine, and how far off other models come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from harmony.bench.child import run_module
from harmony.bench.devices import DEVICES, REFERENCE, Device
from harmony.bench.reference import MODELS, reference_bundle
from harmony.bench.statistics import summarise
from harmony.bench.sweep.order import Models, ModelTimes
from harmony.bench.sweep.schema import Calibration, Checked
from harmony.core.bundle import EngineName
from harmony.core.errors import EngineUnavailable
from harmony.device.native_build import ensure_native

Runtime = Literal["onnxruntime", "native", "executorch"]
ROUNDS = 21


def runtime_of(engine: EngineName) -> Runtime:
    """What runs an engine's files here: ExecuTorch's in the native core where that can be built, else in Python."""
    if engine == "onnxruntime":
        return "onnxruntime"
    try:
        ensure_native()
    except EngineUnavailable:
        return "executorch"
    return "native"


def calibrate(engine: EngineName, runtime: Runtime, work: Path) -> Calibration:
    """Time the published models in a process of its own; some seconds. work: a folder for files."""
    order, out = work / "models.json", work / "times.json"
    bundles: dict[str, Path] = {name: reference_bundle(name, engine) for name in MODELS}
    order.write_text(Models(runtime=runtime, bundles=bundles, rounds=ROUNDS).model_dump_json())
    run_module("harmony.bench.sweep.probe", ["models", str(order), str(out)], where=f"calibration of {engine}")
    return to_calibration(engine, runtime, ModelTimes.model_validate_json(out.read_bytes()))


def to_calibration(engine: EngineName, runtime: Runtime, found: ModelTimes) -> Calibration:
    """A cost is the median over rounds of the ratio to the reference of the same round."""
    reference = found.times[REFERENCE]
    costs = {
        name: median(one / other for one, other in zip(times, reference, strict=True))
        for name, times in found.times.items()
    }
    return Calibration(
        engine=engine,
        runtime=runtime,
        reference=REFERENCE,
        host_s=summarise(reference),
        checks=checks_of(costs),
        harness_s=found.harness_s,
    )


def checks_of(costs: Mapping[str, float], devices: Iterable[Device] | None = None) -> tuple[Checked, ...]:
    """Every published figure of another model than the reference. costs: of each model, in multiples of it; devices:
    all that are known, if None."""
    return tuple(
        Checked(
            device=device.name,
            model=row.model,
            published_s=row.ms / 1000,
            predicted_s=costs[row.model] * device.reference.ms / 1000,
        )
        for device in (DEVICES.values() if devices is None else devices)
        for row in device.checks
        if row.model in costs
    )


def spread(checks: Sequence[Checked]) -> tuple[float, float]:
    """(low, high): factors on a prediction between which the truth lay for every published figure; 1 is within."""
    truths = [one.published_s / one.predicted_s for one in checks if one.predicted_s > 0]
    return min([1.0, *truths]), max([1.0, *truths])
