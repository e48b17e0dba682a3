"""Records as `harmony bench arm` writes them, made up; and the real environment, where somebody built it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harmony.bench.arm.cores import CoreName
from harmony.bench.arm.environment import open_environment
from harmony.bench.arm.results import ArmResult, BundleCount, PathCount
from harmony.bench.results import AnswerPath, Host
from harmony.core.errors import EngineUnavailable

CACHE = "HARMONY_TEST_ARM"
Make = Callable[..., ArmResult]


@pytest.fixture(scope="session")
def arm_cache() -> str:
    """The cache folder with the environment that `HARMONY_CACHE=$HARMONY_TEST_ARM harmony bench setup-arm` built."""
    cache = os.environ.get(CACHE)
    if not cache:
        pytest.skip(f"needs a cache folder in which `harmony bench setup-arm` was run, named by {CACHE}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARMONY_CACHE", cache)
        try:
            open_environment()
        except EngineUnavailable as error:
            pytest.skip(f"{CACHE}={cache}: {error}")
    return cache


@pytest.fixture
def arm(arm_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is what the package finds."""
    monkeypatch.setenv("HARMONY_CACHE", arm_cache)


@pytest.fixture
def make() -> Make:
    """A record of one bundle; hot: instructions by exit."""

    def made(
        hot: tuple[int, int] = (1000, 2000), *, name: str = "client-000", core: CoreName = "a75", qemu: str = "7.2.22"
    ) -> ArmResult:
        names: tuple[AnswerPath, ...] = ("exit1", "exit2")
        count = BundleCount(
            name=name, architecture="resnet-w16-d1", parameters=62538, engine="executorch", core=core,
            program="0" * 64, opening=4_000_000,
            paths=tuple(
                PathCount(path=path, instructions=n, first=2 * n, engine=n - 10)
                for path, n in zip(names, hot, strict=True)
            ),
        )  # fmt: skip
        versions = {"qemu": qemu, "executorch": "1.5.1"}
        return ArmResult(harmony_version="0", versions=versions, host=HOST, bundles=(count,))

    return made


HOST = Host(
    cpu="made up", cores=2, affinity=(0, 1), memory_bytes=1 << 30, system="Linux", python="3.11", versions={},
    commit=None, load_before=0, load_after=0, steal=0,
)  # fmt: skip


@pytest.fixture
def written(tmp_path: Path, make: Make) -> Callable[..., Path]:
    """A record's file."""

    def write(file: str, **fields: object) -> Path:
        path = tmp_path / file
        path.write_text(make(**fields).model_dump_json())
        return path

    return write
