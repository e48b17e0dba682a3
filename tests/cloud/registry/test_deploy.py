"""The deployment inside one process: what is let go of, and what is counted on."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest

from harmony.cloud import deploy
from harmony.cloud.app import ServiceApp, create_app
from harmony.cloud.deploy import Opened
from harmony.cloud.models import open_models
from harmony.cloud.refusal import Refusal
from harmony.cloud.settings import ServiceSettings
from harmony.core.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from harmony.cloud.registry.catalogue import Registry
    from tests.cloud.conftest import Bundle

Make = Callable[..., "Path"]
ME = "cli:me"


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def swap(app: ServiceApp, registry: Registry, version: int) -> Any:
    registry.alias("backend", "latest", version, who=ME)
    await app.deployment.set_loaded("backend", loaded=True, who=ME)
    lane = app.service.table.route("backend").lane
    assert lane.model.version == str(version)
    return lane


@pytest.mark.usefixtures("no_collector")
def test_a_replaced_model_is_freed_at_once(folder_registry: Registry, bundle_of: Make) -> None:
    """Without the garbage collector: a model held by a cycle would stay until some later time."""
    for run in "ab":
        folder_registry.register(bundle_of(run), who=ME)

    async def main() -> None:
        app = create_app(Opened.of(folder_registry), ServiceSettings())
        async with app.router.lifespan_context(app):
            programs = []
            for number in range(6):
                lane = await swap(app, folder_registry, 1 + number % 2)
                programs.append(weakref.ref(lane.model.program))
                del lane
            assert [one() is not None for one in programs] == [False] * 5 + [True]

    asyncio.run(main())


def test_a_version_that_comes_back_counts_on_and_one_that_is_long_gone_is_forgotten(
    folder_registry: Registry, bundle_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_REMEMBERED", 1)
    for run in "abc":
        folder_registry.register(bundle_of(run), who=ME)

    async def main() -> None:
        app = create_app(Opened.of(folder_registry), ServiceSettings())
        async with app.router.lifespan_context(app):
            (await swap(app, folder_registry, 1)).statistics.answered(1, 0.1, 2, 3)
            await swap(app, folder_registry, 2)
            assert (await swap(app, folder_registry, 1)).statistics.counted().rows == 1
            await swap(app, folder_registry, 2)
            await swap(app, folder_registry, 3)
            text = generate_latest(app.service.metrics.registry).decode()
            assert [version for version in "123" if f'version="{version}"' in text] == ["2", "3"]

    asyncio.run(main())


def test_models_without_a_source_are_fixed(bundle: Bundle) -> None:
    async def main() -> None:
        app = create_app(open_models(bundle.folder), ServiceSettings())
        async with app.router.lifespan_context(app):
            await app.deployment.refresh()
            with pytest.raises(Refusal, match="the models of this service are fixed"):
                await app.deployment.set_loaded("backend", loaded=False, who=ME)
            assert [(one.version, one.state) for one in app.deployment.index()] == [("1", "READY")]

    asyncio.run(main())


def test_a_registry_that_is_away_is_waited_for(
    folder_registry: Registry, bundle_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    for run in "ab":
        folder_registry.register(bundle_of(run), who=ME)

    async def main() -> None:
        app = create_app(Opened.of(folder_registry), ServiceSettings())
        async with app.router.lifespan_context(app):
            with monkeypatch.context() as patch:

                def fail() -> int:
                    asked.append(1)
                    raise StorageError("the disk is gone")

                asked: list[int] = []
                patch.setattr(folder_registry, "revision", fail)
                folder_registry.alias("backend", "latest", 1, who=ME)
                while len(asked) < 3:
                    await asyncio.sleep(0.01)
                assert app.service.table.route("backend").lane.model.version == "2"
            while app.service.table.route("backend").lane.model.version != "1":
                await asyncio.sleep(0.01)

    asyncio.run(main())
