"""Losses of n samples. Everything here sees tokens, never labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor


def masked_cross_entropy(logits: Tensor, tokens: Tensor, allowed: Tensor) -> Tensor:
    """Mean cross-entropy over the allowed classes only.

    logits: (n, classes); tokens: (n,) int64, each allowed; allowed: (n, classes) bool.
    """
    return F.cross_entropy(logits.masked_fill(~allowed, float("-inf")), tokens)


def supervised_contrastive(embedding: Tensor, tokens: Tensor, groups: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean SupCon loss (Khosla et al. 2020, eq. 2) whose positives come from *another* group.

    embedding: (n, d), any norm; tokens: (n,) class tokens; groups: (n,) for example the architecture that made the
    feature. Same token and same group are neither positive nor negative: the loss spends itself on closing the gap
    between groups. Returns a scalar; 0 where no anchor has a positive.
    """
    unit = F.normalize(embedding, dim=1)
    similarity = unit @ unit.T / temperature
    alike = tokens[:, None] == tokens[None, :]
    foreign = groups[:, None] != groups[None, :]
    positive = (alike & foreign).float()
    log_share = similarity - torch.logsumexp(similarity.masked_fill(alike & ~foreign, float("-inf")), 1, keepdim=True)
    # exp(−inf) = 0 keeps the ignored pairs out of the denominator; their own terms are multiplied away below.
    count = positive.sum(1)
    anchors = count > 0
    if not bool(anchors.any()):
        return embedding.sum() * 0
    per_anchor = -(positive * log_share).sum(1)[anchors] / count[anchors]
    return per_anchor.mean()
