"""The programs that a device learns with: made once for a shape, held against eager gradients, written into bundles.

none        nothing
head        the personal heads: 2 KB for ONNX Runtime, 9 KB for ExecuTorch, whatever the front end: the default
front-end   besides, everything but the gates, for ONNX Runtime: some 50 KB, a quarter of a small front end's own
            files, and a second or two of the export for each shape. So it has to be asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harmony.core.errors import ConfigError, EngineError
from harmony.core.models.front_end import EXIT_WIDTH
from harmony.core.spec import FeatureSpec, ImageSpec
from harmony.core.training import Head, StepEngine, Training
from harmony.core.training_parts import PARTS_KEY, Part, parts_text
from harmony.export.networks import Shape, empty_front_end
from harmony.export.onnx_program import front_end_to_onnx
from harmony.export.report import Format
from harmony.export.template import Template, number
from harmony.export.training_check import check_step
from harmony.export.training_heads import HEAD_FILES, head_step
from harmony.export.training_onnx import run_onnx_step, step_to_onnx
from harmony.export.training_step import Weights, trace

Trainable = Literal["none", "head", "front-end"]
TRAINABLE: tuple[Trainable, ...] = ("none", "head", "front-end")
FRONT_END_FILE = "front_end_step.onnx"


class Federation(NamedTuple):
    """What the shapes of a run have in common. classes: all there are, since a head may learn any of them."""

    image: ImageSpec
    feature: FeatureSpec
    classes: int


class Programs(NamedTuple):
    """Training programs by file name, and what the manifest says of them."""

    files: Mapping[str, bytes]
    training: Training


def check_trainable(trainable: Trainable, formats: Sequence[Format], *, whole: str | None = None) -> Trainable:
    """What a device will be able to learn: nothing without the ONNX files, which are those that it rewrites.

    whole: why this front end cannot learn as a whole, if it cannot. ConfigError.
    """
    if trainable not in TRAINABLE:
        raise ConfigError(f"'{trainable}' is nothing to train", where="--trainable", mend=", ".join(TRAINABLE))
    if trainable == "front-end" and whole is not None:
        raise ConfigError(f"a front end {whole} cannot learn as a whole", where="--trainable", mend="choose head")
    if "onnx" in formats:
        return trainable
    if trainable == "front-end":
        raise ConfigError("a front end is trained in ONNX Runtime", where="--trainable", mend="add onnx to --format")
    return "none"


def training_files(what: Trainable, engines: Sequence[StepEngine]) -> set[str]:
    """Names of the files that `training_programs` gives."""
    heads = set() if what == "none" else {HEAD_FILES[engine] for engine in engines}
    return heads | ({FRONT_END_FILE} if what == "front-end" else set())


@lru_cache(maxsize=32)
def _front_end_step(federation: Federation, shape: Shape, parts: tuple[tuple[str, Part], ...]) -> bytes:
    """The whole of a front end but its gates; its heads have a row for every class."""
    network = empty_front_end(federation.image, federation.feature, federation.classes, _all_rows(federation, shape))
    weights = {name: one.detach() for name, one in network.named_parameters()}

    def logits(weights: Weights, images: Tensor) -> list[Tensor]:
        out = functional_call(network, dict(weights), (images,))
        return [out.logits1, out.logits2]

    image, who, places = federation.image, f"the whole {shape.architecture}", dict(parts)
    step = trace(logits, weights, (image.channels, image.height, image.width), federation.classes, who=who)
    mine = [places[name].model_copy(update={"shape": tuple(one.shape)}) for name, one in weights.items()]
    program = step_to_onnx(step, {PARTS_KEY: parts_text(mine)}, who=who)
    check_step(lambda inputs: run_onnx_step(program, inputs), logits, weights, step, who=who)
    return program


def training_programs(
    federation: Federation, shape: Shape, template: Template | None, engines: Sequence[StepEngine], what: Trainable
) -> Programs:
    """What every client of a shape learns with. template: of its ONNX files, or None: then they are lowered here.

    EngineError for what cannot be trained, naming the operator; ParityFailed for a gradient that is not PyTorch's.
    """
    parts = _parts(federation, shape, template)
    files = {HEAD_FILES[engine]: head_step(federation.classes, EXIT_WIDTH, engine) for engine in engines}
    if what == "front-end":
        trained = tuple((name, one) for name, one in parts.items() if ".gate." not in name)
        files[FRONT_END_FILE] = _front_end_step(federation, shape, trained)
    training = Training(
        head={engine: HEAD_FILES[engine] for engine in engines},
        front_end=FRONT_END_FILE if what == "front-end" else None,
        exit1=_head(parts, "exit1", gate=shape.gate),
        exit2=_head(parts, "exit2", gate=shape.gate),
        embedding=EXIT_WIDTH,
    )
    return Programs(files, training)


def _all_rows(federation: Federation, shape: Shape) -> Shape:
    return Shape(shape.architecture, federation.classes, gate=False)


def _parts(federation: Federation, shape: Shape, template: Template | None) -> dict[str, Part]:
    """Where each weight lies in the ONNX files: a tensor with exactly its bytes, which no other has."""
    import onnx  # noqa: PLC0415  (an extra)

    network = empty_front_end(federation.image, federation.feature, federation.classes, shape)
    if template is not None and number(network):
        programs = template.programs
    else:  # as in a template, no two weights may look alike
        _fill_with_noise(network)
        image = federation.image
        programs = front_end_to_onnx(network, torch.zeros(1, image.channels, image.height, image.width))
    where = {
        tensor.raw_data: (role, tensor.name)
        for role, program in programs.items()
        for tensor in onnx.load_from_string(program).graph.initializer
    }
    parts = {}
    for name, value in network.named_parameters():
        place = where.get(value.detach().numpy().astype("<f4").tobytes())
        if place is None:
            raise _unplaced(f"{shape}: {name}")
        parts[name] = Part.model_validate({"exit": place[0], "tensor": place[1], "shape": tuple(value.shape)})
    return parts


@torch.no_grad()
def _fill_with_noise(network: nn.Module) -> None:
    """Give every weight a value of its own, in place."""
    random = torch.Generator().manual_seed(0)
    for one in network.parameters():
        one.copy_(torch.randn(one.shape, generator=random))


def _unplaced(where: str) -> EngineError:
    problem = "is not found in the ONNX files as it was, so that no device could replace it"
    return EngineError(problem, where=where, mend="use --trainable none")


def _head(parts: Mapping[str, Part], exit_: str, *, gate: bool) -> Head:
    names = {"weight": "head.weight", "bias": "head.bias"}
    names |= {"gate_weight": "gate.weight", "gate_bias": "gate.bias"} if gate else {}
    return Head(**{role: parts[f"{exit_}.{name}"].tensor for role, name in names.items()})
