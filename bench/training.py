"""What batching clients is worth: HARMONY's training beside a plain loop over the clients, one at a time.

Both train the same models on the same batches and must see the same losses; they take turns within one run, and CPU
time is what counts. The loop is what simulators of heterogeneous clients usually are (HtFLlib, PFLlib), without the
copies to disk that those make: every client has modules of its own and is run alone, its gradients are added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from pydantic import Field
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harmony.bench.host import Watch
from harmony.bench.results import Host, Ratio, Summary, Versioned
from harmony.bench.statistics import ratio, summarise
from harmony.core.config import TrainConfig
from harmony.core.data import Dataset, load
from harmony.core.errors import ConfigError, RunError
from harmony.core.models import FrontEnd, Kernels, computed_by
from harmony.core.spec import Architecture, Frozen
from harmony.train.federation import Federation, federation
from harmony.train.harmony import Harmony, Visit
from harmony.train.kernels import kernels_for
from harmony.train.method import Losses, annealed

TOLERANCE = 1e-4
"""How far a loss may be from the loop's, relative to 1 + its value: sums in another order round differently."""


class Bound(Frozen):
    """What arithmetic alone allows: nobody multiplies faster than the machine, however clients are batched.

    flops: of convolutions and matrix products in one client-batch, forward and backward; peak: FLOP per CPU-second of
    this machine's float32 matrix product or 3×3 convolution on one thread, whichever is faster, the best of all rounds;
    ratio: how many times the plain loop's speed a training would have that does nothing else, at that peak.
    """

    flops: float
    peak: float
    ratio: float


class Rough(Frozen):
    """The batched step with `precision = "bfloat16"`, its ratio to the loop in float32, and how far losses part."""

    speed: Summary
    ratio: Ratio
    difference: float


class TrainingBench(Versioned):
    """Client-batches per CPU-second of both, their ratio round by round, and the most that any batching could reach.

    difference: the largest of any term, client and round, as in TOLERANCE; bfloat16: None where there is no C compiler;
    peak_bytes: resident memory of the process.
    """

    FORMAT: ClassVar[str] = "harmony-bench-train"
    VERSION: ClassVar[int] = 2

    format: Literal["harmony-bench-train"] = "harmony-bench-train"
    format_version: Literal[2] = 2
    config: TrainConfig
    batched: Summary
    loop: Summary
    ratio: Ratio
    bound: Bound
    difference: Annotated[float, Field(ge=0)]
    bfloat16: Rough | None
    peak_bytes: int
    host: Host


class Loop:
    """HARMONY without batching: the same step, one client after the other."""

    def __init__(self, members: Federation) -> None:
        self.method, self.federation = Harmony(members), members
        classes = members.dataset.classes
        self._modules: dict[tuple[int, Architecture], FrontEnd] = {
            (client.index, one): FrontEnd(one, members.image, members.feature, outputs=classes, gate=classes)
            for client in members.clients
            for one in members.groups
        }

    def round(self, index: int) -> Losses:
        """As Harmony.round."""
        config, clients = self.federation.config, self.federation.participants(index)
        losses = Losses.zeros(("gate1", "gate2", "server", "contrast"), len(self.federation.clients))
        for step in range(index * config.steps, (index + 1) * config.steps):
            annealed((self.method.cloud.optimizer, self.method.aggregator), step, config.rounds * config.steps)
            self.method.cloud.optimizer.zero_grad()
            self.method.aggregator.zero_grad()
            for visit in self.method.visits(step, clients):
                for client in visit.clients:
                    self._client(client, visit, step, losses, len(clients))
            self.method.cloud.optimizer.step()
            self.method.aggregator.step()
        return losses.mean(config.steps)

    def _client(self, client: int, visit: Visit, step: int, losses: Losses, clients: int) -> None:
        config, front_end = self.federation.config, self._modules[client, visit.architecture]
        _, weights = self.method.slice_of(visit.architecture)
        front_end.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
        front_end.zero_grad()
        inputs, tokens = self.federation.batch([client], step)
        out = front_end(inputs)
        terms = {
            "gate1": _cross_entropy(out.gate1, tokens),
            "gate2": _cross_entropy(out.gate2, tokens),
            "server": F.cross_entropy(self.method.back_end(out.feature), tokens),
        }
        for name, value in terms.items():
            losses.add(name, [client], value[None])
        own = config.gamma / 2 * (terms["gate1"] + terms["gate2"])
        ((own + (1 - config.gamma) * terms["server"]) / clients).backward()  # type: ignore[no-untyped-call]
        gradients = [(weights[name], value.grad) for name, value in front_end.named_parameters() if name in weights]
        torch.autograd.backward([slice_ for slice_, _ in gradients], [gradient for _, gradient in gradients])


def _cross_entropy(logits: Tensor | None, tokens: Tensor) -> Tensor:
    if logits is None:
        raise ValueError("HARMONY's front ends have gates")
    return F.cross_entropy(logits, tokens)


def bench_training(
    config: TrainConfig, rounds: int = 5, on_round: Callable[[int, int], None] = lambda done, total: None
) -> TrainingBench:
    """Measure both on the config's federation; RunError if their losses part, ConfigError for a config without a loop.

    Both train one round first, which is not counted, and begin every round with the same weights.
    """
    _check(config)
    watch, data = Watch(), load(config.data.name)
    torch.set_num_threads(config.threads)
    batched, loop, rough = Harmony(federation(config, data)), Loop(federation(config, data)), _rough(config, data)
    runners: list[tuple[Harmony | Loop, Kernels | None]] = [
        (batched, None),
        (loop, None),
        *([] if rough is None else [rough]),
    ]
    speeds: list[list[float]] = [[] for _ in runners]
    differences, peak = [0.0 for _ in runners], 0.0
    for index in range(rounds + 1):
        losses = []
        # All begin a round with the same bits: over many, Adam makes much of the last digits of sums in another order.
        begin = {name: value.clone() for name, value in batched.state().items()}
        batches = config.steps * len(batched.federation.participants(index))
        for (method, kernels), speed in zip(runners, speeds, strict=True):
            (method.method if isinstance(method, Loop) else method).restore(begin)
            start = time.process_time()
            with computed_by(kernels):
                losses.append(method.round(index))
            speed.append(batches / (time.process_time() - start))
        peak = max(peak, _peak_flops())
        differences = [max(known, _difference(losses[0], one)) for known, one in zip(differences, losses, strict=True)]
        on_round(index + 1, rounds + 1)
    if not differences[1] <= TOLERANCE:
        raise RunError(f"losses differ by {differences[1]:.2g}, more than {TOLERANCE:g}: not the same training")
    with FlopCounterMode(display=False) as counter:
        batched.round(rounds)
    counted = [speed[1:] for speed in speeds]
    ratios = [ratio([one / other for one, other in zip(speed, counted[1], strict=True)]) for speed in counted]
    flops, theirs = counter.get_total_flops() / batches, summarise(counted[1])
    return TrainingBench(
        config=config,
        batched=summarise(counted[0]),
        loop=theirs,
        ratio=ratios[0],
        bound=Bound(flops=flops, peak=peak, ratio=peak / flops / theirs.median),
        difference=differences[1],
        bfloat16=Rough(speed=summarise(counted[2]), ratio=ratios[2], difference=differences[2]) if rough else None,
        peak_bytes=_peak(),
        host=watch.host(),
    )


def _rough(config: TrainConfig, data: Dataset) -> tuple[Harmony, Kernels | None] | None:
    try:
        return Harmony(federation(config, data)), kernels_for("bfloat16")
    except RunError:
        return None


def _check(config: TrainConfig) -> None:
    parts = config.harmony
    if config.method != "harmony" or parts.contrast > 0 or parts.inner_steps > 0:
        mend = "leave contrast and inner_steps at 0, and the method at harmony"
        raise ConfigError("the plain loop knows HARMONY's usual parts alone", field="harmony", mend=mend)


def _difference(one: Losses, other: Losses) -> float:
    return max(
        float(((value - other.terms[name]).abs() / (1 + other.terms[name].abs())).max())
        for name, value in one.terms.items()
    )


@torch.no_grad()
def _peak_flops(tries: int = 3) -> float:
    """FLOP per CPU-second of the faster of two works that fill a processor.

    Their libraries are not the same: MKL multiplies slowly on some processors where oneDNN's convolutions do not.
    """
    side, channels, images = 1024, 128, 16
    square, weight = torch.rand(side, side), torch.rand(channels, channels, 3, 3)
    image = torch.rand(images, channels, 16, 16).to(memory_format=torch.channels_last)
    works: list[tuple[int, Callable[[], Tensor]]] = [
        (2 * side**3, lambda: torch.mm(square, square)),
        (2 * image.numel() * channels * 9, lambda: F.conv2d(image, weight, padding=1)),
    ]
    best = 0.0
    for flops, work in works:
        for _ in range(tries):
            start = time.process_time()
            work()
            best = max(best, flops / (time.process_time() - start))
    return best


def _peak() -> int:
    import resource  # noqa: PLC0415 - not on every system, and only here

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
