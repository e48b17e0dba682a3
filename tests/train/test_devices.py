"""Where a round is computed: nothing of it may lie anywhere else, and what a GPU is asked for is there or named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental._config as symbolic
from torch import Tensor

from harmony.core.config import make_config
from harmony.core.data import load
from harmony.core.errors import RunError
from harmony.train import train
from harmony.train.federation import Federation, federation
from harmony.train.method import Losses
from harmony.train.runs import METHODS

SETTINGS: dict[str, Any] = {"rounds": 2, "steps": 1, "batch": 4}
# FedTGP is missing: its server looks at numbers in the middle of a round, and tensors without values have none.
PLACED: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS if name != "fedtgp"},
    "inner adaptation": {"harmony": {"inner_steps": 1, "inner_share": 1.0}},
}


@pytest.mark.parametrize("settings", PLACED.values(), ids=PLACED)
def test_all_of_a_round_lies_on_the_device_that_was_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's `meta` device stands for a GPU: it has shapes and no values, and refuses the CPU's tensors as a GPU
    does.
    """
    heard: list[torch.device] = []

    def add(self: Losses, name: str, clients: Sequence[int], values: Tensor) -> None:
        heard.append(values.device)

    monkeypatch.setattr(Federation, "place", torch.device("meta"))
    monkeypatch.setattr(Losses, "add", add)  # what it does is to bring values to the CPU
    members = federation(make_config(SETTINGS | settings), load("fashion-mnist-mini"))
    trained = METHODS[members.config.method](members)
    with symbolic.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined]
        trained.round(0)
    assert {place.type for place in heard} == {"meta"}
    assert {value.device.type for name, value in trained.state().items() if not name.endswith("/step")} == {"meta"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    config = make_config(SETTINGS | {"device": "cuda"})
    with pytest.raises(RunError, match=r"device: PyTorch finds no GPU here \(install a CUDA build of torch"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_sees_the_losses_of_the_cpu(method: str) -> None:
    images = load("fashion-mnist-mini")
    here, there = (
        METHODS[method](federation(make_config(SETTINGS | {"method": method, "device": device}), images)).round(0).terms
        for device in ("cpu", "cuda")
    )
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, rtol=1e-3, atol=1e-4)
