"""The test mix: a client's own classes plus ρ times as many images of the others (SplitGP, section V). No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import ConfigError

RHOS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class TestMix:
    """A client's stream of test images.

    indices: (n,) int64 into the test set, shuffled; is_id: (n,) bool, True where the client holds the class;
    ood_wanted: round(ρ · n_ID), which is more than the mix holds where the other classes have too few images.
    """

    __test__ = False  # the name begins with Test, but pytest should not collect it

    indices: NDArray[np.int64]
    is_id: NDArray[np.bool_]
    ood_wanted: int

    @property
    def short(self) -> int:
        """OOD images that were wanted and do not exist."""
        return self.ood_wanted - int(np.count_nonzero(~self.is_id))


def test_mix(labels: NDArray[np.integer[Any]], own: Sequence[int], rho: float, rng_seed: int) -> TestMix:
    """All test images of the classes `own`, and round(ρ · n_ID) of the others, balanced over their classes.

    labels: (n,) of the test set; ρ ≥ 0. For one seed, a mix with a smaller ρ is the larger one with some OOD images
    left out, in the same order, so that curves over ρ are smooth. ConfigError: ρ or seed out of range, or no ID image.
    """
    if not (math.isfinite(rho) and rho >= 0):
        raise ConfigError(f"{rho} is not a ratio", where="rho", mend="use 0 or more")
    if rng_seed < 0:
        raise ConfigError(f"{rng_seed} is negative", where="seed", mend="use 0 or more")
    mine = np.isin(labels, np.asarray(own, dtype=np.int64))
    inside = np.flatnonzero(mine)
    if not inside.size:
        raise ConfigError(f"no test image of the classes {list(own)}", where="own", mend="name classes of the data set")
    random = np.random.default_rng((rng_seed, *sorted(own)))
    outside = _rounds(labels, np.flatnonzero(~mine), random)
    place = random.random(len(labels))  # one for each test image, whatever ρ is: the order is nested too
    wanted = round(rho * len(inside))
    chosen = np.concatenate([inside, outside[:wanted]])
    chosen = chosen[np.argsort(place[chosen], kind="stable")]
    return TestMix(chosen, mine[chosen], wanted)


test_mix.__test__ = False  # type: ignore[attr-defined]


def _rounds(
    labels: NDArray[np.integer[Any]], images: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """`images` in random order, one of each class a round: every prefix is balanced as far as the images last."""
    images = random.permutation(images)
    rank = np.zeros(len(images), np.int64)
    for label in np.unique(labels[images]):
        of_class = labels[images] == label
        rank[of_class] = np.arange(np.count_nonzero(of_class))
    return images[np.lexsort((random.random(len(images)), rank))]
