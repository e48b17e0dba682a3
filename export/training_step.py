"""One training step as a plain graph: loss, gradient, and what Adam makes of the weights.

    weights, mean, square (p,)   all weights that learn, one after the other, and Adam's two moments of them
    rate (1,)                    the learning rate, already corrected for the moments' start at zero
    target (n, classes)          how much each class of each sample counts; zeros: the sample does not
    mask (classes,)              added to the logits: 0 for classes that take part, `EXCLUDED` for the others
    input (n, …)                 images, or embeddings
    →  loss (1,), gradient (p,), and the next weights, mean, square (p,)

One flat vector keeps the ports few, whatever is trained: a device swaps three arrays and knows nothing of layers.
The step is traced, not written by hand, so that it is the network's own gradient that leaves the house.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from harmony.core.errors import EngineError
from harmony.core.training import BATCH, BETAS, EPSILON

Weights = Mapping[str, Tensor]
Logits = Callable[[Weights, Tensor], Sequence[Tensor]]
"""(weights by name, inputs (n, …)) → the logits (n, classes) of every exit."""
_SPLIT_UP = (
    torch.ops.aten.native_group_norm_backward,
    torch.ops.aten._log_softmax_backward_data,
    torch.ops.aten._softmax_backward_data,
    torch.ops.aten.threshold_backward,
    torch.ops.aten.detach,
    torch.ops.aten.t,
)
_KNOWN_WRONG = {
    "max_pool": "its gradient is silently wrong in ExecuTorch",
    "avg_pool": "ExecuTorch has no gradient of it",
    "batch_norm": "its statistics move while it learns, which no plain graph can keep",
    "dropout": "it draws at random, which no plain graph can do",
    "bernoulli": "it draws at random, which no plain graph can do",
}
_MEND = "use convolutions with stride, global means and GroupNorm, or --trainable none"


class Step(NamedTuple):
    """A traced step: the graph, and a batch of zeros for each of its inputs, in the order of `INPUTS`."""

    graph: GraphModule
    inputs: tuple[Tensor, ...]


def trace(logits: Logits, weights: Weights, sample: Sequence[int], classes: int, *, who: str) -> Step:
    """The step that trains `weights`. sample: shape of one input without the batch; who: names it in errors.

    EngineError, naming the operator, for one that is known to train wrongly.
    """
    sizes, shapes = [one.numel() for one in weights.values()], [one.shape for one in weights.values()]

    def step(flat: Tensor, mean: Tensor, square: Tensor, rate: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        parts = zip(flat.split_with_sizes(sizes), shapes, strict=True)
        leaves = [part.view(shape).detach().requires_grad_() for part, shape in parts]
        loss = loss_of(logits(dict(zip(weights, leaves, strict=True)), batch[2]), batch[0], batch[1])
        gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, leaves)])
        return loss.detach().reshape(1), gradient, *adam(flat, mean, square, gradient, rate)

    every = (*[(sum(sizes),)] * 3, (1,), (BATCH, classes), (classes,), (BATCH, *sample))
    inputs = tuple(torch.zeros(shape) for shape in every)  # one tensor each: the tracer knows them by identity
    table = get_decompositions(_SPLIT_UP)
    graph = make_fx(step, decomposition_table=table)(*inputs)  # type: ignore[arg-type]
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _refuse_wrong(graph, who)
    return Step(graph, inputs)


def loss_of(logits: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy among the classes that the mask lets through, summed over exits and weighed by target."""
    return reduce(torch.add, [-(target * functional.log_softmax(one + mask, 1)).sum() for one in logits])


def adam(flat: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Adam (Kingma & Ba 2015, algorithm 1 with the correction folded into the rate, end of section 2)."""
    mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
    return flat - rate * mean / (square.sqrt() + EPSILON), mean, square


def flatten(weights: Weights) -> Tensor:
    """The flat vector of weights, (p,)."""
    return torch.cat([one.detach().reshape(-1) for one in weights.values()])


def _refuse_wrong(graph: GraphModule, who: str) -> None:
    for node in graph.graph.nodes:
        for name, reason in _KNOWN_WRONG.items():
            if node.op == "call_function" and name in str(node.target):
                raise EngineError(f"cannot be trained on a device: {node.target}, {reason}", where=who, mend=_MEND)
