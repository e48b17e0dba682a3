"""PyTorch to ONNX: self-contained files, one a segment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harmony.core.errors import EngineUnavailable
from harmony.core.models import FrontEnd
from harmony.core.quiet import quiet
from harmony.core.spec import FeatureSpec
from harmony.export.networks import Answers, Segment, parameters
from harmony.export.template import Span, Template, make_template

if TYPE_CHECKING:
    import onnx


def front_end_to_onnx(front_end: FrontEnd, image: Tensor) -> dict[str, bytes]:
    """Both exits by role, for one image (1, C, H, W): static batch 1, ports named as `harmony.core.bundle` says."""
    gate = ("gate1", "gate2") if front_end.exit1.gate is not None else ()
    names = {"exit1": ("image", "hidden", "logits1", *gate[:1]), "exit2": ("hidden", "feature", "logits2", *gate[1:])}
    with torch.no_grad():
        inputs = {"exit1": image, "exit2": front_end.lower(image)}
    return {role: _export(Segment(front_end, role), inputs[role], names[role], dynamic=False) for role in names}


def onnx_template(numbered: FrontEnd, image: Tensor) -> Template | None:
    """The template of a numbered front end. Constants lie at any byte of an ONNX file, so each is looked for."""
    import onnx  # noqa: PLC0415

    programs = front_end_to_onnx(numbered, image)
    spans = [
        Span(role, program.find(constant.raw_data), len(constant.raw_data))
        for role, program in programs.items()
        for constant in onnx.load_from_string(program).graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT and program.count(constant.raw_data) == 1
    ]
    return make_template(programs, spans, parameters(numbered))


def back_end_to_onnx(back_end: Answers, feature: FeatureSpec) -> bytes:
    """The back end: feature (n, *FeatureSpec.shape) → probabilities (n, tokens), n free."""
    return _export(back_end, torch.zeros(2, *feature.shape), ("feature", "probabilities"), dynamic=True)


def _export(network: nn.Module, sample: Tensor, names: tuple[str, ...], *, dynamic: bool) -> bytes:
    """names: the input, then the outputs."""
    try:
        import onnx  # noqa: F401, PLC0415  (the exporter's own complaint about it is a traceback)
        import onnxscript  # noqa: F401, PLC0415
    except ImportError:
        raise EngineUnavailable("the ONNX exporter is missing", mend="pip install 'harmony-sfl[export]'") from None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network.eval(),
            (sample,),
            dynamo=True,
            verbose=False,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic else None,
        )
    assert program is not None  # noqa: S101  (None is for dynamo=False)
    serialised: bytes = _bare(program.model_proto).SerializeToString()
    return serialised


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter notes for debugging: half of a small file, and the paths of this machine's sources."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for port in (*model.graph.input, *model.graph.output):
        port.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    return model
