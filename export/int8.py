"""Bundles with weights and activations of 8 bits, sealed only if the device goes on saying the same.

Each client's programs are quantised for themselves, on images of its own training split. What they say of images that
nobody trained on is held against the network as it was, and the exits are calibrated anew on what they say themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.bundle import VECTORS, Tolerance, write_vectors
from harmony.core.calibration import thresholds
from harmony.core.checkpoint import ClientRecord, client_file, load_tensors
from harmony.core.errors import ConfigError, ParityFailed
from harmony.core.models import FrontEnd
from harmony.core.scores import Floats, score
from harmony.core.sealed import seal
from harmony.core.signing_keys import SecretKey
from harmony.export.bundles import ENGINE_OF, FILES, Source, device_manifest, outputs, write_learning, writing
from harmony.export.client_images import ClientImages, RunImages
from harmony.export.executorch_program import ROLE
from harmony.export.int8_executorch import quantise_executorch
from harmony.export.int8_onnx import quantise_onnx
from harmony.export.lowering import Blueprint
from harmony.export.networks import front_end, parameters
from harmony.export.parity import Vectors, compare, front_end_vectors, run_executorch, run_onnx
from harmony.export.report import EngineReport, ExportReport
from harmony.export.training import Programs

MIN_AGREEMENT = 0.99
FARTHEST = Tolerance(absolute=1.0, relative=1.0)
"""How far 8 bits may lie from the test vectors at all."""
_MARGIN = 2.0  # other machines round elsewhere
Run = Callable[[Floats], Vectors]


class Int8(NamedTuple):
    """How a run's clients are quantised. min_agreement: share of images for which both exits have to say the same."""

    images: RunImages
    min_agreement: float = MIN_AGREEMENT


class _Subject(NamedTuple):
    who: str
    draft: Path
    network: FrontEnd
    vectors: Vectors
    images: ClientImages
    min_agreement: float


class _Made(NamedTuple):
    report: EngineReport
    held_out: Vectors


def write_int8_client(
    source: Source,
    client: ClientRecord,
    blueprints: Sequence[Blueprint],
    images: Floats,
    place: Path,
    *,
    int8: Int8,
    keys: Sequence[SecretKey] = (),
    learning: Programs | None = None,
) -> ExportReport:
    """As `write_client`, with 8 bits. ParityFailed where an exit says something else of too many images."""
    started = time.perf_counter()
    path = source.folder / client_file(client.index)
    network = front_end(source.manifest, client, load_tensors(path), path)
    vectors, mine = front_end_vectors(network, images), int8.images.of(client)
    with writing(place) as draft:
        subject = _Subject(f"client {client.index}", draft, network, vectors, mine, int8.min_agreement)
        made = [_add(subject, one) for one in blueprints]
        write_vectors(draft / VECTORS, vectors)
        write_learning(draft, learning)
        manifest = device_manifest(source, client, blueprints, parameters(network), learning)
        worst = max(one.report.max_error for one in made)
        changes = {
            "precision": "int8",
            "tolerance": Tolerance(absolute=min(1.0, round(_MARGIN * worst, 3)), relative=0.0),
            **recalibrated(client, made[0].held_out),
        }
        seal(draft, manifest.model_copy(update=changes), keys)
    return ExportReport(
        bundle=place, client=client.index, architecture=str(client.architecture), parameters=parameters(network),
        engines=tuple(one.report for one in made), kept=False, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _add(subject: _Subject, blueprint: Blueprint) -> _Made:
    """Write one engine's programs. ParityFailed."""
    started, engine = time.perf_counter(), ENGINE_OF[blueprint.format]
    programs, delegated, run = _quantised(subject, blueprint)
    vectors, unseen = subject.vectors, subject.images.unseen
    error = compare(vectors, run(vectors["image"]), FARTHEST, who=subject.who, engine=f"{engine} with int8")
    agreement = agreement_of(subject.network, run(unseen), unseen)
    if agreement < subject.min_agreement:
        raise ParityFailed(
            f"{engine} with int8 agrees with fp32 on {100 * agreement:.1f} % of {len(unseen)} images that nobody "
            f"trained on, {100 * subject.min_agreement:.4g} % are asked for", where=subject.who,
            mend="export it with --precision fp32, or lower --min-agreement",
        )  # fmt: skip
    sizes = {}
    for role, content in programs.items():
        name = FILES[blueprint.format][role]
        (subject.draft / name).write_bytes(content)
        sizes[name] = len(content)
    seconds = time.perf_counter() - started
    return _Made(EngineReport(engine, sizes, error, delegated, seconds, agreement), run(subject.images.held_out))


def _quantised(subject: _Subject, blueprint: Blueprint) -> tuple[dict[str, bytes], float | None, Run]:
    """The programs by role, the share of operators that XNNPACK runs, and what runs the programs."""
    vectors, calibration = subject.vectors, subject.images.calibration
    if blueprint.format == "onnx":
        plain, _ = blueprint.programs(subject.network, torch.from_numpy(vectors["image"][:1]))
        programs = quantise_onnx(plain, calibration)
        return programs, None, partial(run_onnx, programs)
    program, delegated = quantise_executorch(subject.network, calibration)
    programs = {ROLE: program}
    return programs, delegated, partial(run_executorch, programs, names=outputs(vectors))


def agreement_of(network: FrontEnd, found: Vectors, images: Floats) -> float:
    """Share of images for which an exit has the class that eager PyTorch has there: the lesser one of both exits."""
    with torch.no_grad():
        said = network(torch.from_numpy(images))
    return min(
        float((found[f"logits{number}"].argmax(1) == logits.numpy().argmax(1)).mean())
        for number, logits in ((1, said.logits1), (2, said.logits2))
    )


def recalibrated(client: ClientRecord, held_out: Vectors) -> dict[str, Any]:
    """The manifest's `exits` and `held_out` by what a program says of held-out images; none for exits set by hand."""
    first, second = client.exits
    if first.budget is None or second.budget is None:
        return {}
    score1, score2 = (_score(client, held_out, number) for number in (1, 2))
    new1, new2 = thresholds(score1, score2, first.budget, second.budget)
    exits = (first.model_copy(update={"threshold": new1}), second.model_copy(update={"threshold": new2}))
    return {"exits": exits, "held_out": HeldOut.of(np.where(score1 >= np.float32(new1), np.float32(SUREST), score2))}


def _score(client: ClientRecord, held_out: Vectors, number: int) -> NDArray[np.float32]:
    own = np.asarray(client.classes.own, np.int64)
    return score(client.exits[number - 1].score, held_out[f"logits{number}"], held_out.get(f"gate{number}"), own)


def check_agreement(least: float) -> float:
    """ConfigError unless it is a share."""
    if not 0 <= least <= 1:
        raise ConfigError(f"{least} is not a share", where="--min-agreement", mend="choose 0 to 1, for example 0.99")
    return least
