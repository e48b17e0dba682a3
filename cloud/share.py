"""What the workers of one service share: a ledger of their counts, and one of what keys have used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from harmony.cloud.keys import USED
from harmony.cloud.ledger import Ledger, Shape, make_file
from harmony.cloud.metrics import width_of
from harmony.cloud.settings import ServiceSettings

_VERSIONS = 1024  # of models, over the life of the service
_KEYS = 16_384


class Share(NamedTuple):
    """The two ledgers, as one worker sees them."""

    counts: Ledger
    keys: Ledger

    @classmethod
    def alone(cls, settings: ServiceSettings) -> Self:
        """For a service of one process."""
        counts, keys = _shapes(settings, workers=1)
        return cls(Ledger(counts), Ledger(keys))

    @classmethod
    def of(cls, descriptors: tuple[int, int], slot: int, settings: ServiceSettings) -> Self:
        """For one worker of several. descriptors: what `files` made."""
        shapes = _shapes(settings, settings.workers)
        return cls(*(Ledger(shape, slot, one) for shape, one in zip(shapes, descriptors, strict=True)))


@contextmanager
def files(settings: ServiceSettings) -> Iterator[tuple[int, int]]:
    """Descriptors of the files behind a share, closed at the end of the block."""
    counts, keys = (make_file(shape) for shape in _shapes(settings, settings.workers))
    try:
        yield counts, keys
    finally:
        os.close(counts)
        os.close(keys)


def _shapes(settings: ServiceSettings, workers: int) -> tuple[Shape, Shape]:
    return Shape(_VERSIONS, workers, width_of(settings.max_batch)), Shape(_KEYS, workers, USED)
