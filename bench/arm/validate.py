"""How far off Tier 1 is: `python -m harmony.bench.arm.validate [--out FILE] [--publish]`.

Counts the published nets on the cores, and predicts their published latencies from MobileNetV1's. --publish also
writes what predictions are calibrated with (`nets.json`) and the table in docs/arm.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from harmony.bench.arm.calibration import CORE_OF, NETS, READ_BYTES_PER_MS, per_millisecond, reading_ms
from harmony.bench.arm.cores import CORES, CoreName
from harmony.bench.arm.counting import count_reference
from harmony.bench.arm.environment import open_environment
from harmony.bench.arm.results import NetsResult
from harmony.bench.devices import DEVICES, REFERENCE, ModelName
from harmony.bench.host import Watch
from harmony.bench.published import rewrite
from harmony.bench.reference import MODELS
from harmony.bench.result_files import read_result
from harmony.core.errors import HarmonyError
from harmony.core.sealed import write_atomically

OUT = Path("results/arm-mobilenets.json")
DOCUMENT = Path("docs/arm.md")
BEGIN = "<!-- figures: begin (written by `python -m harmony.bench.arm.validate --publish`) -->"
END = "<!-- figures: end -->"
LIMIT, MEAN_LIMIT = 0.08, 0.04


SPEEDS = (5.0, 7.0, 9.26, 12.0, 15.0, 20.0, 29.8)
"""GB/s that are tried. No one core reads faster than all of the phones' memory: 29.8 GB/s (Snapdragon 821, 835)."""


class Check(NamedTuple):
    """A published latency that calibration has not seen, and what is predicted: ms, and by counts alone."""

    device: str
    core: CoreName
    net: ModelName
    published: float
    predicted: float
    alone: float

    @property
    def error(self) -> float:
        """Share by which the prediction is above what was published."""
        return self.predicted / self.published - 1

    @property
    def error_alone(self) -> float:
        """The same by counts alone."""
        return self.alone / self.published - 1


def count_nets() -> NetsResult:
    """All published nets on the cores of the devices that they were published for, MobileNetV1 on every core."""
    place, watch = open_environment(), Watch()
    nets = []
    for core in CORES.values():
        for model in MODELS if core.name in CORE_OF.values() else (REFERENCE,):
            with tempfile.TemporaryDirectory(prefix="harmony-arm-") as work:
                nets.append(count_reference(model, core, place, Path(work)))
            sys.stderr.write(f"{model} on {core.title}: {nets[-1].hot:,} instructions\n")
    return NetsResult(
        harmony_version=version("harmony-sfl"), versions=place[1].versions, host=watch.host(), nets=tuple(nets)
    )


def checks(result: NetsResult, speed: float = READ_BYTES_PER_MS) -> Iterator[Check]:
    """Every published latency of a net other than the reference, beside its predictions. speed: bytes a millisecond."""
    counts = {(one.net, one.core): one for one in result.nets}
    for name, core in CORE_OF.items():
        device, known = DEVICES[name], counts[REFERENCE, core]
        for row in device.checks:
            one = counts[row.model, core]
            rate = per_millisecond(known, device.reference.ms, speed)
            ms = one.hot / rate + reading_ms(one.parameters, speed)
            yield Check(name, core, row.model, row.ms, ms, device.reference.ms * one.hot / known.hot)


def held_out(result: NetsResult) -> Iterator[float]:
    """Errors on every device at that one of SPEEDS which suits the other devices best (least squares)."""
    tried = {speed: list(checks(result, speed * 1e6)) for speed in SPEEDS}
    for name in CORE_OF:
        best = min(tried.values(), key=lambda rows: sum(row.error**2 for row in rows if row.device != name))
        yield from (row.error for row in best if row.device == name)


def block(result: NetsResult) -> str:
    """The Markdown of docs/arm.md: counts, then predictions beside what was published."""
    rows = list(checks(result))
    counts = [
        f"| {one.net} | {one.core} | {one.parameters / 1e6:.2f} | {one.hot / 1e6:.2f} | {one.first / 1e6:.2f} |"
        for one in sorted(result.nets, key=lambda one: MODELS.index(one.net))
    ]
    errors = [
        f"| {row.device} ({row.core}) | {row.net} | {row.published:g} "
        f"| {row.predicted:.1f} | {row.error:+.1%} | {row.alone:.1f} | {row.error_alone:+.1%} |"
        for row in rows
    ]
    speeds = []
    for speed in SPEEDS:
        tried = [abs(row.error) for row in checks(result, speed * 1e6)]
        speeds.append(f"| {speed:g} | {max(tried):.1%} | {mean(tried):.1%} |")
    return "\n".join(
        [
            f"executorch {result.versions['executorch']}, QEMU {result.versions['qemu']}, commit {result.host.commit}.",
            "",
            "| net | kernels of | million weights | million instructions | first inference |",
            "| --- | --- | ---: | ---: | ---: |",
            *counts,
            "",
            "| device | net | published ms | predicted | error | by counts alone | error |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *errors,
            "",
            _verdict("Predicted", [row.error for row in rows]),
            _verdict("By counts alone", [row.error_alone for row in rows]),
            "",
            "| if weights are read at, GB/s | largest error | mean |",
            "| ---: | ---: | ---: |",
            *speeds,
            "",
            _verdict("At the speed of these that suits the two other phones best", list(held_out(result))),
        ]
    )


def _verdict(what: str, errors: Sequence[float]) -> str:
    largest, average = max(map(abs, errors)), mean(map(abs, errors))
    met = largest <= LIMIT and average <= MEAN_LIMIT
    return (
        f"{what}: the largest error is {largest:.1%} (limit {LIMIT:.0%}), the mean {average:.1%} (limit "
        f"{MEAN_LIMIT:.0%}): {'met' if met else '**missed**'}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a named error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.arm.validate", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"the record (default {OUT})")
    parser.add_argument("--again", action="store_true", help="take the counts of an earlier record in --out")
    parser.add_argument("--publish", action="store_true", help=f"calibrate with it, and write the table in {DOCUMENT}")
    options = parser.parse_args(arguments)
    try:
        result = read_result(options.out, NetsResult) if options.again else count_nets()
        text = result.model_dump_json(indent=1).encode() + b"\n"
        write_atomically(options.out, text)
        if options.publish:
            write_atomically(NETS, text)
            rewrite(DOCUMENT, BEGIN, END, block(result))
    except HarmonyError as error:
        sys.stderr.write(f"harmony.bench.arm.validate: {type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(block(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
