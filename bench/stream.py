"""A device in a process of its own answers a stream of images: `harmony.device.stream`, and what it reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.child import run_module
from harmony.bench.job import KEY_ENV
from harmony.bench.results import Process
from harmony.core.adaptive import SUREST
from harmony.core.bundle import EngineName


class Cloud(NamedTuple):
    """A running service. key: None where it asks for none."""

    url: str
    key: str | None


@dataclass(frozen=True, eq=False)
class Stream:
    """What a device process said, one value an image.

    label: the answer; local: the device's own; exits: "exit1", "exit2" or "cloud"; unsure: no exit was sure enough;
    surety: exit 2's score, SUREST for what left at exit 1; degraded: the cloud was asked, but did not help; bytes_sent,
    bytes_received: HTTP bodies of its offload.
    """

    label: NDArray[np.int64]
    local: NDArray[np.int64]
    exits: NDArray[np.str_]
    unsure: NDArray[np.bool_]
    surety: NDArray[np.float32]
    degraded: NDArray[np.bool_]
    bytes_sent: NDArray[np.int64]
    bytes_received: NDArray[np.int64]
    process: Process


def run_stream(
    bundle: Path,
    images: Path,
    *,
    engine: EngineName,
    cloud: Cloud | None,
    deadline_s: float,
    limit: int | None = None,
) -> Stream:
    """Run the device over `images` (a safetensors file) to the end, or to a limit. EngineError if it fails."""
    out = images.with_name("stream.json")
    arguments = [str(bundle), "--images", str(images), "--out", str(out), "--engine", engine]
    arguments += [] if limit is None else ["--limit", str(limit)]
    secret = {}
    if cloud is not None:
        arguments += ["--server", cloud.url, "--deadline", str(deadline_s)]
    if cloud is not None and cloud.key is not None:
        arguments += ["--key-env", KEY_ENV]
        secret = {KEY_ENV: cloud.key}
    run_module("harmony.device.stream", arguments, where=bundle, environment=secret)
    return _parse(json.loads(out.read_bytes()))


def _parse(report: dict[str, Any]) -> Stream:
    columns = report["samples"]
    return Stream(
        label=np.asarray(columns["label"], np.int64),
        local=np.asarray(columns["local_label"], np.int64),
        exits=np.asarray(columns["exit"], np.str_),
        unsure=np.asarray(columns["would_offload"], np.bool_),
        surety=np.asarray([SUREST if score is None else score for score in columns["score2"]], np.float32),
        degraded=np.asarray(columns["degraded"], np.bool_),
        bytes_sent=np.asarray(columns["bytes_sent"], np.int64),
        bytes_received=np.asarray(columns["bytes_received"], np.int64),
        process=Process(
            peak_rss_bytes=report["peak_rss_bytes"],
            torch_loaded=report["torch_loaded"],
            cpu_s=report["cpu_seconds"],
            versions=report["versions"],
        ),
    )
