"""The step that trains a linear head: one program for a width and an engine, whatever the head stands on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from harmony.core.training import StepEngine
from harmony.export.training_check import check_step
from harmony.export.training_executorch import run_step, step_to_executorch
from harmony.export.training_onnx import run_onnx_step, step_to_onnx
from harmony.export.training_step import Weights, trace

HEAD_FILES: Mapping[StepEngine, str] = {"onnxruntime": "head_step.onnx", "executorch": "head_step.pte"}


@lru_cache(maxsize=32)
def head_step(classes: int, width: int, engine: StepEngine) -> bytes:
    """The program of a head with a row for every class, over embeddings (n, width). ParityFailed, EngineUnavailable."""

    def logits(weights: Weights, embeddings: Tensor) -> list[Tensor]:
        return [functional.linear(embeddings, weights["weight"], weights["bias"])]

    weights, who = {"weight": torch.zeros(classes, width), "bias": torch.zeros(classes)}, f"a head in {engine}"
    step = trace(logits, weights, (width,), classes, who=who)
    if engine == "executorch":
        program = step_to_executorch(step)
        check_step(lambda inputs: run_step(program, inputs), logits, weights, step, who=who)
    else:
        program = step_to_onnx(step, who=who)
        check_step(lambda inputs: run_onnx_step(program, inputs), logits, weights, step, who=who)
    return program
