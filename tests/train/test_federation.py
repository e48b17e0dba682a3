"""Who takes part and what they draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError
from harmony.core.tokens import make_token_key, token_permutation
from harmony.train.federation import federation


def test_clients_draw_only_their_own_training_images(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    for client in members.clients:
        assert not set(client.train) & set(client.holdout)
        assert set(images.y_train[client.train]) == set(client.classes.own)
        _, tokens = members.batch([client.index], 3)
        assert set(tokens.tolist()) <= set(client.classes.own_tokens.tolist())


def test_batches_depend_on_seed_client_and_step_alone(config: TrainConfig, images: Dataset) -> None:
    one, two = federation(config, images), federation(config, images)
    two.batch([0], 5)  # an extra draw must not move later ones
    assert torch.equal(one.batch([1, 2], 7)[0], two.batch([1, 2], 7)[0])
    assert not torch.equal(one.batch([1], 7)[0], one.batch([1], 8)[0])
    other = federation(config.model_copy(update={"seed": 1}), images)
    assert not torch.equal(one.batch([1], 7)[0], other.batch([1], 7)[0])


def test_a_joint_batch_is_the_clients_batches_end_to_end(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    joint, tokens = members.batch([0, 3], 2)
    parts = [members.batch([index], 2) for index in (0, 3)]
    assert torch.equal(joint, torch.cat([inputs for inputs, _ in parts]))
    assert torch.equal(tokens, torch.cat([one for _, one in parts]))


def test_tokens_are_one_shared_permutation_that_hides_the_labels(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    maps = {client.classes.tokens for client in members.clients}
    assert len(maps) == 1
    assert sorted(members.tokens) == list(range(images.classes))
    assert any(token != label for label, token in enumerate(members.tokens))
    own = members.own[0].nonzero().flatten().tolist()
    assert sorted(own) == sorted(members.clients[0].classes.own_tokens.tolist())


def test_architectures_are_dealt_in_turn(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    assert [str(client.architecture) for client in members.clients] == list(config.architectures)
    assert np.concatenate(list(members.groups.values())).tolist() == [0, 1, 2, 3]


def with_tokens(config: TrainConfig, **tokens: Any) -> TrainConfig:
    return make_config(config.model_dump(mode="json") | {"tokens": tokens})


def test_a_key_file_decides_the_tokens_and_the_seed_no_longer_does(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    key = make_token_key(tmp_path / "a.key")
    keyed = with_tokens(config, key_file=str(tmp_path / "a.key"))
    first, second = (federation(keyed.model_copy(update={"seed": seed}), images) for seed in (0, 1))
    assert tuple(first.tokens) == tuple(second.tokens) == token_permutation(key, images.classes)
    assert first.key == second.key != federation(config, images).key
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"a\.key: may be read by others"):
        federation(keyed, images)


def test_the_cloud_is_told_of_an_image_the_same_thing_at_every_step(config: TrainConfig, images: Dataset) -> None:
    """Every image is told once and for all: a client of few images draws each of them many times."""
    members = federation(with_tokens(config, epsilon=0.5), images)
    heard: dict[bytes, set[int]] = {}
    lies = 0
    for step in range(100):
        inputs, tokens = members.batch([0], step)
        told = members.told_tokens([0], step)
        lies += int((told != tokens).sum())
        for image, token in zip(inputs, told.tolist(), strict=True):
            heard.setdefault(image.numpy().tobytes(), set()).add(token)
    assert sum(map(len, heard.values())) == len(heard) < 100 * config.batch / 4
    assert 0.6 < lies / (100 * config.batch) < 0.95  # 1 − e^0.5 / (e^0.5 + 9) = 0.85


def test_without_epsilon_the_truth_is_told(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    assert torch.equal(members.told_tokens([0, 2], 1), members.batch([0, 2], 1)[1])
