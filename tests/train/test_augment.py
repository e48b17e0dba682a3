"""Augmented images are the given ones, moved and turned, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError
from harmony.train.augment import augmented
from harmony.train.federation import federation


def some(n: int = 400) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, 6, 8, 3), dtype=np.uint8)


def test_every_image_is_a_crop_of_itself_with_its_border_reflected_and_half_are_turned() -> None:
    images = some()
    found = augmented(images, np.random.default_rng(1), shift=2, mirror=True)
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = {(down, across): wide[:, down : down + 6, across : across + 8] for down in range(5) for across in range(5)}
    seen = []
    for number, image in enumerate(found):
        (way,) = [
            (*at, turned)
            for at, crop in crops.items()
            for turned in (False, True)
            if np.array_equal(image, crop[number][:, ::-1] if turned else crop[number])
        ]
        seen.append(way)
    assert len(set(seen)) == 50  # every crop, either way round
    assert 0.4 < np.mean([turned for _, _, turned in seen]) < 0.6


def test_an_image_may_be_moved_by_all_but_one_pixel() -> None:
    assert augmented(some(), np.random.default_rng(0), shift=5, mirror=False).shape == some().shape


def test_without_either_nothing_changes() -> None:
    assert np.array_equal(augmented(some(), np.random.default_rng(0), shift=0, mirror=False), some())


@pytest.fixture
def moving(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"shift": 3, "mirror": True})})


def test_batches_are_augmented_whoever_else_takes_part_and_their_labels_stay(
    moving: TrainConfig, config: TrainConfig, images: Dataset
) -> None:
    members, plain = federation(moving, images), federation(config, images)
    joint, tokens = members.batch([0, 3], 2)
    assert torch.equal(joint, torch.cat([members.batch([index], 2)[0] for index in (0, 3)]))
    before, same = plain.batch([0, 3], 2)
    assert torch.equal(tokens, same)
    assert (joint != before).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(joint, federation(moving, images).batch([0, 3], 2)[0])


def test_images_that_are_no_larger_than_the_shift_are_refused(images: Dataset) -> None:
    config = make_config({"data": {"shift": 28}, "partition": {"kind": "classes", "clients": 4, "classes": 3}})
    with pytest.raises(ConfigError, match=r"28 pixels.*data\.shift|data\.shift.*28 pixels"):
        federation(config, images)
