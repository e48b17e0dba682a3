"""The attention family in every engine: bmm, softmax and reshapes must not end a delegate, nor a template."""

from __future__ import annotations

import numpy as np
import torch

from harmony.core.bundle import Tolerance
from harmony.core.models import FrontEnd, feature_spec
from harmony.core.spec import Architecture, ImageSpec
from harmony.export.executorch_program import executorch_template
from harmony.export.onnx_program import onnx_template
from harmony.export.parity import compare, front_end_vectors, run_executorch, run_onnx
from harmony.export.template import number

OUTPUTS = {"exit1": ("hidden", "logits1", "gate1"), "exit2": ("feature", "logits2", "gate2")}
TOLERANCE = Tolerance(absolute=1e-4, relative=0)
IMAGE = ImageSpec(height=33, width=31, channels=3, mean=(0,) * 3, std=(1,) * 3)  # 17 × 16 patches, odd and unlike sides


def front_end() -> FrontEnd:
    torch.manual_seed(0)
    architecture = Architecture.parse("patch-w16-d1")
    return FrontEnd(architecture, IMAGE, feature_spec(IMAGE, 8), outputs=3, gate=10).eval()


def client() -> tuple[FrontEnd, np.ndarray]:
    """Weights that make the attention sharp and every channel count, and images."""
    network = front_end()
    for one in network.parameters():
        one.data += 0.2 * torch.randn_like(one)
    return network, np.random.default_rng(0).standard_normal((4, 3, 33, 31), np.float32)


def numbered() -> FrontEnd:
    network = front_end()
    assert number(network)
    return network


def test_executorch_takes_the_whole_graph_and_one_lowering_serves_every_client() -> None:
    (network, images), sample = client(), torch.zeros(1, 3, 33, 31)
    template, delegated = executorch_template(numbered(), sample)
    assert delegated == 1
    assert template is not None
    found = run_executorch(template.fill(network), images, OUTPUTS)
    compare(front_end_vectors(network, images), found, TOLERANCE, who="patch", engine="executorch")


def test_onnx_answers_alike_and_one_lowering_serves_every_client() -> None:
    (network, images), sample = client(), torch.zeros(1, 3, 33, 31)
    template = onnx_template(numbered(), sample)
    assert template is not None
    found = run_onnx(template.fill(network), images)
    compare(front_end_vectors(network, images), found, TOLERANCE, who="patch", engine="onnx")
