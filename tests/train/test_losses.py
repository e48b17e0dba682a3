"""The losses against slow, literal versions of their formulas."""

from __future__ import annotations

import math

import torch

from harmony.train.losses import masked_cross_entropy, supervised_contrastive


def literal_supcon(embedding: torch.Tensor, tokens: list[int], groups: list[int], temperature: float) -> float:
    """Khosla et al. 2020, eq. 2, by loops; same-class pairs of one group are left out of numerator and denominator."""
    unit = [row / row.norm() for row in embedding.double()]
    terms = []
    for i, anchor in enumerate(unit):
        kept = [a for a in range(len(unit)) if a != i and not (tokens[a] == tokens[i] and groups[a] == groups[i])]
        positives = [a for a in kept if tokens[a] == tokens[i]]
        if not positives:
            continue
        total = sum(math.exp(float(anchor @ unit[a]) / temperature) for a in kept)
        shares = [math.exp(float(anchor @ unit[p]) / temperature) / total for p in positives]
        terms.append(-sum(map(math.log, shares)) / len(positives))
    return sum(terms) / len(terms)


def test_contrast_is_the_formula_over_pairs_of_different_groups() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(12, 5)
    tokens, groups = [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 3, 3], [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    got = supervised_contrastive(embedding, torch.tensor(tokens), torch.tensor(groups), 0.3)
    assert math.isclose(float(got), literal_supcon(embedding, tokens, groups, 0.3), rel_tol=1e-5)


def test_contrast_falls_when_groups_agree_on_a_class() -> None:
    tokens, groups = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    aligned = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    swapped = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    assert supervised_contrastive(aligned, tokens, groups) < supervised_contrastive(swapped, tokens, groups)


def test_contrast_without_a_positive_is_zero_and_has_a_gradient() -> None:
    embedding = torch.randn(4, 3, requires_grad=True)
    loss = supervised_contrastive(embedding, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()


def test_contrast_has_finite_gradients_with_ignored_pairs() -> None:
    embedding = torch.randn(6, 3, requires_grad=True)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    supervised_contrastive(embedding, torch.tensor([0, 0, 1, 0, 1, 1]), groups).backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert bool(embedding.grad.isfinite().all())


def test_masked_cross_entropy_sees_only_the_allowed_classes() -> None:
    logits, tokens = torch.tensor([[1.0, 2, 9], [3, 1, 9]]), torch.tensor([1, 0])
    allowed = torch.tensor([True, True, False]).expand(2, 3)
    want = torch.nn.functional.cross_entropy(logits[:, :2], tokens)
    assert torch.allclose(masked_cross_entropy(logits, tokens, allowed), want)
