"""A made-up sweep with figures that can be worked out by hand, and a small stand-in for the reference model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harmony.bench.devices import DEVICES, REFERENCE
from harmony.bench.links import LINKS
from harmony.bench.results import Accuracy, Host, MixResult
from harmony.bench.statistics import ratio, summarise
from harmony.bench.sweep.schema import (
    Calibration,
    Checked,
    CloudCost,
    Memory,
    PathCost,
    PathName,
    Point,
    RegimeCosts,
    Rule,
    Strategy,
    SweepResult,
    SweepSettings,
    Unit,
)

MakeSweep = Callable[..., SweepResult]
COSTS: dict[PathName, float] = {"exit1": 0.01, "exit2": 0.02, "send": 0.03}


def _mix(rho: float, exit1: float, exit2: float, cloud: float, accuracy: float) -> MixResult:
    return MixResult(
        rho=rho, n_id=100, n_ood=round(100 * rho), exit1=exit1, exit2=exit2, cloud=cloud, unsure=cloud, degraded=0,
        offload_id=cloud, keep_ood=0.5 if rho else None,
        accuracy=Accuracy(overall=accuracy, id=accuracy, ood=accuracy if rho else None),
    )  # fmt: skip


def _point(strategy: Strategy, shares: tuple[float, float, float], accuracy: float, **rule: Any) -> Point:
    mixes = tuple(_mix(rho, *shares, accuracy=accuracy) for rho in (0.0, 1.0))
    return Point(
        rule=Rule(**({"strategy": strategy, "budget": None} | rule)), mixes=mixes, choice=(accuracy, accuracy - 0.01)
    )


def make_unit(**changed: Any) -> Unit:
    """Costs of 1, 2 and 3 % of the reference; the cloud knows most."""
    paths = tuple(
        PathCost(path=name, samples=(cost, cost), rounds=ratio([cost]), host_s=summarise([cost / 100]))
        for name, cost in COSTS.items()
    )
    fields: dict[str, Any] = {
        "name": "client-000", "run": "made-up", "method": "harmony", "client": 0, "architecture": "resnet-w16-d1",
        "dataset": "fashion-mnist-mini", "own_classes": ("Shirt", "Bag"), "engine": "onnxruntime",
        "runtime": "onnxruntime", "precision": "fp32", "parameters": 50_000, "program": "0" * 64,
        "macs": (1_000_000, 3_000_000), "file_bytes": 160_000, "first_cost": 2.0,
        "memory": Memory(peak_bytes=70 << 20, process="python"),
        "costs": (RegimeCosts(regime="hot", paths=paths),), "codec": "int8-zstd", "frame_bytes": 1000,
        "image_bytes": 784, "request_bytes": 1200, "answer_bytes": 300, "cloud": "cloud-1",
        "points": (
            _point("device", (0.5, 0.5, 0.0), 0.6, threshold1=0.0),
            _point("fallback", (0.5, 0.3, 0.2), 0.8, threshold1=0.0, threshold2=-1.0),
            _point("fallback", (0.5, 0.45, 0.05), 0.7, budget=0.05, threshold1=0.0, threshold2=-3.0),
            _point("following", (0.5, 0.35, 0.15), 0.81, threshold1=0.0, threshold2=-1.0),
            _point("following", (0.5, 0.47, 0.03), 0.72, budget=0.05, threshold1=0.0, threshold2=-3.0),
            _point("cloud-feature", (0.0, 0.0, 1.0), 0.85),
            _point("cloud-image", (0.0, 0.0, 1.0), 0.86),
        ),
    }  # fmt: skip
    return Unit(**(fields | changed))


def make_sweep(*units: Unit, **changed: Any) -> SweepResult:
    """One engine, Pixel 3a and an A53, LTE and Wi-Fi."""
    checks = (
        Checked(device="pixel", model="mobilenet-v2", published_s=0.05, predicted_s=0.1),
        Checked(device="pixel", model="mobilenet-v3-large", published_s=0.05, predicted_s=0.04),
    )
    fields: dict[str, Any] = {
        "harmony_version": "0.1.0",
        "tier": "virtual-time",
        "settings": SweepSettings(
            bundles=(Path("bundles/client-000"),), rhos=(0.0, 1.0), budgets=(0.05,), devices=("pixel-3a", "cortex-a53")
        ),
        "host": Host(
            cpu="A CPU", cores=2, affinity=(0, 1), memory_bytes=8 << 30, system="Linux", python="3.11", versions={},
            commit=None, load_before=0, load_after=0, steal=0,
        ),
        "seconds": 12.0,
        "devices": (DEVICES["pixel-3a"], DEVICES["cortex-a53"]),
        "links": (LINKS["wifi"], LINKS["lte"]),
        "calibrations": (
            Calibration(
                engine="onnxruntime", runtime="onnxruntime", reference=REFERENCE, host_s=summarise([0.01]),
                checks=checks,
            ),
        ),
        "clouds": {"cloud-1": CloudCost(server_s=0.001, envelope_bytes=200, answer_bytes=300, requests=10)},
        "units": units or (make_unit(),),
    }  # fmt: skip
    return SweepResult(**(fields | changed))


@pytest.fixture
def unit_of() -> Callable[..., Unit]:
    """Makes units that differ in the fields that are given."""
    return make_unit


@pytest.fixture
def sweep_of() -> MakeSweep:
    """Makes sweeps of units."""
    return make_sweep


@pytest.fixture
def small_reference(monkeypatch: pytest.MonkeyPatch, federation: Any) -> None:
    """A tiny bundle takes the place of MobileNet, which takes long to make; everything else is as it is."""
    from harmony.bench.sweep import calibrate, run, unit

    for module in (calibrate, unit):
        monkeypatch.setattr(module, "reference_bundle", lambda model, engine: federation.devices[1])
    monkeypatch.setattr(run, "make_references", lambda engines: None)
