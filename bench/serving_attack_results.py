"""What `python -m harmony.bench.serving_attack` found. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.results import Count, Host, Versioned
from harmony.core.spec import Frozen

MOST_GROWTH = 0.05
"""Share by which the memory of the service may grow."""


class Memory(Frozen):
    """Resident memory of the service and its children: once it was warm, at the end, and the most that was seen after
    the warm-up."""

    before_bytes: Annotated[int, Field(gt=0)]
    after_bytes: Annotated[int, Field(gt=0)]
    largest_bytes: Annotated[int, Field(gt=0)]

    @property
    def growth(self) -> float:
        """Share by which it was larger at the end; below 0 where it gave some back."""
        return self.after_bytes / self.before_bytes - 1


class Attack(Frozen):
    """One attack. warm_up: requests, or swaps, before the memory was read for the first time; statuses: of answers."""

    kind: Literal["fuzz", "soak", "swaps"]
    count: Count
    warm_up: Count
    seconds: float
    statuses: dict[str, int]
    memory: Memory


class Fuzz(Attack):
    """Damaged bodies. right: good requests between them, every one answered as before."""

    kind: Literal["fuzz"] = "fuzz"
    seed: int
    right: Count


class Soak(Attack):
    """Good requests in a closed loop. broken: connections that ended inside an answer."""

    kind: Literal["soak"] = "soak"
    connections: Count
    broken: Count
    goodput: float
    p99_ms: float | None


class Swaps(Attack):
    """Hot swaps between two versions of a registry, under load.

    statuses, failed: of the load's requests, and those that were not answered with 200; by_version: who answered them;
    swap_seconds: the median time from the order until the other version answers.
    """

    kind: Literal["swaps"] = "swaps"
    connections: Count
    failed: Count
    by_version: dict[str, int]
    swap_seconds: float


class AttackResult(Versioned):
    """results/serving-fuzz.json, -soak.json, -swaps.json."""

    FORMAT: ClassVar[str] = "harmony-bench-serving-attack"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-serving-attack"] = "harmony-bench-serving-attack"
    format_version: Literal[1] = 1
    host: Host
    cut: str
    attack: Annotated[Fuzz | Soak | Swaps, Field(discriminator="kind")]

    def problems(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        one, found = self.attack, []
        if one.memory.growth >= MOST_GROWTH:
            found.append(
                f"the memory grew by {one.memory.growth:.1%} after {one.warm_up}, {MOST_GROWTH:.0%} is too much"
            )
        if isinstance(one, Soak) and (set(one.statuses) != {"200"} or one.broken):
            found.append(f"not everything was answered: {one.statuses}, {one.broken} connections broken")
        if isinstance(one, Swaps) and one.failed:
            found.append(f"{one.failed} requests failed: {one.statuses}")
        return found
