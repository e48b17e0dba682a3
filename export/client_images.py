"""Which images of a run are a client's: to calibrate a quantised front end on, and to judge it by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.checkpoint import CheckpointManifest, ClientRecord
from harmony.core.config import recorded_config
from harmony.core.data import load
from harmony.core.errors import ConfigError
from harmony.core.partition import partition
from harmony.core.preprocess import Preprocessor

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
CALIBRATION, JUDGED = 128, 512
"""Most images that activations are calibrated on, and that two front ends are compared by."""


class ClientImages(NamedTuple):
    """Images (n, C, H, W) of a client's own classes, scaled.

    calibration: of its own training images; held_out: those that its exits are calibrated on; unseen: test images.
    Nobody trained on the latter two.
    """

    calibration: Floats
    held_out: Floats
    unseen: Floats


class RunImages:
    """The images of a run, dealt to its clients as they were in training. What loading the data raises."""

    def __init__(self, manifest: CheckpointManifest, data_dir: Path | None = None) -> None:
        config = recorded_config(manifest.config, where="the checkpoint's config")
        data = load(config.data.name, data_dir=data_dir or (Path(config.data.folder) if config.data.folder else None))
        share = config.data.own_test
        self._parts = (data.x_train, data.x_test)
        self._labels = np.concatenate([data.y_train, data.y_test])
        # With shares of their own, clients are dealt the test images, too (see harmony.train.test_images).
        dealt = self._labels if share else data.y_train
        self._splits = partition(
            dealt, config.partition, classes=data.classes, seed=config.seed, holdout=config.data.holdout, test=share
        )
        self._own_test = share > 0
        self._scaled = Preprocessor(manifest.image)

    def of(self, client: ClientRecord) -> ClientImages:
        """ConfigError for a client that joined the run when it was over: its images are not known here."""
        if client.index >= len(self._splits):
            problem = f"client {client.index} joined the run later, so its images are not known here"
            raise ConfigError(problem, where="--precision int8", mend="export this client with --precision fp32")
        split = self._splits[client.index]
        official = np.arange(len(self._parts[0]), len(self._labels))
        unseen = split.test if self._own_test else official[np.isin(self._labels[official], client.classes.own)]
        return ClientImages(
            self._take(_spread(split.train, CALIBRATION)),
            self._take(split.holdout),
            self._take(_spread(unseen, JUDGED)),
        )

    def _take(self, chosen: Indices) -> Floats:
        first, second = self._parts
        images = [first[at] if at < len(first) else second[at - len(first)] for at in chosen.tolist()]
        return self._scaled(np.stack(images) if images else first[:0])


def _spread(chosen: Indices, most: int) -> Indices:
    """At most so many of them, evenly."""
    if len(chosen) <= most:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, most).astype(np.int64)]
