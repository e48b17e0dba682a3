"""Few numbers for many: percentiles of measured values, and the spread of a ratio over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmony.bench.results import Ratio, Summary


def summarise(values: ArrayLike) -> Summary:
    """Summary of at least one value, in the unit of the values.

    Percentiles are nearest-rank from above (MLPerf's way): a p99 is a value that was measured, never one in between.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return Summary(
        n=len(ordered),
        min=float(ordered[0]),
        median=_at(ordered, 50),
        p90=_at(ordered, 90),
        p99=_at(ordered, 99),
        mean=float(ordered.mean()),
    )


def _at(ordered: NDArray[Any], percent: int) -> float:
    return float(np.percentile(ordered, percent, method="inverted_cdf"))


def ratio(rounds: Sequence[float]) -> Ratio:
    """Median, lowest and highest of one ratio a round."""
    return Ratio(median=float(np.median(rounds)), low=min(rounds), high=max(rounds), rounds=len(rounds))
