"""The whole sweep, step by step. What a step found is kept beside the result until that is written: a sweep that was
interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from pydantic import ValidationError
from safetensors.numpy import save_file

from harmony.bench.devices import find_device
from harmony.bench.host import Watch, cpu_name
from harmony.bench.job import IMAGES
from harmony.bench.links import find_link
from harmony.bench.plan import Plan, Target, make_plan
from harmony.bench.reference import make_references
from harmony.bench.results import Bar, BenchSettings
from harmony.bench.sweep.calibrate import Runtime, calibrate, runtime_of
from harmony.bench.sweep.clouds import cloud_cost
from harmony.bench.sweep.order import Costs
from harmony.bench.sweep.schema import Calibration, CloudCost, SweepResult, SweepSettings, Unit
from harmony.bench.sweep.unit import Measured, Task, key_of, measure_unit, pooled, time_unit
from harmony.core.bundle import EngineName, open_cloud_bundle
from harmony.core.errors import ConfigError, ContractMismatch
from harmony.core.sealed import digest_of
from harmony.core.spec import Frozen
from harmony.core.storage import write_atomically

KeptT = TypeVar("KeptT", bound=Frozen)


class SweepEvent(Frozen):
    """Progress: `done` of `total` steps are behind; `step` of `subject` comes next; kept: it was found from before."""

    step: Literal["reference", "calibration", "cloud", "unit", "again", "end"]
    subject: str
    done: int
    total: int


OnEvent = Callable[[SweepEvent], None]


def sweep(settings: SweepSettings, keep: Path, on_event: OnEvent = lambda event: None) -> SweepResult:
    """Measure every unit once. keep: a folder for what is finished; whoever saves the result removes it.

    Every named error of bundles, data and service can come out of it, before the first measurement where possible.
    """
    devices, links = tuple(map(find_device, settings.devices)), tuple(map(find_link, settings.links))
    clouds = clouds_by_run(settings.clouds)
    plan, watch = _plan(settings, clouds), Watch()
    started = time.perf_counter()
    with TemporaryDirectory(prefix="harmony-sweep-") as scratch:
        work = _Work(settings, plan, clouds, keep=keep, scratch=Path(scratch), on_event=on_event)
        calibrations, costs, units = work.calibrations(), work.clouds(), work.units()
    on_event(SweepEvent(step="end", subject="", done=work.total, total=work.total))
    return SweepResult(
        harmony_version=version("harmony-sfl"),
        tier="virtual-time",
        settings=settings,
        host=watch.host(),
        seconds=time.perf_counter() - started,
        devices=devices,
        links=links,
        calibrations=tuple(calibrations.values()),
        clouds=costs,
        units=units,
        speed=speed_bars(tuple(calibrations.values())),
    )


def speed_bars(calibrations: Sequence[Calibration]) -> tuple[Bar, ...]:
    """What the stopwatch adds to an image of a model of 1 ms."""
    harness = [100 * one.harness_s / 0.001 for one in calibrations if one.harness_s is not None]
    if not harness:
        return ()
    return (Bar(name="stopwatch, of a model of 1 ms", value=max(harness), limit=1.0, unit="%"),)


def clouds_by_run(folders: Sequence[Path]) -> dict[str, Path]:
    """Cloud bundles by the hash of the checkpoint that they were exported from."""
    found: dict[str, Path] = {}
    for folder in folders:
        manifest = open_cloud_bundle(folder)
        found[(manifest.checkpoint or manifest.run)[:16]] = folder
    return found


def _plan(settings: SweepSettings, clouds: dict[str, Path]) -> Plan:
    plan = make_plan(
        BenchSettings(
            bundles=settings.bundles,
            data=settings.data,
            data_dir=settings.data_dir,
            rhos=settings.rhos,
            limit=settings.limit,
            seed=settings.seed,
        ),
        every_engine=False,
    )
    for target in plan.targets:
        if clouds and key_of(target) not in clouds:
            raise ContractMismatch(
                f"its back end is not among the cloud bundles ({', '.join(map(str, clouds.values()))})",
                where=target.folder, mend="give its --cloud too, or none",
            )  # fmt: skip
        if not set(settings.engines) & set(target.manifest.engines):
            raise ConfigError(
                f"has no files for {', '.join(settings.engines)}", where=target.folder,
                mend=f"use --engine {','.join(target.manifest.engines)}",
            )  # fmt: skip
    return plan


def _digest_of_data(target: Target) -> str:
    """Images and labels: a path may hold others than it did before an interruption."""
    return hashlib.sha256(target.images.tobytes() + target.truth.tobytes()).hexdigest()


class _Work:
    """The steps, their progress, and what is kept of them."""

    def __init__(
        self,
        settings: SweepSettings,
        plan: Plan,
        clouds: dict[str, Path],
        *,
        keep: Path,
        scratch: Path,
        on_event: OnEvent,
    ) -> None:
        self._settings, self._plan, self._clouds = settings, plan, clouds
        self._keep, self._scratch, self._on_event = keep, scratch, on_event
        self._runtimes = {engine: runtime_of(engine) for engine in settings.engines}
        self._tasks = [
            (target, engine)
            for target in plan.targets
            for engine in settings.engines
            if engine in target.manifest.engines
        ]
        self._done, self.total = 0, 1 + len(settings.engines) + len(clouds) + settings.passes * len(self._tasks)
        self._costs: dict[str, CloudCost] = {}
        self._host = cpu_name(Path("/proc/cpuinfo"))
        keep.mkdir(parents=True, exist_ok=True)

    def calibrations(self) -> dict[EngineName, Calibration]:
        """One for each engine."""
        self._tell("reference", "MobileNets, made once")
        make_references(self._settings.engines)
        found = {}
        for engine, runtime in self._runtimes.items():
            self._tell("calibration", engine)
            found[engine] = self._once(
                Calibration,
                ("calibration", engine, runtime),
                partial(calibrate, engine, runtime, self._scratch),
            )
        return found

    def clouds(self) -> dict[str, CloudCost]:
        """One for each back end, by what its devices know it by."""
        for key, folder in self._clouds.items():
            self._tell("cloud", str(folder))
            target = next(one for one in self._plan.targets if key_of(one) == key)
            self._costs[key] = self._once(CloudCost, ("cloud", digest_of(folder)), partial(cloud_cost, folder, target))
        return self._costs

    def units(self) -> tuple[Unit, ...]:
        """Every bundle under every engine that it has files for. Each pass goes through all of them: what slows the
        host down for some seconds then meets a unit once at most."""
        found, later = [], []
        for target, engine in self._tasks:
            self._tell("unit", f"{target.name} {engine}")
            identity = self._identity("unit", target, engine)
            found.append(self._once(Measured, identity, partial(self._measure, target, engine)))
        for number in range(1, self._settings.passes):
            for target, engine in self._tasks:
                self._tell("again", f"{target.name} {engine}")
                identity = self._identity(f"pass-{number}", target, engine)
                later.append(self._once(Costs, identity, partial(self._time, target, engine)).regimes)
        each = len(self._tasks)
        return pooled(found, [[one for part in later[index::each] for one in part] for index in range(each)])

    def _time(self, target: Target, engine: EngineName) -> Costs:
        task, work = self._task(target, engine)
        return time_unit(task, self._settings, work)

    def _measure(self, target: Target, engine: EngineName) -> Measured:
        task, work = self._task(target, engine)
        return measure_unit(task, self._settings, work)

    def _task(self, target: Target, engine: EngineName) -> tuple[Task, Path]:
        """With a fresh folder for its files."""
        work = self._scratch / "unit"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        images, key = work / "images.safetensors", key_of(target)
        save_file({IMAGES: target.images}, images)
        runtime: Runtime = self._runtimes[engine]
        return Task(target, engine, runtime, images, self._clouds.get(key), self._costs.get(key)), work

    def _identity(self, what: str, target: Target, engine: EngineName) -> tuple[str, ...]:
        chosen = self._settings.model_dump_json(
            exclude={"bundles", "clouds", "engines", "devices", "links", "data_dir", "passes"}
        )
        cloud = self._clouds.get(key_of(target))
        return (what, digest_of(target.folder), target.name, engine, self._runtimes[engine], chosen,
                _digest_of_data(target), "" if cloud is None else digest_of(cloud))  # fmt: skip

    def _once(self, kind: type[KeptT], identity: tuple[str, ...], measure: Callable[[], KeptT]) -> KeptT:
        """What an earlier sweep kept of just this on this host, or a new measurement, kept at once."""
        text = json.dumps([version("harmony-sfl"), SweepResult.VERSION, self._host, *identity])
        path = self._keep / f"{identity[0]}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        try:
            return kind.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            found = measure()
        write_atomically(path, found.model_dump_json().encode())
        return found

    def _tell(self, step: Literal["reference", "calibration", "cloud", "unit", "again"], subject: str) -> None:
        self._on_event(SweepEvent(step=step, subject=subject, done=self._done, total=self.total))
        self._done += 1
