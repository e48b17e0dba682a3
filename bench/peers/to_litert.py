"""A bundle's two segments to .tflite: `python -P to_litert.py FOLDER`, by the interpreter of the LiteRT peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch

from harmony.bench.peers.eager import segments


def main() -> None:
    """Write exit1.tflite and exit2.tflite beside run.json and images.npy."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "run.json").read_text())
    carried = torch.from_numpy(np.load(folder / "images.npy")[:1])
    for name, segment in zip(("exit1", "exit2"), segments(Path(job["run"]), job["client"]), strict=True):
        litert_torch.convert(segment, (carried,)).export(str(folder / f"{name}.tflite"))
        with torch.no_grad():
            carried = segment(carried)[0]


if __name__ == "__main__":
    main()
