"""Faster kernels for training: convolutions in bfloat16, and GroupNorm, sum and ReLU in one pass."""

from __future__ import annotations

from harmony.core.models import Kernels
from harmony.train.kernels.bfloat16 import BFloat16Convolutions, BFloat16Kernels


def kernels_for(precision: str, device: str = "cpu") -> Kernels | None:
    """What computes at the precision of a config; None: PyTorch itself. RunError where there is no C compiler."""
    if precision != "bfloat16":
        return None
    return BFloat16Kernels() if device == "cpu" else BFloat16Convolutions()
