"""Exit scores: how sure a front end is that an input belongs to its own classes. No torch.

Every score maps logits to one number a sample, and larger means more in-distribution: a sample leaves at an exit when
its score is at least the exit's threshold. Scores over the personal head see `logits` (n, own classes); `own_mass`
sees the shared all-class head, `gate` (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import ConfigError, Diverged

Floats = NDArray[np.float32]
NOTHING = np.float32(-1e30)
"""A logit without mass, finite so that differences stay so."""
ScoreName = Literal["entropy", "msp", "max_logit", "energy", "gen", "own_mass"]


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis, shifted by the maximum so that it cannot overflow."""
    exp = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    exp /= np.add.reduce(exp, axis=-1, keepdims=True)
    return exp


def neg_entropy(logits: Floats) -> Floats:
    """Minus the entropy in nats of the softmax, from −ln(classes) to 0 (SplitGP's exit rule, arXiv 2212.08343)."""
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    exp = np.exp(shifted)
    total = np.add.reduce(exp, axis=-1)
    out: Floats = np.add.reduce(exp * shifted, axis=-1) / total - np.log(total)
    return out


def msp(logits: Floats) -> Floats:
    """Maximum softmax probability (Hendrycks & Gimpel 2017)."""
    out: Floats = np.maximum.reduce(softmax(logits), axis=-1)
    return out


def max_logit(logits: Floats) -> Floats:
    """Largest logit (Hendrycks et al. 2022)."""
    out: Floats = np.maximum.reduce(logits, axis=-1)
    return out


def energy(logits: Floats) -> Floats:
    """Free energy at temperature 1, the log-sum-exp of the logits (Liu et al. 2020)."""
    # For a single sample, which is what a device has, one call takes a quarter of the time of maximum, exp, sum, log.
    out: Floats = np.logaddexp.reduce(logits, axis=-1)
    return out


def gen(logits: Floats, gamma: float = 0.1) -> Floats:
    """Minus the generalised entropy Σ p^γ (1 − p)^γ (Liu et al., CVPR 2023, eq. 4, over all classes)."""
    p = np.clip(softmax(logits), 1e-12, 1 - 1e-7)
    out: Floats = -np.add.reduce((p * (1 - p)) ** gamma, axis=-1)
    return out


def own_mass(gate: Floats, own: NDArray[np.int64]) -> Floats:
    """Probability that the all-class head gives to the client's own classes, as log-odds (a logit), so that it keeps
    its resolution near 0 and 1.

    gate: (n, classes) logits in the order that `own` indexes, at least one label. Returns (n,), finite.
    """
    # The others are summed themselves: one minus the own mass would cancel just where certainty is decided.
    others = gate.copy()
    others[..., own] = NOTHING
    out: Floats = energy(gate.take(own, axis=-1)) - energy(others)
    return out


_OF_LOGITS: dict[str, Callable[[Floats], Floats]] = {
    "entropy": neg_entropy,
    "msp": msp,
    "max_logit": max_logit,
    "energy": energy,
    "gen": gen,
}
SCORES: tuple[str, ...] = get_args(ScoreName)


def needs_gate(name: str) -> bool:
    """Whether the score reads the shared all-class head rather than the personal one."""
    return name == "own_mass"


def score(name: str, logits: Floats, gate: Floats | None, own: NDArray[np.int64]) -> Floats:
    """The named score, (n,). ConfigError for an unknown name, or for own_mass without a gate head."""
    if name == "own_mass":
        if gate is None:
            raise ConfigError("score 'own_mass' needs a front end with a gate head")
        return own_mass(gate, own)
    if name not in _OF_LOGITS:
        raise ConfigError(f"'{name}' is no exit score", mend=f"choose one of {', '.join(SCORES)}")
    return _OF_LOGITS[name](logits)


def conformal_threshold(scores_id: Floats, budget: float) -> float:
    """Threshold under which at most a share `budget` of in-distribution inputs falls (split conformal, one-sided).

    scores_id: (n,) scores of held-out in-distribution samples that training never saw; budget: 0 … 1.
    The k-th smallest score with k = floor(budget · (n + 1)) bounds the share by `budget` in expectation over
    exchangeable draws (Vovk et al. 2005). With k = 0 nothing may be sent away: the threshold is float32's minimum.
    ConfigError for a budget outside 0 … 1; Diverged if a score is not a number.
    """
    if not 0 <= budget <= 1:
        raise ConfigError(f"a budget of {budget}", mend="choose a share from 0 to 1")
    ordered = np.sort(np.asarray(scores_id, dtype=np.float64))
    if np.isnan(ordered).any():
        raise Diverged("exit scores that are not numbers", mend="lower learning_rate")
    rank = rank_of(budget, len(ordered))
    return float(np.finfo(np.float32).min) if rank is None else float(ordered[rank])


def rank_of(budget: float, count: int) -> int | None:
    """Which of `count` ascending held-out scores, from 0, is the threshold for a budget; None: nothing may be sent."""
    k = int(np.floor(budget * (count + 1) + 1e-9))  # 0.29 · 100 is a hair below 29
    return min(k, count) - 1 if k and count else None
