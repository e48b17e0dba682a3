"""What a bench is about to do: bundles opened, data loaded, mixes drawn. What can be refused is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.bench.links import Link, find_link
from harmony.bench.mixes import limited
from harmony.bench.results import BenchSettings
from harmony.core.bundle import CloudManifest, DeviceManifest, open_cloud_bundle, open_device_bundle
from harmony.core.data import Dataset, load
from harmony.core.errors import ContractMismatch, EngineUnavailable
from harmony.core.mix import TestMix, test_mix


@dataclass(frozen=True, eq=False)
class Target:
    """One device bundle and the images it will be shown. stream: the mix of the largest ρ, or a part of it."""

    name: str
    folder: Path
    manifest: DeviceManifest
    dataset: Dataset
    stream: TestMix

    @property
    def images(self) -> NDArray[Any]:
        """(n, H, W, C) in the order of the stream."""
        return np.ascontiguousarray(self.dataset.x_test[self.stream.indices])

    @property
    def truth(self) -> NDArray[np.int64]:
        """(n,) labels in the order of the stream."""
        return self.dataset.y_test[self.stream.indices]


@dataclass(frozen=True, eq=False)
class Plan:
    """All targets, the links and the cloud bundle, if there is one."""

    targets: tuple[Target, ...]
    links: tuple[Link, ...]
    cloud: CloudManifest | None


def make_plan(settings: BenchSettings, *, every_engine: bool = True) -> Plan:
    """Open and check everything that the settings name; the named error of whatever does not fit.

    every_engine: each bundle needs files for each engine of the settings.
    """
    links = tuple(find_link(name) for name in settings.links)
    manifests = [open_device_bundle(folder) for folder in settings.bundles]
    cloud = open_cloud_bundle(settings.cloud) if settings.cloud else None
    for folder, manifest in zip(settings.bundles, manifests, strict=True):
        if every_engine:
            _check_engines(folder, manifest, settings)
        _check_cloud(folder, manifest, settings, cloud)
    datasets = {name: load(name, data_dir=settings.data_dir) for name in {_data(one, settings) for one in manifests}}
    targets = tuple(
        _target(name, folder, manifest, datasets[_data(manifest, settings)], settings)
        for name, folder, manifest in zip(_names(settings.bundles), settings.bundles, manifests, strict=True)
    )
    return Plan(targets, links, cloud)


def _data(manifest: DeviceManifest, settings: BenchSettings) -> str:
    return settings.data or manifest.dataset


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all bundles apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts))):
        short = ["/".join(one[-length:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return [str(folder) for folder in folders]


def _check_engines(folder: Path, manifest: DeviceManifest, settings: BenchSettings) -> None:
    for engine in settings.engines:
        if engine not in manifest.engines:
            known = ", ".join(manifest.engines)
            raise EngineUnavailable(f"has no files for {engine}", where=folder, mend=f"use --engine {known}")


def _check_cloud(folder: Path, manifest: DeviceManifest, settings: BenchSettings, cloud: CloudManifest | None) -> None:
    if cloud is not None:
        manifest.feature.require_same(cloud.feature, mine=str(folder), theirs=str(settings.cloud))
        if (cloud.run, cloud.checkpoint) != (manifest.run, manifest.checkpoint):
            raise ContractMismatch(
                f"is not of the same checkpoint as {settings.cloud} (runs '{manifest.run}' and '{cloud.run}')",
                where=folder,
                mend="bench devices with the back end they were trained with",
            )


def _target(name: str, folder: Path, manifest: DeviceManifest, dataset: Dataset, settings: BenchSettings) -> Target:
    here, there = dataset.image_spec(), manifest.image
    if (here.height, here.width, here.channels, here.dtype) != (there.height, there.width, there.channels, there.dtype):
        raise ContractMismatch(f"takes {there} images, '{dataset.name}' has {here}", where=folder, mend="choose --data")
    if dataset.class_names != manifest.classes.names:
        raise ContractMismatch(f"its classes are not those of '{dataset.name}'", where=folder, mend="choose --data")
    mix = test_mix(dataset.y_test, manifest.classes.own, max(settings.rhos), settings.seed)
    return Target(name, folder, manifest, dataset, limited(mix, settings.limit))
