"""Hot swap: what shall be served is loaded, warmed, switched to, and only then is what it replaces drained.

A version that cannot be loaded changes nothing: whoever asks for its names is still answered by what had them before.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

from harmony.cloud.lanes import LATEST, Alias, Lane, Table
from harmony.cloud.metrics import ModelStatistics
from harmony.cloud.models import ServedModel, open_model
from harmony.cloud.refusal import Refusal
from harmony.cloud.service import Service
from harmony.cloud.source import Source, Wanted, WantedVersion
from harmony.core.errors import ContractMismatch, HarmonyError, ServiceError, StorageError
from harmony.core.signing import Trust

log = logging.getLogger("harmony.cloud")
POLL_SECONDS = 1.0
_DRAIN_SECONDS = 30.0
_REGISTRY_AWAY_SECONDS = 5.0
_REMEMBERED = 8  # versions whose counts are kept after they went, in case that they come back
_Key = tuple[str, str]
_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Opened:
    """What a service begins with. source: who says what comes next, None if nothing does."""

    models: tuple[ServedModel, ...]
    wanted: Wanted
    source: Source | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models, each once."""
        return tuple(dict.fromkeys(model.name for model in self.models))

    @classmethod
    def of(cls, source: Source) -> Self:
        """Open everything that shall be served. The first error ends it: a service starts whole or not at all."""
        wanted = source.wanted()
        return cls(tuple(_open(one, source.trust) for one in wanted.versions if one.loaded), wanted, source)

    @classmethod
    def fixed(cls, models: Sequence[ServedModel]) -> Self:
        """These models, each the latest of its name, for ever."""
        aliases = tuple(Alias(one.name, LATEST, one.version, cut=str(one.feature)) for one in models)
        return cls(tuple(models), Wanted(0, (), aliases))


def _open(wanted: WantedVersion, trust: Trust | None) -> ServedModel:
    """Open, check and warm a version: its test vectors run."""
    model = open_model(wanted.folder, wanted.version, trust, wanted.weights)
    if model.name != wanted.model:
        raise ContractMismatch(f"is of model '{model.name}', not '{wanted.model}'", where=wanted.folder)
    return model


@dataclass(frozen=True, slots=True)
class Entry:
    """A version as the repository index shows it."""

    model: str
    version: str
    state: str
    reason: str = ""


class Deployment:
    """Keeps a service at what its source wants. Everything but the source's own methods runs on the event loop."""

    def __init__(self, service: Service, opened: Opened) -> None:
        self._service = service
        self._source = opened.source
        self._wanted = opened.wanted
        self._failed: dict[_Key, str] = {}
        self._gone: OrderedDict[_Key, ModelStatistics] = OrderedDict()
        self._lock = asyncio.Lock()
        # One thread for all that waits: each of several would keep its own free memory of the models that it loaded.
        self._thread = ThreadPoolExecutor(1, "deployment")
        self._quiet = False

    async def watch(self) -> None:
        """Follow what other processes change, until cancelled."""
        if self._source is None or not self._source.shared:
            return
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if await self._beside(self._source.revision) != self._wanted.revision:
                    await self.refresh()
                self._quiet = False
            except HarmonyError as error:  # a registry that is away must not end what is served
                if not self._quiet:
                    log.warning("the registry cannot be read", extra={"error": str(error)})
                self._quiet = True
            except Exception:
                log.exception("a change could not be followed")

    async def set_loaded(self, model: str, *, loaded: bool, who: str) -> None:
        """Load or unload a model. Refusal 400 if it is unknown or cannot be loaded, 503 if the source is away."""
        source = self._require_source()
        async with self._lock:
            await self._ask(source.set_loaded, model, loaded=loaded, who=who)
            for key in [key for key in self._failed if key[0] == model]:
                del self._failed[key]  # who asks for it again may have mended it
            await self._apply(await self._ask(source.wanted))
        reasons = [f"version {key[1]}: {why}" for key, why in self._failed.items() if key[0] == model]
        if loaded and reasons:
            raise Refusal(400, "malformed", f"failed to load '{model}': {'; '.join(reasons)}")

    async def refresh(self) -> None:
        """Take over what the source wants now. HarmonyError if it cannot be asked."""
        async with self._lock:
            if self._source is not None:
                await self._apply(await self._beside(self._source.wanted))

    def index(self) -> list[Entry]:
        """Every version that is served, or shall be and is not."""
        lanes = self._service.table.lanes
        entries = [Entry(model, version, "READY") for model, version in lanes]
        for one in self._wanted.versions:
            key = (one.model, one.version)
            if key not in lanes:
                why = self._failed.get(key, "") if one.loaded else "unloaded"
                entries.append(Entry(*key, "UNAVAILABLE", why))
        return sorted(entries, key=lambda entry: (entry.model, int(entry.version)))

    async def audit(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """The newest admin acts first. Refusal 400 where no log is kept."""
        return await self._ask(self._require_source().audit, limit, before)

    def close(self) -> None:
        """Let go of the source."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._source is not None:
            self._source.close()

    def _require_source(self) -> Source:
        if self._source is None:
            raise Refusal(400, "malformed", "the models of this service are fixed")
        return self._source

    async def _apply(self, wanted: Wanted) -> None:
        """Load → warm → switch → drain."""
        service, before = self._service, self._service.table
        service.grant(wanted.grants)
        there = {(one.model, one.version) for one in wanted.versions}
        self._failed = {key: why for key, why in self._failed.items() if key in there}
        lanes = await self._load(wanted)
        aliases = _usable(wanted, lanes, before)
        named = {(one.model, one.version) for one in aliases}
        service.table = Table([lane for key, lane in lanes.items() if key in named], aliases)
        self._wanted = wanted
        kept = set(map(id, service.table.lanes.values()))
        retired = [lane for lane in before.lanes.values() if id(lane) not in kept]
        del lanes, before  # the last hold on them
        while retired:
            await self._retire(retired.pop())
            await self._beside(_give_memory_back)

    async def _load(self, wanted: Wanted) -> dict[_Key, Lane]:
        """The lanes that there are, and those of what is wanted and was not there, one after another."""
        lanes = dict(self._service.table.lanes)
        for one in wanted.versions:
            key = (one.model, one.version)
            if not one.loaded or key in lanes or key in self._failed:
                continue
            try:
                lane = await self._beside(self._make, one)
            except (HarmonyError, OSError) as error:
                self._failed[key] = str(error)
                log.warning("a version cannot be served", extra={"model": one.model, "error": str(error)})
                continue
            lane.batcher.start(asyncio.get_running_loop())
            self._gone.pop(key, None)
            lanes[key] = lane
        return lanes

    def _make(self, wanted: WantedVersion) -> Lane:
        service, model = self._service, _open(wanted, None if self._source is None else self._source.trust)
        counted = self._gone.get((wanted.model, wanted.version))
        return Lane.of(model, service.settings, service.metrics, counted)

    async def _retire(self, lane: Lane) -> None:
        """Answer what the lane had been asked, then end its thread. Nobody asks it any more: the table is another."""
        await self._beside(lane.batcher.stop, _DRAIN_SECONDS)
        key = (lane.model.name, lane.model.version)
        self._gone[key] = lane.statistics
        if len(self._gone) > _REMEMBERED:
            forgotten, _ = self._gone.popitem(last=False)
            self._service.metrics.forget(*forgotten)

    async def _beside(
        self, work: Callable[_Asked, _Answer], *arguments: _Asked.args, **named: _Asked.kwargs
    ) -> _Answer:
        """Do what takes long, or may wait, on the thread for it."""
        call = partial(work, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _ask(
        self, question: Callable[_Asked, _Answer], *arguments: _Asked.args, **named: _Asked.kwargs
    ) -> _Answer:
        """Ask the source. Refusal 400 for what cannot be meant, 503 if it is away."""
        try:
            return await self._beside(question, *arguments, **named)
        except (ServiceError, StorageError) as error:
            log.warning("the registry did not answer", extra={"error": str(error)})
            raise Refusal(503, "internal", "the registry does not answer", retry_after=_REGISTRY_AWAY_SECONDS) from None
        except HarmonyError as error:
            raise Refusal(400, "malformed", str(error)) from None


def _usable(wanted: Wanted, lanes: dict[_Key, Lane], before: Table) -> list[Alias]:
    """The wanted aliases of loaded models; one whose version cannot be served stays with the version that it had."""
    loaded = {one.model for one in wanted.versions if one.loaded}
    had = {(one.model, one.name, one.cut): one for one in before.aliases}
    usable: list[Alias] = []
    for alias in wanted.aliases:
        found = alias if (alias.model, alias.version) in lanes else had.get((alias.model, alias.name, alias.cut))
        if alias.model in loaded and found is not None:
            usable.append(found)
    return usable


def _give_memory_back() -> None:
    """Have the C library return free pages: what a replaced model leaves adds up to a fifth over hundreds of swaps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
