"""The no-HTTP limit, in a process of its own: CPU-ms a sample of nothing but the model, at the best batch size.

Run as `python -m harmony.bench.serving_probe BUNDLE SECONDS`; prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from harmony.cloud.models import open_model

BATCHES = (8, 16, 32)


def probe(bundle: Path, seconds: float) -> dict[str, float]:
    """CPU-ms a sample for each batch size, `seconds` in all, in turns."""
    model = open_model(bundle)
    feature = np.random.default_rng(0).normal(size=(max(BATCHES), *model.feature.shape)).astype(np.float32)
    spent, done = dict.fromkeys(BATCHES, 0.0), dict.fromkeys(BATCHES, 0)
    for batch in BATCHES:
        model.program.run(feature[:batch])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for batch in BATCHES:
            started = time.process_time()
            for _ in range(64 // batch):
                model.program.run(feature[:batch])
            spent[batch] += time.process_time() - started
            done[batch] += 64
    return {str(batch): 1e3 * spent[batch] / done[batch] for batch in BATCHES}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]), float(sys.argv[2]))) + "\n")
