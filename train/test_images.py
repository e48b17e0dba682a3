"""By which test images a client is judged: the official ones, or, where the sets were merged, its own share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.config import TrainConfig
from harmony.core.data import Dataset
from harmony.core.partition import ClientSplit, partition

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TestImages:
    """Images x (n, H, W, C) with labels y (n,), and which of them are a client's own.

    splits: the clients', where each is judged by its own `test` images; None where all are judged by all images.
    """

    __test__ = False  # the name begins with Test, but pytest should not collect it

    x: NDArray[Any]
    y: Indices
    splits: tuple[ClientSplit, ...] | None = None

    @property
    def all(self) -> Indices:
        """Every test image, as indices."""
        return np.arange(len(self.y)) if self.splits is None else np.concatenate([split.test for split in self.splits])

    def of(self, client: int) -> Indices:
        """What a client is judged by: its own, and of the others' those of classes that it does not hold."""
        if self.splits is None:
            return self.all
        mine = self.splits[client]
        others = np.concatenate([mine.test[:0], *(split.test for split in self.splits if split is not mine)])
        return np.concatenate([mine.test, others[~np.isin(self.y[others], mine.own)]])


def test_images(config: TrainConfig, dataset: Dataset) -> TestImages:
    """The test images of a run; a pure function of its config and the data set."""
    if config.data.own_test == 0:
        return TestImages(dataset.x_test, dataset.y_test)
    merged = merge(dataset)
    splits = partition(
        merged.y_train,
        config.partition,
        classes=merged.classes,
        seed=config.seed,
        holdout=config.data.holdout,
        test=config.data.own_test,
    )
    return TestImages(merged.x_train, merged.y_train, splits)


test_images.__test__ = False  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def merge(dataset: Dataset) -> Dataset:
    """The data set with its test images behind its training images; the test images stay as they are."""
    x, y = (np.concatenate(both) for both in ((dataset.x_train, dataset.x_test), (dataset.y_train, dataset.y_test)))
    return replace(dataset, x_train=x, y_train=y)
