"""How alike the representations of several networks are, from what they make of the same inputs. numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_WEIGHT_DECAY = 1e-3


def linear_cka(first: Floats, second: Floats) -> float:
    """Linear CKA of two networks' features of the same n inputs (Kornblith et al. 2019), 1 where they are alike.

    first: (n, p); second: (n, q), n ≥ 4. HSIC is estimated without bias (Song et al. 2012, eq. 5): the plain estimate
    is near 1 for unrelated features too, once they have more dimensions than there are inputs. So unrelated features
    give about 0, possibly just below. 0 where a network gives the same for all inputs.
    """
    grams = [_gram(features) for features in (first, second)]
    own = [_hsic(gram, gram) for gram in grams]
    if min(own) <= 0:
        return 0.0
    return _hsic(*grams) / float(np.sqrt(own[0] * own[1]))


def _gram(features: Floats) -> NDArray[np.float64]:
    """(n, n) inner products without the diagonal; centred and scaled first, for the sake of the digits."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    gram: NDArray[np.float64] = centred @ centred.T / max(float(np.square(centred).mean()), 1e-30)
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    n = len(first)
    rows = first.sum(0), second.sum(0)
    whole = float((first * second).sum() + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)))
    return (whole - 2 * float(rows[0] @ rows[1]) / (n - 2)) / (n * (n - 3))


def probe(embeddings: Floats) -> float:
    """How often a linear classifier tells which network made an embedding; chance is 1 / networks.

    embeddings: (networks, n, d), of the same n inputs in the same order. It learns from the first half of the inputs
    (multinomial logistic regression) and is asked about the other half: about inputs that it saw through no network.
    """
    networks, n, _ = embeddings.shape
    known = torch.from_numpy(embeddings[:, : n // 2].astype(np.float32)).flatten(0, 1)
    asked = torch.from_numpy(embeddings[:, n // 2 :].astype(np.float32)).flatten(0, 1)
    mean, std = known.mean(0), known.std(0).clamp_min(1e-6)
    truth = torch.arange(networks)
    weight, bias = _logistic((known - mean) / std, truth.repeat_interleave(n // 2), networks)
    said = (((asked - mean) / std) @ weight.T + bias).argmax(1)
    return float((said == truth.repeat_interleave(n - n // 2)).float().mean())


def _logistic(inputs: torch.Tensor, truth: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, truth) + _WEIGHT_DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def principal_plane(points: Floats) -> NDArray[np.float64]:
    """(n, d) → (n, 2): coordinates along the two directions of largest variance, in units of the first's deviation."""
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    axes = directions[:2]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])  # a direction's sign is arbitrary: fix it
    plane: NDArray[np.float64] = centred @ (axes * signs[:, None]).T
    return plane / max(float(plane[:, 0].std()), 1e-12)


def mean_roc(inside: list[Floats], outside: list[Floats], points: int = 41) -> NDArray[np.float64]:
    """(points, 2): false and true positive rates of scores that should be larger inside, mean over the clients.

    inside, outside: one array a client. At each false positive rate the true ones are averaged (vertical averaging,
    Fawcett 2006), since the clients' thresholds have no common scale.
    """
    rates = np.linspace(0, 1, points)
    curves = []
    for good, bad in zip(inside, outside, strict=True):
        thresholds = np.quantile(bad, 1 - rates, method="lower")
        thresholds[-1] = -np.inf
        curves.append((good[:, None] > thresholds).mean(0))
    return np.stack([rates, np.mean(curves, 0)], 1)
