"""The cloud's side of HARMONY: θ, and how it learns from uploads.

It holds no federation, no data set, no config with the run's seed: what it knows of images and labels came in messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from harmony.core.config import HarmonyConfig
from harmony.core.models import BackEnd
from harmony.train.losses import supervised_contrastive
from harmony.train.messages import CutGradient, Upload


class Learnt(NamedTuple):
    """The outcome of a step: an answer to each upload; losses for the log, of each sample (n,) and of the contrast."""

    gradients: list[CutGradient]
    each: Tensor
    contrast: Tensor


class Cloud:
    """θ with its optimizer. share: weight of the cloud's loss in the whole, 1 − γ."""

    def __init__(
        self, back_end: BackEnd, settings: HarmonyConfig, *, share: float, optimizer: torch.optim.Optimizer
    ) -> None:
        self.back_end, self.settings, self.share, self.optimizer = back_end, settings, share, optimizer

    def learn(self, uploads: Sequence[Upload]) -> Learnt:
        """One step of θ on all uploads; the loss's gradient at each upload's features."""
        features = [upload.feature.requires_grad_() for upload in uploads]
        tokens = torch.cat([upload.tokens for upload in uploads])
        embedding = self.back_end.embed(torch.cat(features))
        each = F.cross_entropy(self.back_end.classify(embedding), tokens, reduction="none")
        loss, contrast = self.share * each.mean(), each.new_zeros(())
        if self.settings.contrast > 0:
            groups = torch.cat([upload.tokens.new_full((len(upload.tokens),), upload.group) for upload in uploads])
            contrast = supervised_contrastive(embedding, tokens, groups, self.settings.temperature)
            loss = loss + self.settings.contrast * contrast
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        slopes = [feature.grad for feature in features]
        gradients = [
            CutGradient(slope, upload.group) for slope, upload in zip(slopes, uploads, strict=True) if slope is not None
        ]
        return Learnt(gradients, each.detach(), contrast.detach())
