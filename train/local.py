"""Local training: no client learns anything from another.

What a device and a server of its own can do with a client's images alone. The device's back end θ_k never sees an image
of a foreign class, so its answers to those are wrong; the gain of every other method is over this.
"""

from __future__ import annotations

from collections.abc import Sequence

from harmony.train.local_training import LocalTraining
from harmony.train.method import Losses


class Local(LocalTraining):
    """A front end and a back end for every client, and nobody meets."""

    share_back_end = False

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """Nothing is exchanged."""
