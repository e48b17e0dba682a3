"""Everything that passes between clients, the cloud and the aggregator of extractors in a step of HARMONY.

    aggregator ── Weights ──▶ clients ── Upload ──▶ cloud
    aggregator ◀─ ExtractorGradients ── clients ◀─ CutGradient ── cloud

There is no other type: a raw label or an input has no message to travel in. Every message goes through one place
(`Post`), where a test looks at all of them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from harmony.core.spec import Architecture


class Weights(NamedTuple):
    """Aggregator to the clients of a visit: an architecture's slice of its super-network, by parameter name."""

    architecture: Architecture
    tensors: dict[str, Tensor]


class Upload(NamedTuple):
    """Clients of a visit to the cloud: features (n, C, H, W) at the cut, tokens (n,) as told, the visit's number."""

    feature: Tensor
    tokens: Tensor
    group: int


class CutGradient(NamedTuple):
    """Cloud to the clients of a visit: the gradient of its loss at their features, (n, C, H, W), the visit's number."""

    feature: Tensor
    group: int


class ExtractorGradients(NamedTuple):
    """Clients to the aggregator: the sum of a step's gradients over all clients, by name in the super-networks.

    Only the sum is needed, so secure aggregation may hide what a single client adds to it.
    """

    tensors: dict[str, Tensor]


Message = Weights | Upload | CutGradient | ExtractorGradients
MessageT = TypeVar("MessageT", Weights, Upload, CutGradient, ExtractorGradients)


class Post(Protocol):
    """Carries a message from one side to another."""

    def __call__(self, message: MessageT) -> MessageT:
        """The message as it arrives."""
        ...


def hand_over(message: MessageT) -> MessageT:
    """Both sides live in this process."""
    return message
