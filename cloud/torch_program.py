"""One back end in PyTorch, from the weights of a checkpoint: as harmony.cloud.program, in float32 or bfloat16.

The only module of the service that loads torch; nothing imports it but by name, when it is asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.bundle import CloudManifest
from harmony.core.checkpoint import BACK_END, load_tensors, open_checkpoint
from harmony.core.errors import ArtifactCorrupt, ContractMismatch, EngineUnavailable
from harmony.core.models.back_end import BackEnd
from harmony.core.sealed import digest_of

Floats = NDArray[np.float32]


class TorchProgram:
    """A back end whose weights are those of the manifest's checkpoint. `run` is called by one thread at a time."""

    platform = "pytorch_libtorch"

    def __init__(self, checkpoint: Path, manifest: CloudManifest) -> None:
        """In float32. ContractMismatch if the checkpoint is another, or has no back end for all."""
        torch.set_num_threads(1)
        if manifest.checkpoint != digest_of(checkpoint):
            raise ContractMismatch("the bundle was exported from another checkpoint", where=checkpoint)
        self._dtype = torch.float32
        self._network = _load(checkpoint, manifest)

    def to_bfloat16(self) -> None:
        """Compute in bfloat16 from now on. EngineUnavailable on a processor without its instructions."""
        if not has_bfloat16():
            raise EngineUnavailable("this processor has no bfloat16 instructions", mend="--engine torch")
        self._dtype = torch.bfloat16
        self._network.to(self._dtype)

    @torch.inference_mode()
    def run(self, feature: Floats) -> Floats:
        """feature: (n, C, H, W), C-contiguous. Returns (n, tokens)."""
        logits = self._network(torch.from_numpy(feature).to(self._dtype))
        probabilities: Floats = torch.softmax(logits.float(), dim=1).numpy()
        return probabilities


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; one that does not takes longer with it than without."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _load(checkpoint: Path, manifest: CloudManifest) -> BackEnd:
    known = open_checkpoint(checkpoint)
    path = checkpoint / BACK_END
    if not path.is_file():
        raise ContractMismatch("each client has a back end of its own; there is none for all", where=checkpoint)
    network = BackEnd(known.feature, width=known.back_end_width, tokens=manifest.tokens)
    try:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in load_tensors(path).items()})
    except RuntimeError as error:
        raise ArtifactCorrupt(f"does not fit: {str(error)[:200]}", where=path) from None
    return network.eval()
