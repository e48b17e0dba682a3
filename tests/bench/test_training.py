"""The training benchmark compares two ways of doing the same thing, and notices when they are not the same."""

from __future__ import annotations

from typing import Any

import pytest

from harmony.bench.training import Loop, bench_training
from harmony.core.config import TrainConfig, make_config
from harmony.core.errors import ConfigError, RunError


def small(**more: Any) -> TrainConfig:
    value: dict[str, Any] = {
        "partition": {"kind": "shards", "clients": 6, "shards_per_client": 2},
        "architectures": ["resnet-w8-d1", "mobilenet-w8-d1", "resnet-w16-d1"],
        "batch": 4,
        "steps": 2,
        "back_end_width": 8,
    }
    return make_config(value | more)


def test_the_loop_sees_the_losses_of_the_batched_training_round_after_round() -> None:
    heard: list[tuple[int, int]] = []
    result = bench_training(small(), 2, lambda done, total: heard.append((done, total)))
    assert result.difference <= 1e-4
    assert result.ratio.rounds == 2
    assert result.ratio.low <= result.ratio.median <= result.ratio.high
    assert result.bfloat16 is None or 1e-6 < result.bfloat16.difference < 0.1
    assert result.bound.flops > 1e6
    assert result.bound.ratio == pytest.approx(result.bound.peak / result.bound.flops / result.loop.median)
    assert result.bound.ratio > result.ratio.median  # nobody is faster than arithmetic
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_a_loop_that_trains_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Loop._client

    def twice(self: Loop, *arguments: Any) -> None:
        whole(self, *arguments)
        whole(self, *arguments)

    monkeypatch.setattr(Loop, "_client", twice)
    with pytest.raises(RunError, match="not the same training"):
        bench_training(small(), 1)


@pytest.mark.parametrize("part", [{"contrast": 0.3}, {"inner_steps": 1}])
def test_parts_that_the_loop_lacks_are_refused_by_name(part: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="contrast and inner_steps"):
        bench_training(small(harmony=part), 1)
