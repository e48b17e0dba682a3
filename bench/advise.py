"""Which architecture, engine, precision and rule to take on a device within a budget, and why not the others.

A rule is chosen by its accuracy on one half of the images and reported by the other. A time is within the budget if the
prediction is; with `sure`, only if the upper end of its range is.

Times are the sweep's. Where Arm instructions were counted for every client of a choice, its times come from those
instead, all of them: no choice has times of two tiers, and each says of which they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.arm.results import ArmResult
from harmony.bench.devices import Device, find_device
from harmony.bench.links import Link, find_link
from harmony.bench.results import Precision, Regime, Tier
from harmony.bench.sweep.choices import Choice, Kind, choices
from harmony.bench.sweep.combine import cases
from harmony.bench.sweep.counted import Counted, counted
from harmony.bench.sweep.schema import Strategy, SweepResult
from harmony.core.bundle import EngineName
from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen

Positive = Annotated[float, Field(gt=0)]


class Budget(Frozen):
    """Upper limits, None for none. Times in seconds over all images; first_s: opening and answering once; memory and
    file in bytes; sent: bytes an image, mean; offload: share of images that go to the cloud."""

    p90_s: Positive | None = None
    median_s: Positive | None = None
    first_s: Positive | None = None
    memory: Positive | None = None
    file: Positive | None = None
    sent: Positive | None = None
    offload: Annotated[float, Field(ge=0, le=1)] | None = None


class Question(Frozen):
    """Where, over what, within what. images: whether images themselves may leave the device; sure: see above."""

    device: str
    link: str | None
    rho: float
    regime: Regime = "hot"
    budget: Budget
    images: bool = False
    sure: bool = False


class Verdict(Frozen):
    """What became of all rules of one kind: the best that fits, or what the one that comes nearest breaks."""

    method: str
    architecture: str
    engine: EngineName
    precision: Precision
    strategy: Strategy
    rule: str
    fits: bool
    reason: str
    choice: Choice


class Basis(Frozen):
    """Where the times of a tier come from."""

    tier: Tier
    calibration: str


class Advice(Frozen):
    """Answer of `harmony advise`, as its --json prints it. bases: one a tier that any choice's times are of; best: None
    if nothing fits; architectures: those with anything that fits, best first, as `harmony train --arch` takes them;
    unused: counts that were given and not used, and why."""

    FORMAT: ClassVar[str] = "harmony-advice"

    format: Literal["harmony-advice"] = "harmony-advice"
    format_version: Literal[2] = 2
    bases: tuple[Basis, ...]
    question: Question
    best: Choice | None
    architectures: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    unused: tuple[str, ...] = ()


def advise(result: SweepResult, question: Question, arm: Mapping[Path, ArmResult] | None = None) -> Advice:
    """arm: records of `harmony bench arm`. ConfigError for an unknown device or link, a ρ or regime that was not
    measured, or records of which nothing can be used."""
    device, link = find_device(question.device), None if question.link is None else find_link(question.link)
    _require_measured(result, question, arm)
    counts = counted(result, arm, device) if arm else None
    found = _choices(result, question, device, link)
    unused = () if counts is None else counts.unused
    if counts is not None:
        found, partly = _counted_first(found, _choices(counts.result, question, device, link))
        unused += partly
    fitting = [one for one in found if not broken(one, question)]
    best = max(fitting, key=_merit, default=None)
    groups: dict[Kind, list[Choice]] = {}
    for one in found:
        groups.setdefault(one.kind, []).append(one)
    verdicts = sorted((_verdict(group, best, question) for group in groups.values()), key=_order)
    return Advice(
        bases=_bases(result, device, counts, {one.tier for one in found}),
        question=question,
        best=best,
        architectures=tuple(dict.fromkeys(one.architecture for one in sorted(fitting, key=_merit, reverse=True))),
        verdicts=tuple(verdicts),
        unused=unused,
    )


def _require_measured(result: SweepResult, question: Question, arm: Mapping[Path, ArmResult] | None) -> None:
    if question.rho not in result.settings.rhos:
        known = ", ".join(f"{one:g}" for one in result.settings.rhos)
        raise ConfigError(f"ρ = {question.rho:g} was not measured", where="--rho", mend=f"choose from {known}")
    if not any(unit.regime(question.regime) for unit in result.units):
        raise ConfigError(
            f"the {question.regime} regime was not measured", where="--regime", mend="sweep with --sparse"
        )
    if arm and question.regime != "hot":
        raise ConfigError("instructions know no pauses", where="--arm", mend="leave it out, or ask for --regime hot")


def _choices(result: SweepResult, question: Question, device: Device, link: Link | None) -> list[Choice]:
    rows = cases(result, devices=[device], links=[link] if link else [], rhos=[question.rho], regime=question.regime)
    return choices(one for one in rows if question.images or one.strategy != "cloud-image")


def _counted_first(timed: Sequence[Choice], exact: Sequence[Choice]) -> tuple[list[Choice], tuple[str, ...]]:
    """The choices, by counts where all clients of one have them; and which have them for some clients only."""
    whole = {(one.kind, one.rule): one for one in exact}
    found, partly = [], []
    for one in timed:
        other = whole.get((one.kind, one.rule), one)
        found.append(other if other.clients == one.clients else one)
        if other.clients < one.clients:
            partly.append(f"{one.architecture}: counts are there for {other.clients} of {one.clients} clients only")
    return found, tuple(dict.fromkeys(partly))


def _bases(result: SweepResult, device: Device, counts: Counted | None, tiers: set[Tier]) -> tuple[Basis, ...]:
    row = device.reference
    published = f"{row.model} {row.ms:g} ms, {row.engine}, {row.precision}, {row.threads} thread ({row.source})"
    found = [Basis(tier=result.tier, calibration=published)]
    if counts is not None:
        found.append(Basis(tier=counts.result.tier, calibration=counts.calibration))
    return tuple(one for one in found if one.tier in tiers)


def _merit(one: Choice) -> tuple[float, bool, float, bool]:
    """More accurate first; then what was counted, since times of two tiers are not to be held against each other; then
    quicker; then what devices do unless they are told otherwise."""
    return one.choice, one.tier == "arm-instructions", -one.p90.value, one.strategy == "following"


def broken(one: Choice, question: Question) -> list[str]:
    """The limits that a choice does not keep, in words."""
    budget, found = question.budget, []
    for name, limit, time in (("p90", budget.p90_s, one.p90), ("median", budget.median_s, one.median)):
        if limit is not None and (time.high if question.sure else time.value) > limit:
            found.append(f"{name} {_ms(time.value)} ({_ms(time.low)} … {_ms(time.high)}) is above {_ms(limit)}")
    if budget.first_s is not None and one.first_s > budget.first_s:
        found.append(f"the first answer takes {_ms(one.first_s)}, above {_ms(budget.first_s)}")
    sizes = (
        ("peak memory", budget.memory, one.peak_bytes),
        ("its files", budget.file, one.file_bytes),
        ("bytes sent an image", budget.sent, one.sent_bytes),
    )
    found += [f"{name}: {_size(size)} is above {_size(limit)}" for name, limit, size in sizes if limit and size > limit]
    if budget.offload is not None and one.offloaded > budget.offload:
        found.append(f"{100 * one.offloaded:.0f} % go to the cloud, above {100 * budget.offload:.0f} %")
    return found


def _verdict(group: Sequence[Choice], best: Choice | None, question: Question) -> Verdict:
    fitting = [one for one in group if not broken(one, question)]
    if fitting:
        chosen = max(fitting, key=_merit)
        reason = "the best within the budget" if chosen == best else _behind(chosen, best)
    else:
        chosen = min(group, key=lambda one: (len(broken(one, question)), one.p90.value, -one.choice))
        reason = "; ".join(broken(chosen, question))
    return Verdict(**chosen.kind._asdict(), rule=chosen.rule, fits=bool(fitting), reason=reason, choice=chosen)


def _behind(chosen: Choice, best: Choice | None) -> str:
    assert best is not None  # noqa: S101  (something fits)
    points = 100 * (best.choice - chosen.choice)
    if points >= 0.05:
        return f"fits, but is {points:.1f} points less accurate on the images to choose by"
    if chosen.tier != best.tier:
        less = f"by times of {chosen.tier}"
    else:
        less = "but slower" if chosen.p90.value > best.p90.value else "and as quick"
    return f"fits, as accurate on the images to choose by, {less}"


def _order(verdict: Verdict) -> tuple[bool, bool, float]:
    return not verdict.fits, verdict.reason != "the best within the budget", -verdict.choice.choice


def _ms(value: float) -> str:
    return f"{1000 * value:.3g} ms"


def _size(value: float) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"
