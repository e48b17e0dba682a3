"""Faster kernels for training: convolutions in bfloat16, and GroupNorm, sum and ReLU in one pass."""

from __future__ import annotations

from harmony.core.models import Kernels
from harmony.train.kernels.bfloat16 import BFloat16Kernels


def kernels_for(precision: str) -> Kernels | None:
    """What computes at the precision of a config; None: PyTorch itself. RunError where there is no C compiler."""
    return BFloat16Kernels() if precision == "bfloat16" else None
