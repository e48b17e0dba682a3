"""A real sweep of tiny bundles: processes, a service, everything but a large reference model."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.bench.bare import BareFrontEnd
from harmony.bench.plan import make_plan
from harmony.bench.results import BenchSettings
from harmony.bench.sweep import SweepEvent, SweepSettings, run, sweep, unit
from harmony.bench.sweep.find import find_bundles
from harmony.bench.sweep.order import Timed
from harmony.bench.sweep.probe import harness_s
from harmony.bench.sweep.unit import Measured, pooled, to_costs
from harmony.core.archive import pack
from harmony.core.errors import ArtifactMissing, ConfigError, ContractMismatch


@pytest.fixture
def settings(federation: Any, tmp_path: Path) -> SweepSettings:
    """The second device and the cloud are carried about as .tar."""
    device, cloud = tmp_path / "client-001.tar", tmp_path / "cloud.tar"
    pack(federation.devices[1], device)
    pack(federation.cloud, cloud)
    return SweepSettings(
        bundles=(federation.devices[0], device), clouds=(cloud,), engines=("onnxruntime",), links=("lte",),
        rhos=(0, 1), budgets=(0.1, 0.5), passes=2, rounds=3, per_round=2, limit=120, regimes=("hot",),
    )  # fmt: skip


@pytest.mark.usefixtures("small_reference")
def test_an_interrupted_sweep_goes_on_where_it_was(
    federation: Any, settings: SweepSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: Counter[str] = Counter()

    def counted(task: Any, *rest: Any) -> Any:
        measured[task.target.name] += 1
        return real(task, *rest)

    def stop(event: SweepEvent) -> None:
        if event.subject.startswith("client-001"):
            raise KeyboardInterrupt

    real = unit.measure_unit
    monkeypatch.setattr(run, "measure_unit", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(settings, tmp_path / "keep", stop)
    events: list[SweepEvent] = []
    result = sweep(settings, tmp_path / "keep", events.append)
    assert measured == {"client-000": 1, "client-001.tar": 1}
    assert [event.done for event in events] == [*range(events[-1].total), events[-1].total]
    again = sweep(settings, tmp_path / "keep")
    assert (again.units, again.calibrations, again.clouds) == (result.units, result.calibrations, result.clouds)

    _numbers_are_those_of_the_programs(federation, settings, result)

    other = settings.model_copy(update={"seed": 1, "bundles": settings.bundles[:1], "passes": 1})
    sweep(other, tmp_path / "keep")
    assert measured == {"client-000": 2, "client-001.tar": 1}


def _numbers_are_those_of_the_programs(federation: Any, settings: SweepSettings, result: Any) -> None:
    """Recounted from the plain programs: the device alone, always at exit 2, and the bytes of a request."""
    plan = make_plan(BenchSettings(bundles=federation.devices, rhos=(0, 1), limit=120))
    for target, one in zip(plan.targets, result.units, strict=True):
        bare, own = BareFrontEnd(target.folder, target.manifest), np.asarray(target.manifest.classes.own)
        spec = target.manifest.image
        scaled = ((target.images / 255 - spec.mean[0]) / spec.std[0]).astype(np.float32).transpose(0, 3, 1, 2)
        labels = own[[int(bare.exit2(image[None])[1].argmax()) for image in scaled]]
        half = np.where(target.stream.is_id, np.cumsum(target.stream.is_id), np.cumsum(~target.stream.is_id)) % 2 == 0
        fallback = next(point for point in one.points if point.rule.name == "cloud-feature").mixes[-1]
        assert fallback.accuracy.client == pytest.approx(np.mean((labels == target.truth)[half]))
        assert (one.request_bytes - one.frame_bytes) == result.clouds[one.cloud].envelope_bytes > 0
        paths = {path.path: path for path in one.costs[0].paths}
        assert 0 < paths["exit1"].rounds.median < paths["exit2"].rounds.median < paths["send"].rounds.median
        assert one.macs == (49 * 3, 2 * 49 * 3)
        folder = federation.devices[target.manifest.client]
        programs = b"".join((folder / name).read_bytes() for name in ("exit1.onnx", "exit2.onnx"))
        assert one.program == hashlib.sha256(programs).hexdigest()
        assert (one.precision, one.memory.process) == ("fp32", "python")
        assert 10 << 20 < one.memory.peak_bytes < 200 << 20


def test_other_images_of_the_same_name_are_measured_again(settings: SweepSettings, tmp_path: Path) -> None:
    plan = make_plan(BenchSettings(bundles=settings.bundles, rhos=(0, 1), limit=120))
    work = run._Work(settings, plan, {}, keep=tmp_path, scratch=tmp_path, on_event=lambda event: None)
    target = plan.targets[0]
    data = replace(target.dataset, y_test=target.dataset.y_test[::-1].copy())
    assert work._identity("unit", target, "onnxruntime") == work._identity("unit", target, "onnxruntime")
    changed = replace(target, dataset=data)
    assert work._identity("unit", changed, "onnxruntime") != work._identity("unit", target, "onnxruntime")


@pytest.mark.usefixtures("small_reference")
def test_what_does_not_fit_is_refused_before_anything_is_measured(
    federation: Any, settings: SweepSettings, tmp_path: Path, resealed: Any
) -> None:
    other = resealed(federation.cloud, tmp_path / "other", {"run": "other"})
    for changed, error, says in (
        ({"clouds": (other,)}, ContractMismatch, "its back end is not among the cloud bundles"),
        ({"engines": ("executorch",)}, ConfigError, "has no files for executorch .use --engine onnxruntime"),
        ({"devices": ("pixel-9",)}, ConfigError, "'pixel-9' is no known device"),
        ({"links": ("5g",)}, ConfigError, "'5g' is no link"),
    ):
        with pytest.raises(error, match=says):
            sweep(settings.model_copy(update=changed), tmp_path / "keep")
    assert not (tmp_path / "keep").exists()


def test_bundles_are_found_in_folders_and_runs(federation: Any, tmp_path: Path) -> None:
    folder = federation.cloud.parent
    found = find_bundles([folder], lambda path: path)
    assert (found.devices, found.clouds) == (federation.devices, (federation.cloud,))
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    assert find_bundles([tmp_path / "run"], lambda path: folder) == found
    assert find_bundles([federation.devices[0]], lambda path: path).clouds == ()
    with pytest.raises(ArtifactMissing, match="no bundle, folder of bundles or run"):
        find_bundles([tmp_path], lambda path: path)
    with pytest.raises(ArtifactMissing, match="no device bundle"):
        find_bundles([federation.cloud], lambda path: path)


def test_costs_are_ratios_to_the_reference_of_the_same_round() -> None:
    """A host that is twice as slow in the second round changes nothing."""
    timed = Timed(regime="hot", reference_s=(0.010, 0.020), paths={"exit1": ((0.001, 0.002), (0.002, 0.004))})
    path = to_costs([timed]).paths[0]
    assert path.rounds.median == path.rounds.low == path.rounds.high == pytest.approx(0.15)
    assert path.samples == pytest.approx((0.1, 0.1, 0.2, 0.2))


def test_units_of_one_shape_share_the_costs_of_all_processes(unit_of: Any) -> None:
    """Two clients of one architecture, and one of another: two processes each, at costs of 1 to 6 %."""

    def timed(cost: float) -> Timed:
        return Timed(regime="hot", reference_s=(0.01,), paths={"exit1": ((0.01 * cost,),)})

    units = [unit_of(), unit_of(client=1, own_classes=("Coat", "Dress")), unit_of(architecture="mobilenet-w16-d1")]
    found = [Measured(unit=one, times=(timed(0.01 * (1 + place)),)) for place, one in enumerate(units)]
    first, second, other = pooled(found, [[timed(0.04)], [timed(0.05)], [timed(0.06)]])
    assert first.costs == second.costs
    costs = first.costs[0]
    assert (costs.processes, other.costs[0].processes) == (4, 2)
    assert costs.paths[0].samples == pytest.approx((0.01, 0.02, 0.04, 0.05))
    assert other.costs[0].paths[0].samples == pytest.approx((0.03, 0.06))


def test_the_stopwatch_has_a_limit_that_is_shown(sweep_of: Any) -> None:
    calibration = sweep_of().calibrations[0]
    bars = run.speed_bars((calibration.model_copy(update={"harness_s": 0.000_002}), calibration))
    assert [(round(bar.value, 9), bar.limit, bar.met) for bar in bars] == [(0.2, 1.0, True)]
    assert run.speed_bars((calibration,)) == ()
    assert 0 < harness_s(101) < 0.01
