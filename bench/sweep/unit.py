"""One bundle under one engine, measured: costs, scores, memory, bytes, put together as a Unit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from harmony.bench.child import run_module
from harmony.bench.devices import REFERENCE
from harmony.bench.plan import Target
from harmony.bench.programs import digest_of_programs, read_programs
from harmony.bench.reference import reference_bundle
from harmony.bench.statistics import ratio, summarise
from harmony.bench.stream import run_stream
from harmony.bench.sweep.calibrate import Runtime
from harmony.bench.sweep.order import COSTS_FILE, SCORES_FILE, Costs, Order, Timed
from harmony.bench.sweep.quality import Judged, points
from harmony.bench.sweep.schema import CloudCost, Memory, PathCost, RegimeCosts, SweepSettings, Unit
from harmony.core.bundle import EngineName
from harmony.core.errors import EngineError
from harmony.core.spec import Frozen
from harmony.device.native_build import OVERRIDE, PROGRAM, ensure_native

_QUANTILES = 100


class Task(NamedTuple):
    """What to measure. images: a safetensors file with the target's images; back_end: the cloud bundle, if any."""

    target: Target
    engine: EngineName
    runtime: Runtime
    images: Path
    back_end: Path | None
    cloud: CloudCost | None


def key_of(target: Target) -> str:
    """What a bundle shares with its back end: the hash of the checkpoint that both were exported from."""
    return (target.manifest.checkpoint or target.manifest.run)[:16]


class Measured(Frozen):
    """A unit, and the times that its costs come from."""

    unit: Unit
    times: tuple[Timed, ...]


def measure_unit(task: Task, settings: SweepSettings, work: Path) -> Measured:
    """Some seconds, in processes of their own. work: an empty folder for files."""
    target, manifest = task.target, task.target.manifest
    costs = time_unit(task, settings, work, scores=True)
    scores = load_file(work / SCORES_FILE)
    cloud = task.cloud
    frame = int(np.median(scores["frame_bytes"]))
    unit = Unit(
        name=target.name,
        run=manifest.run,
        method=manifest.method,
        client=manifest.client,
        architecture=str(manifest.architecture),
        dataset=target.dataset.name,
        own_classes=tuple(manifest.classes.names[label] for label in manifest.classes.own),
        engine=task.engine,
        runtime=task.runtime,
        precision=manifest.precision,
        parameters=manifest.parameters,
        program=digest_of_programs(read_programs(target.folder, manifest, task.engine)),
        macs=_macs(target),
        file_bytes=sum(manifest.files[file].size for file in manifest.engines[task.engine].values()),
        memory=peak_memory(task, work),
        first_cost=costs.first_s / float(np.median(costs.regimes[0].reference_s)),
        costs=tuple(to_costs([one]) for one in costs.regimes),
        codec=manifest.fallback.codec,
        frame_bytes=frame,
        image_bytes=int(target.images[0].nbytes),
        request_bytes=0 if cloud is None else cloud.envelope_bytes + frame,
        answer_bytes=0 if cloud is None else cloud.answer_bytes,
        cloud=None if cloud is None else key_of(target),
        points=points(Judged(target, scores, settings.rhos, settings.seed), settings.budgets),
    )
    return Measured(unit=unit, times=costs.regimes)


def time_unit(task: Task, settings: SweepSettings, work: Path, *, scores: bool = False) -> Costs:
    """Costs alone; with `scores`, SCORES_FILE in `work` too."""
    order = Order(
        bundle=task.target.folder,
        runtime=task.runtime,
        images=task.images,
        reference=reference_bundle(REFERENCE, task.engine),
        scores=scores,
        back_end=task.back_end,
        regimes=settings.regimes,
        rounds=settings.rounds,
        per_round=settings.per_round,
        out=work,
    )
    path = work / "order.json"
    path.write_text(order.model_dump_json())
    run_module("harmony.bench.sweep.probe", ["unit", str(path), ""], where=task.target.folder)
    return Costs.model_validate_json((work / COSTS_FILE).read_bytes())


def pooled(found: Sequence[Measured], later: Sequence[Sequence[Timed]]) -> tuple[Unit, ...]:
    """Units with the costs of all processes of their shape. later: times of each unit's further processes."""
    shapes: dict[tuple[object, ...], list[Timed]] = {}
    for one, more in zip(found, later, strict=True):
        shapes.setdefault(one.unit.shape, []).extend([*one.times, *more])
    return tuple(
        one.unit.model_copy(
            update={
                "costs": tuple(
                    to_costs([timed for timed in shapes[one.unit.shape] if timed.regime == costs.regime])
                    for costs in one.unit.costs
                )
            }
        )
        for one in found
    )


def to_costs(times: Sequence[Timed]) -> RegimeCosts:
    """CPU seconds → multiples of the reference of the same round. times: of one regime, a process each."""
    reference = np.concatenate([one.reference_s for one in times])
    paths = []
    for name in times[0].paths:
        seconds = np.concatenate([one.paths[name] for one in times])
        costs = seconds / reference[:, None]
        kept = np.quantile(costs, np.linspace(0, 1, min(_QUANTILES, costs.size)), method="inverted_cdf")
        paths.append(
            PathCost(
                path=name,
                samples=tuple(map(float, kept)),
                rounds=ratio([float(one) for one in np.median(costs, axis=1)]),
                host_s=summarise(seconds.ravel()),
            )
        )
    return RegimeCosts(regime=times[0].regime, processes=len(times), paths=tuple(paths))


def peak_memory(task: Task, work: Path) -> Memory:
    """Most memory of a process that opens the bundle and answers one image: the native runner's where it can run."""
    if task.runtime == "native":
        return Memory(peak_bytes=_native_peak(task, work), process="harmony-run")
    stream = run_stream(task.target.folder, task.images, engine=task.engine, cloud=None, deadline_s=1, limit=1)
    return Memory(peak_bytes=stream.process.peak_rss_bytes, process="python")


def _native_peak(task: Task, work: Path) -> int:
    raw, program = work / "image.bin", ensure_native() / PROGRAM
    raw.write_bytes(task.target.images[:1].tobytes())
    command = [str(program), str(task.target.folder), str(raw), "--limit", "1", "--time"]
    environment = os.environ | {OVERRIDE: str(program.parent)}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=60)
    if done.returncode:
        raise EngineError(done.stderr.decode(errors="replace").strip() or "failed", where=task.target.folder)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_kib"]) * 1024


def _macs(target: Target) -> tuple[int, int] | None:
    if "onnxruntime" not in target.manifest.engines:
        return None
    from harmony.bench.sweep.macs import macs  # noqa: PLC0415  (imports onnx)

    roles = target.manifest.engines["onnxruntime"]
    programs = read_programs(target.folder, target.manifest, "onnxruntime")
    first, second = (macs(programs[roles[role]]) for role in ("exit1", "exit2"))
    return first, first + second
