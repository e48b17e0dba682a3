"""Back ends to measure the service with: of about 39 MFLOP on 64×16×16 features, in float32 and quantised to int8.

Weights are random: what is measured is time. GroupNorm's groups allow widths in steps of 8, so the two next to 39 MFLOP
are 32 (30.7) and 40 (45.0, the default); multiplications and additions count one each.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.utils.flop_counter import FlopCounterMode

from harmony.bench.serving_requests import CUT
from harmony.cloud.models import CLOUD_FOLDER
from harmony.core.bundle import VECTORS, CloudManifest, Exit, write_vectors
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, Tensors, save_checkpoint
from harmony.core.models.back_end import BackEnd
from harmony.core.quiet import quiet
from harmony.core.sealed import digest_of, seal, sealing
from harmony.core.spec import Architecture, ClassMap, ImageSpec

TOKENS = 10
WIDTHS = (32, 40)
PROGRAM = "back_end.onnx"
"""The ONNX file in a bundle."""


def write_bundles(folder: Path, width: int) -> tuple[Path, Path, float]:
    """(float32 bundle, int8 bundle, MFLOP a sample) in `folder`, which must not hold them yet.

    The float32 bundle lies in a run, beside the checkpoint with its weights, so that PyTorch can run them, too.
    """
    run, quantised = folder / "fp32", folder / "int8"
    plain = run / CLOUD_FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / PROGRAM
        flops, weights = _export(program, width)
        _save(run / "checkpoint", weights, width)
        _seal(plain, program, "fp32", digest_of(run / "checkpoint"))
        smaller = Path(scratch) / "int8.onnx"
        _quantise(program, smaller)
        _seal(quantised, smaller, "int8")
    return plain, quantised, flops / 1e6


def _features(rows: int) -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(rows, *CUT.shape))
    return np.maximum(values, 0).astype(np.float32)


def _export(program: Path, width: int) -> tuple[int, Tensors]:
    """Write the ONNX file. Returns FLOP a sample, and the weights."""

    class Answer(torch.nn.Module):
        """Probabilities instead of logits."""

        def __init__(self) -> None:
            super().__init__()
            self.back_end = BackEnd(CUT, width=width, tokens=TOKENS)

        def forward(self, feature: torch.Tensor) -> torch.Tensor:
            """(n, C, H, W) → (n, tokens)."""
            return torch.softmax(self.back_end(feature), dim=-1)

    torch.manual_seed(0)
    model = Answer().eval()
    with quiet():
        torch.onnx.export(
            model,
            (torch.from_numpy(_features(2)),),
            str(program),
            input_names=["feature"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
            dynamo=True,
            external_data=False,
        )
    with FlopCounterMode(display=False) as counter:
        model(torch.from_numpy(_features(1)))
    weights = {name: value.numpy() for name, value in model.back_end.state_dict().items()}
    return int(counter.get_total_flops()), weights


def _save(folder: Path, weights: Tensors, width: int) -> None:
    """A checkpoint with nothing in it but the back end, and one client to whom it belongs."""
    exits = (Exit(name="exit1", score="entropy", threshold=0), Exit(name="exit2", score="entropy", threshold=0))
    tokens = tuple(range(TOKENS))
    client = ClientRecord(
        index=0, architecture=Architecture.parse("resnet-w8-d1"), exits=exits, train_images=1, holdout_images=1,
        classes=ClassMap(names=tuple(map(str, tokens)), own=tokens, tokens=tokens),
    )  # fmt: skip
    manifest = CheckpointManifest(
        harmony_version="0.1.0", run="serving benchmark", method="fp32", round=0, config={}, dataset="none",
        image=ImageSpec(height=32, width=32, channels=1, mean=(0.0,), std=(1.0,)), feature=CUT, back_end_width=width,
        gate=False, clients=(client,),
    )  # fmt: skip
    save_checkpoint(folder, manifest, weights, {0: {"nothing": np.zeros(1, np.float32)}})


def _quantise(program: Path, out: Path) -> None:
    """Static QDQ: weights per channel, activations calibrated on seeded features."""

    class Samples(CalibrationDataReader):  # type: ignore[misc]  # untyped
        """64 features, 8 at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.float32]] = iter(np.split(_features(64), 8))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            """The next batch."""
            batch = next(self._batches, None)
            return None if batch is None else {"feature": batch}

    prepared = program.with_name("prepared.onnx")
    quant_pre_process(str(program), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        Samples(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
    )


def _seal(folder: Path, program: Path, name: str, checkpoint: str | None = None) -> None:
    session = onnxruntime.InferenceSession(str(program), providers=["CPUExecutionProvider"])
    feature = _features(4)
    probabilities = session.run(["probabilities"], {"feature": feature})[0]
    with sealing(folder) as draft:
        shutil.copyfile(program, draft / PROGRAM)
        write_vectors(draft / VECTORS, {"feature": feature, "probabilities": probabilities})
        seal(
            draft,
            CloudManifest(
                harmony_version="0.1.0",
                run="serving benchmark",
                method=name,
                feature=CUT,
                tokens=TOKENS,
                parameters=program.stat().st_size // 4 or 1,
                checkpoint=checkpoint,
            ),
        )
