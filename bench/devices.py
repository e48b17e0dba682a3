"""Devices that nobody here has, by what others published that they take for a model that everybody knows.

A device class is no more than this: "its reference takes N ms there". Every row says who measured it, when, with which
engine, precision and number of threads. Pixels are calibrated on MobileNetV1; their other rows are never used to
calibrate, only to say how far off a prediction is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen

ModelName = Literal["mobilenet-v1", "mobilenet-v2", "mobilenet-v3-large", "mobilenet-v3-small"]
REFERENCE: ModelName = "mobilenet-v1"

_XNNPACK = "XNNPACK README, table of mobile phones, end2end_bench, random weights"
_NCNN = "ncnn benchmark/README.md, benchncnn, random weights"


class Published(Frozen):
    """A latency that somebody measured on a device, for one image of 224 × 224.

    ms: as printed there; precision: of the arithmetic; date: of the measurement, None where it is not told.
    """

    model: ModelName
    ms: Annotated[float, Field(gt=0)]
    engine: str
    precision: Literal["fp32", "fp16", "int8"]
    threads: Annotated[int, Field(ge=1)]
    source: str
    date: str | None


class Device(Frozen):
    """A device class. reference: its row for the reference model, on one thread; checks: rows of other models."""

    name: str
    title: str
    core: str
    reference: Published
    checks: tuple[Published, ...] = ()


def _xnnpack(model: ModelName, ms: float) -> Published:
    return Published(
        model=model, ms=ms, engine="XNNPACK", precision="fp32", threads=1, source=_XNNPACK, date="2020-03-27"
    )


def _pixel(name: str, title: str, core: str, ms: tuple[float, float, float, float]) -> Device:
    v1, v2, large, small = ms
    checks = (
        _xnnpack("mobilenet-v2", v2), _xnnpack("mobilenet-v3-large", large), _xnnpack("mobilenet-v3-small", small),
    )  # fmt: skip
    return Device(name=name, title=title, core=core, reference=_xnnpack("mobilenet-v1", v1), checks=checks)


def _ncnn(name: str, title: str, core: str, ms: float, precision: Literal["fp32", "fp16"] = "fp32") -> Device:
    row = Published(model=REFERENCE, ms=ms, engine="ncnn", precision=precision, threads=1, source=_NCNN, date=None)
    return Device(name=name, title=title, core=core, reference=row)


DEVICES: dict[str, Device] = {
    one.name: one
    for one in (
        _pixel("pixel", "Google Pixel (2016)", "Kryo, 2.15 GHz, Snapdragon 821", (82, 49, 39, 12)),
        _pixel("pixel-2", "Google Pixel 2 (2017)", "Kryo 280 (A73), 2.35 GHz, Snapdragon 835", (86, 53, 42, 14)),
        _pixel("pixel-3a", "Google Pixel 3a (2019)", "Kryo 360 (A75), 2.0 GHz, Snapdragon 670", (88, 55, 44, 14)),
        _ncnn("cortex-a53", "Snapdragon 410 (2014)", "Cortex-A53, 1.2 GHz", 244.9),
        _ncnn("cortex-a72", "RK3399 (2016)", "Cortex-A72, 1.8 GHz", 136.9),
        _ncnn("cortex-a73", "Kirin 970 (2017)", "Cortex-A73, 2.4 GHz", 109.0),
        _ncnn("raspberry-pi-5", "Raspberry Pi 5 (2023)", "Cortex-A76, 2.4 GHz", 20.0, "fp16"),
        _ncnn("snapdragon-855-plus", "OnePlus 7T (2019)", "Kryo 485 (A76), 2.96 GHz", 30.0),
    )
}


def find_device(name: str) -> Device:
    """The device class of that name; ConfigError lists the known ones."""
    if name not in DEVICES:
        raise ConfigError(f"'{name}' is no known device", where="device", mend=f"choose from {', '.join(DEVICES)}")
    return DEVICES[name]
