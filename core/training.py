"""What a bundle holds to learn on the device, and what it says of having learnt. No torch.

A training program is one step, as a plain graph (see `harmony.export.training_step` for what the ports mean):

    weights, mean, square (p,), rate (1,), target (BATCH, classes), mask (classes,), input (BATCH, …)
    →  loss (1,), gradient (p,), weights.next, mean.next, square.next (p,)

All float32. What lies where in the flat vectors of the front end's step is written in the program itself (see
`harmony.core.training_parts`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harmony.core.sealed import FileName, Sha256
from harmony.core.spec import Frozen

BATCH = 16
"""Samples of a step: static, since that is quicker and bounds the memory; fewer are filled up with zero targets."""
INPUTS = ("weights", "mean", "square", "rate", "target", "mask", "input")
OUTPUTS = ("loss", "gradient", "weights.next", "mean.next", "square.next")
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam (Kingma & Ba 2015)."""
EXCLUDED = -1e9
"""Added to the logit of a class that takes no part: its softmax is 0 exactly, and so is its gradient."""
Tensor = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(ge=0, le=1)]
What = Literal["head", "front-end"]
StepEngine = Literal["onnxruntime", "executorch"]


class Head(Frozen):
    """The personal head of an exit, and its gate if it has one, as tensors of the exit's ONNX file.

    The node that reads `weight` reads the embedding, too.
    """

    weight: Tensor
    bias: Tensor
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None


class Training(Frozen):
    """Programs that a device learns with. head: by engine; front_end: of ONNX Runtime, None where it was not asked for.

    embedding: numbers that a head looks at; those of a head that looks at fewer are filled up with zeros.
    """

    head: Annotated[dict[StepEngine, FileName], Field(min_length=1)]
    front_end: FileName | None = None
    exit1: Head
    exit2: Head
    embedding: Annotated[int, Field(ge=1, le=1 << 16)]

    @property
    def files(self) -> dict[str, str]:
        """Role → file."""
        found: dict[str, str] = {f"training.head.{engine}": name for engine, name in self.head.items()}
        return found | ({} if self.front_end is None else {"training.front_end": self.front_end})


class Personal(Frozen):
    """That a bundle was made personal on a device, from which, and what it was worth there.

    version: 1 for the first; parent, origin: the manifests of the bundle before, and of the exported one; images: of
    the user, learnt from and held out; before, after: held-out accuracy of the device alone; vectors: the test vectors
    are what this engine itself answered, for want of a reference.
    """

    version: Annotated[int, Field(ge=1, le=1_000_000)]
    parent: Sha256
    origin: Sha256
    what: What
    engine: StepEngine
    train_images: Annotated[int, Field(ge=1)]
    holdout_images: Annotated[int, Field(ge=1)]
    before: Share
    after: Share
    vectors: Literal["onnxruntime"] = "onnxruntime"
