"""Who takes part and what they draw."""

from __future__ import annotations

import numpy as np
import torch

from harmony.core.config import TrainConfig
from harmony.core.data import Dataset
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
