"""A federation small enough to train in a second: 4 clients, 2 families, real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset, load
from harmony.train import METHODS
from harmony.train.federation import federation
from harmony.train.local_training import LocalTraining

# As a run does: two threads that wait for each other on a busy machine spin, and small batches gain nothing by them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images() -> Dataset:
    """60 training and 20 test images a class of the embedded data set."""
    whole = load("fashion-mnist-mini")

    def first(labels: np.ndarray, count: int) -> np.ndarray:
        return np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(whole.classes)])

    train, test = first(whole.y_train, 60), first(whole.y_test, 20)
    return Dataset(
        whole.name,
        whole.x_train[train],
        whole.y_train[train],
        whole.x_test[test],
        whole.y_test[test],
        whole.class_names,
    )


@pytest.fixture
def config(request: pytest.FixtureRequest) -> TrainConfig:
    """Two rounds of two steps; parametrise indirectly with overrides."""
    overrides: dict[str, Any] = getattr(request, "param", {})
    return small(**overrides)


def small(**overrides: Any) -> TrainConfig:
    """The config of the small federation."""
    base = {
        "partition": {"kind": "classes", "clients": 4, "classes": 3},
        "architectures": ["resnet-w16-d1", "mobilenet-w8-d1", "resnet-w8-d2", "mobilenet-w16-d1"],
        "back_end_width": 8,
        "rounds": 4,
        "steps": 2,
        "batch": 8,
        "checkpoint_every": 1,
        "threads": 1,
        "harmony": {"personalize_epochs": 1},
    }
    return make_config(base | overrides)


@pytest.fixture
def rival_config() -> Callable[..., TrainConfig]:
    """(method, overrides) → the config of the small federation for a rival, with even smaller networks."""

    def make(name: str, **overrides: Any) -> TrainConfig:
        tiny = {"architectures": ["resnet-w8-d1", "mobilenet-w8-d1"], "batch": 4, "checkpoint_every": 2}
        few = {"fedtgp": {"server_steps": 3}, "fedgh": {"server_steps": 3}}
        return small(**tiny | few | {"method": name} | overrides)

    return make


@pytest.fixture
def rival(rival_config: Callable[..., TrainConfig], images: Dataset) -> Callable[..., LocalTraining]:
    """(method, overrides) → a rival before its first round."""

    def make(name: str, **overrides: Any) -> LocalTraining:
        method = METHODS[name](federation(rival_config(name, **overrides), images))
        assert isinstance(method, LocalTraining)
        return method

    return make
