"""Muon: what it makes of a matrix, what it leaves to Adam, and that a broken run goes on with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harmony.bench.experiment.grid import meaning_of
from harmony.core.checkpoint import load_tensors
from harmony.core.config import TrainConfig, make_config, recorded_config
from harmony.core.data import Dataset
from harmony.train import Progress, train
from harmony.train.muon import QUINTIC, SWEEPS, Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8), (1, 16, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    (made,) = orthogonal([matrices])
    found = torch.linalg.svdvals(made)
    assert found.min() > 0.3
    assert found.max() < 1.3
    # the directions stay: U Vᵀ is what the step aims at
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(made.flatten(1), (u @ vt).flatten(1)).min() > 0.95


def test_a_matrix_of_zeros_stays() -> None:
    assert not orthogonal([torch.zeros(2, 4, 9)])[0].any()


def test_sweeps_of_the_products_are_those_of_the_matrices() -> None:
    """Stacks of one smaller side sweep together, and each comes back in its place, as the published loop has it."""
    random, (a, b, c) = torch.Generator().manual_seed(3), QUINTIC
    stacks = [torch.randn(shape, generator=random) for shape in ((2, 8, 40), (1, 5, 7), (3, 40, 8), (2, 8, 8))]
    for matrices, made in zip(stacks, orthogonal(stacks), strict=True):
        x = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
        for _ in range(SWEEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        torch.testing.assert_close(made.double(), x, rtol=0, atol=1e-3)


def test_only_convolutions_that_mix_channels_are_matrices() -> None:
    shapes = {(16, 8, 3, 3): True, (16, 1, 3, 3): False, (1, 16, 1, 1): False, (32, 10): False, (32,): False}
    assert {shape: is_matrix(torch.zeros(shape)) for shape in shapes} == shapes


def test_what_is_no_matrix_moves_as_adam_moves_it() -> None:
    random = torch.Generator().manual_seed(1)
    ours, theirs = (torch.ones(4, 3).requires_grad_() for _ in range(2))
    muon = Muon([ours], rate=0.1, matrix_rate=9.0)
    adam = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(20):
        ours.grad = torch.randn(4, 3, generator=random)
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_step_has_the_size_it_is_told_whatever_the_gradients(memory: torch.memory_format) -> None:
    weight = torch.zeros(8, 8, 3, 3).to(memory_format=memory).requires_grad_()
    muon = Muon([weight], rate=1.0, matrix_rate=0.5)
    weight.grad = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(2)) * 1e-4
    muon.step()
    assert torch.linalg.svdvals(weight.detach().reshape(8, -1)).mean() == pytest.approx(0.5, rel=0.2)


class Killed(Exception):
    pass


def test_a_broken_run_goes_on_with_the_same_bits(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    def dying(progress: Progress) -> None:
        if progress.done == 2:
            raise Killed

    chosen = config.model_copy(update={"optimizer": "muon"})
    whole = train(chosen, tmp_path / "whole", dataset=images)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "broken", dataset=images, on_progress=dying)
    broken = train(chosen, tmp_path / "broken", dataset=images, resume=True)
    other = train(config.model_copy(update={"optimizer": "adam"}), tmp_path / "adam", dataset=images)
    one, two, three = (load_tensors(folder / "back_end.safetensors") for folder in (whole, broken, other))
    assert all((value == two[name]).all() for name, value in one.items())
    assert any((value != three[name]).any() for name, value in one.items())


def test_a_config_saved_before_there_was_a_choice_means_adam() -> None:
    """Else results of an earlier version would pass for those of today's default."""
    today = make_config({"method": "harmony"})
    saved = today.model_dump(mode="json")
    del saved["optimizer"], saved["muon_rate"]
    assert recorded_config(saved).optimizer == "adam"
    assert recorded_config(today.model_dump(mode="json")) == today
    assert meaning_of(recorded_config(saved), {}) == meaning_of(make_config({"optimizer": "adam"}), {})
