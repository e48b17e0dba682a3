"""From samples to timings to virtual time, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmony.bench.job import Job, Measured, Samples
from harmony.bench.links import Link
from harmony.bench.predict import paired_ratio, predict, to_timing
from harmony.bench.probe import in_turns

LOCAL = Samples(
    wall_s=((0.0011, 0.0012), (0.0011, 0.0013)), cpu_s=((0.001, 0.001), (0.001, 0.001)), bare_s=((0.001,) * 2,) * 2
)
CLOUD = Samples(wall_s=((0.006, 0.006), (0.006, 0.006)), cpu_s=((0.002, 0.002), (0.002, 0.002)), bare_s=None)
MEASURED = Measured(first_answer_s=0.01, paths={"exit1": LOCAL, "cloud": CLOUD})
LINK = Link(name="slow", down_kbit=80, up_kbit=8, rtt_ms=100, source="made up: 10 and 1 bytes/ms")


def test_ratio_is_of_neighbours_one_median_a_round() -> None:
    found = paired_ratio([LOCAL])
    assert found is not None
    assert (found.low, found.high, found.rounds) == pytest.approx((1.15, 1.2, 2))
    assert paired_ratio([]) is None


def test_timing_by_path() -> None:
    job = Job(
        bundle=Path("b"),
        engine="onnxruntime",
        images=Path("i"),
        paths={"exit1": (0, 1), "cloud": (2, 3)},
        server=None,
        deadline_s=1,
        rounds=2,
        regime="hot",
    )
    timing = to_timing(job, MEASURED, slowdown=1.0)
    exit1, cloud = timing.path("exit1"), timing.path("cloud")
    assert exit1 is not None
    assert cloud is not None
    assert (exit1.wall.n, exit1.wall.median, exit1.wall.p99) == (4, 0.0011, 0.0013)
    assert (cloud.bare, cloud.ratio) == (None, None)
    assert timing.path("exit2") is None
    assert timing.conditions.calibration == "none: times are this host's own"
    assert (
        timing.conditions.precision,
        to_timing(job, MEASURED, slowdown=1.0, precision="int8").conditions.precision,
    ) == (
        "fp32",
        "int8",
    )
    assert "given by hand" in to_timing(job, MEASURED, slowdown=3.0).conditions.calibration


def test_local_answers_scale_with_the_slowdown_and_have_no_link() -> None:
    local, _ = predict(MEASURED, [LINK], slowdown=10, request=716, answer=0)
    assert (local.path, local.link, local.cold_median_s) == ("exit1", None, None)
    assert local.median_s == pytest.approx(0.010)


def test_offloaded_answers_wait_for_cloud_and_link() -> None:
    _, cloud = predict(MEASURED, [LINK], slowdown=10, request=716, answer=0)
    # CPU 2 ms · 10; waiting 6 − 2 ms, not scaled; link 100 ms + 716 + 232 + 52 bytes up + 155 + 52 bytes down
    assert cloud.median_s == pytest.approx(0.020 + 0.004 + 0.100 + 1.0 + 0.0207)
    assert cloud.cold_median_s == pytest.approx(cloud.median_s + 0.100)


def test_turns_alternate_and_swap_every_round() -> None:
    said: list[tuple[str, int]] = []
    pairs = [(np.array(value), np.array(-value)) for value in (1, 2)]
    samples = in_turns(
        lambda image: said.append(("device", int(image))),
        lambda image: said.append(("bare", int(image))),
        pairs,
        rounds=2,
        pause_s=0,
    )
    assert said[:4] == [("device", 1), ("bare", -1), ("device", 2), ("bare", -2)]
    assert said[4:] == [("bare", -1), ("device", 1), ("bare", -2), ("device", 2)]
    assert samples.bare_s is not None
    assert [len(row) for row in (*samples.wall_s, *samples.cpu_s, *samples.bare_s)] == [2] * 6
    assert in_turns(abs, None, pairs, rounds=1, pause_s=0).bare_s is None
