"""An exact gate: what of one record grew in another. Counts do not vary, so neither does the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harmony.bench.arm.results import ArmResult, BundleCount
from harmony.bench.result_files import read_result
from harmony.core.errors import ConfigError

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%?")


class Change(NamedTuple):
    """One count before and after. what: opening, an exit's answer, or an exit's first answer."""

    bundle: str
    what: str
    before: int
    after: int

    @property
    def growth(self) -> float:
        """Share by which it grew; negative where it shrank."""
        return (self.after - self.before) / self.before if self.before else float(self.after > 0)


class Comparison(NamedTuple):
    """changes: of everything that both have; only_before, only_after: bundles that one of them lacks; versions: what
    else changed, as "name before → after"."""

    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    versions: tuple[str, ...]

    def grown(self, share: float) -> tuple[Change, ...]:
        """What grew by more than `share`, most first."""
        return tuple(sorted((one for one in self.changes if one.growth > share), key=lambda one: -one.growth))


def read_arm(path: Path) -> ArmResult:
    """A record of `harmony bench arm`; a named ArtifactError if it is none, or of another schema version."""
    return read_result(path, ArmResult)


def compare(before: ArmResult, after: ArmResult) -> Comparison:
    """Compare bundles of the same name, engine, precision and core.

    ConfigError if there are none: the gate would hold nothing.
    """
    old, new = _by_key(before), _by_key(after)
    both = [key for key in old if key in new]
    if not both:
        mend = "give two records of the same bundles, of the same precision, with the same --engine and --core"
        raise ConfigError("have no bundle on the same core and engine in common", where="the two records", mend=mend)
    changes = [change for key in both for change in _changes(old[key], new[key])]
    versions = {name: (before.versions.get(name), after.versions.get(name)) for name in before.versions}
    return Comparison(
        tuple(changes),
        tuple(" ".join(key) for key in old if key not in new),
        tuple(" ".join(key) for key in new if key not in old),
        tuple(f"{name} {one} → {other}" for name, (one, other) in versions.items() if one != other),
    )


def _by_key(result: ArmResult) -> dict[tuple[str, ...], BundleCount]:
    return {_key(one): one for one in result.bundles}


def _key(count: BundleCount) -> tuple[str, ...]:
    return count.name, count.engine, count.precision, count.core


def _changes(before: BundleCount, after: BundleCount) -> Iterator[Change]:
    name = " ".join(_key(before))
    yield Change(name, "opening", before.opening, after.opening)
    later = {path.path: path for path in after.paths}
    for path in before.paths:
        if path.path in later:
            yield Change(name, path.path, path.instructions, later[path.path].instructions)
            yield Change(name, f"first {path.path}", path.first, later[path.path].first)


def read_share(text: str) -> float:
    """The share that "1%" means, 0.01; the sign may be left out. ConfigError for anything else."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"'{text}' is no share in percent", where="--fail-above", mend="write for example 1%")
    return float(match[1]) / 100
