"""Instructions → milliseconds on a device: by the one published latency of MobileNetV1 there, and the speed of memory.

    ms = instructions / rate + reading        reading = bytes of weights / speed, if no cache holds them; else 0
    rate = instructions of V1 on that device's core / (published ms of V1 − its reading)

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

READ_BYTES_PER_MS = 9.26e6
"""What one core reads from LPDDR4X memory: none of the three phones' own figure, but that of a Raspberry Pi 5 (one
thread, read only, 240 MB; llama.cpp's issue 26484, 8 August 2026). docs/arm.md says what others would change."""
CACHE_BYTES = 1 << 20
"""Weights that fit stay there from one answer to the next: the smallest last cache of the three devices."""
_WEIGHT_BYTES = 4


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


def reading_ms(parameters: int, speed: float = READ_BYTES_PER_MS) -> float:
    """Milliseconds of an answer in which fp32 weights come from memory; 0 if a cache holds them. speed: bytes a ms."""
    size = _WEIGHT_BYTES * parameters
    return size / speed if size > CACHE_BYTES else 0.0


def per_millisecond(known: NetCount, ms: float, speed: float = READ_BYTES_PER_MS) -> float:
    """Instructions that a device does in a millisecond in which it does not wait for weights, if it takes `ms` for a
    net. speed: bytes a millisecond."""
    return known.hot / (ms - reading_ms(known.parameters, speed))


def milliseconds(instructions: int, parameters: int, device: Device, core: CoreName) -> float:
    """Milliseconds on the device of an answer by a net with so many parameters."""
    return instructions / per_millisecond(net_on(REFERENCE, core), device.reference.ms) + reading_ms(parameters)


def predict(instructions: int, parameters: int, device: Device, core: CoreName) -> Span:
    """Milliseconds on the device; the range is that of the other nets' published latencies over their predictions."""
    ms = milliseconds(instructions, parameters, device, core)
    ratios = [check.ms / net_ms(check.model, device, core) for check in device.checks]
    return Span(ms=ms, low=ms * min(1, *ratios), high=ms * max(1, *ratios))


def net_ms(model: ModelName, device: Device, core: CoreName) -> float:
    """Milliseconds of a published net on the device, as predicted."""
    net = net_on(model, core)
    return milliseconds(net.hot, net.parameters, device, core)


def describe(device: Device, core: CoreName) -> str:
    """One line: the rate, and where it comes from."""
    row = device.reference
    rate = per_millisecond(net_on(REFERENCE, core), row.ms)
    return (
        f"{rate / 1e6:.3f} million instructions a ms, from MobileNetV1 {row.precision} at {row.ms:g} ms on "
        f"{device.title}, {row.threads} thread, kernels of {core} ({row.source}, {row.date}); weights over "
        f"{CACHE_BYTES >> 20} MiB are read at {READ_BYTES_PER_MS / 1e6:g} GB/s"
    )
