"""Instructions → milliseconds on a device: by the one published latency of MobileNetV1 there, and nothing else.

    ms = instructions · published ms of V1 / instructions of V1 on that device's core

`nets.json` holds the instructions of the published nets, as `harmony.bench.arm.validate` counted them. The other nets'
published latencies never calibrate: they say how far off this is, and give the range beside every prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from harmony.bench.arm.cores import CoreName
from harmony.bench.arm.results import NetCount, NetsResult, Span
from harmony.bench.devices import DEVICES, REFERENCE, Device, ModelName
from harmony.bench.result_files import read_result
from harmony.core.errors import ConfigError

NETS = Path(__file__).parent / "nets.json"
CORE_OF: Mapping[str, CoreName] = {"pixel": "a75", "pixel-2": "a73", "pixel-3a": "a75"}
"""Whose kernels run on a device whose latencies were published for the same library, XNNPACK.

The first Pixel's cores are Qualcomm's own. Today's library has no kernels for them and takes generic ones with 45 %
more instructions, so ARM's of the same class stand for them.
"""


@lru_cache(maxsize=1)
def nets() -> NetsResult:
    """The published nets, counted. An ArtifactError if the file is not what it should be."""
    return read_result(NETS, NetsResult)


def net_on(model: ModelName, core: CoreName) -> NetCount:
    """The count of a net on a core. ConfigError if it was not counted."""
    for one in nets().nets:
        if one.net == model and one.core == core:
            return one
    raise ConfigError(f"{model} was not counted on {core}", where=NETS, mend="python -m harmony.bench.arm.validate")


def calibrated(name: str, core: CoreName | None) -> tuple[Device, CoreName]:
    """The device of that name and its core. ConfigError for an unknown one, one that cannot be calibrated, and a `core`
    that it does not have."""
    if name not in CORE_OF:
        problem = f"'{name}' has no published latency of XNNPACK on one thread" if name in DEVICES else None
        raise ConfigError(
            problem or f"'{name}' is no known device", where="--device", mend=f"choose from {', '.join(CORE_OF)}"
        )
    if core not in {None, CORE_OF[name]}:
        mend = f"leave --core out, or give --core {CORE_OF[name]}"
        raise ConfigError(f"{name} has no {core}: it runs the kernels of {CORE_OF[name]}", where="--core", mend=mend)
    return DEVICES[name], CORE_OF[name]


def per_millisecond(device: Device, core: CoreName) -> float:
    """Instructions that the device does in a millisecond of MobileNetV1."""
    return net_on(REFERENCE, core).hot / device.reference.ms


def predict(instructions: int, device: Device, core: CoreName) -> Span:
    """Milliseconds on the device; the range is that of the other nets' published latencies over their predictions."""
    ms = instructions / per_millisecond(device, core)
    ratios = [check.ms * per_millisecond(device, core) / net_on(check.model, core).hot for check in device.checks]
    return Span(ms=ms, low=ms * min(1, *ratios), high=ms * max(1, *ratios))


def describe(device: Device, core: CoreName) -> str:
    """One line: the rate, and where it comes from."""
    row = device.reference
    return (
        f"{per_millisecond(device, core) / 1e6:.3f} million instructions a ms, from MobileNetV1 {row.precision} at "
        f"{row.ms:g} ms on {device.title}, {row.threads} thread, kernels of {core} ({row.source}, {row.date})"
    )
