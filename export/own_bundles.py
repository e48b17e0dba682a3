"""Bundles of a user's own module: exits calibrated on the data given, engines held against eager PyTorch, sealed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.bundle import VECTORS, CloudManifest, DeviceManifest, Exit, Fallback, Tolerance, write_vectors
from harmony.core.calibration import thresholds
from harmony.core.config import ExitConfig
from harmony.core.data import Dataset, load
from harmony.core.errors import ConfigError, RunExists
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import Floats, ScoreName, score
from harmony.core.sealed import seal
from harmony.core.signing_keys import SecretKey
from harmony.core.spec import ClassMap, FeatureSpec, ImageSpec
from harmony.export.bundles import ENGINE_OF, FILES, TOLERANCE, add_back_end, add_engine, write_learning, writing
from harmony.export.lowering import Blueprint
from harmony.export.networks import Answers
from harmony.export.own import Contract, OwnFrontEnd, back_end_of, front_end_of, load_own
from harmony.export.own_training import own_training
from harmony.export.parity import Vectors, back_end_vectors, front_end_vectors
from harmony.export.report import ExportReport, Format, OnEvent, check_formats
from harmony.export.training import Programs, Trainable, check_trainable

METHOD = "own"
CALIBRATION_IMAGES, VECTORS_PER_BUNDLE, BATCH = 2000, 8, 32


class Calibrated(NamedTuple):
    """Both exits, what the threshold of exit 2 follows a stream by, and whether the exits have all-class heads."""

    exits: tuple[Exit, Exit]
    held_out: HeldOut | None
    gate: bool


class OwnModule(NamedTuple):
    """What is exported. module: package:factory; own: labels of the device's own classes, ascending; image: how images
    are scaled, None for the data's own mean and deviation; score: None for own_mass where there is a gate, or entropy;
    trainable: whether a device may make the heads personal, which needs the ONNX files.
    """

    module: str
    weights: Path | None
    data: Dataset
    own: tuple[int, ...]
    image: ImageSpec | None = None
    score: ScoreName | None = None
    pass1: float = ExitConfig().pass1
    offload: float = ExitConfig().offload
    trainable: Trainable = "head"


def own_module(
    module: str,
    weights: Path | None,
    data: str,
    *,
    own: str | None = None,
    scale: str | None = None,
    data_dir: Path | None = None,
    trainable: Trainable = "head",
) -> OwnModule:
    """What to export, out of words. own: names or labels of classes, `cat,dog`; scale: `mean,…/std,…` of values in 0…1.

    ConfigError, and what loading the data raises.
    """
    found = load(data, data_dir=data_dir)
    image = found.image_spec()
    image = _scaled(image, scale) if scale else image
    return OwnModule(module, weights, found, _labels(own, found.class_names), image, trainable=trainable)


def _labels(text: str | None, names: Sequence[str]) -> tuple[int, ...]:
    if text is None:
        return tuple(range(len(names)))
    known = {name: label for label, name in enumerate(names)} | {str(label): label for label in range(len(names))}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise ConfigError(
                f"there is no class '{word}'", where="--own", mend=f"choose among {', '.join(names)[:300]}"
            )
    return tuple(sorted({known[word] for word in words}))


def _scaled(image: ImageSpec, text: str) -> ImageSpec:
    try:
        mean, std = (tuple(float(one) for one in part.split(",")) for part in text.split("/"))
        given = {"mean": mean * image.channels if len(mean) == 1 else mean}
        given["std"] = std * image.channels if len(std) == 1 else std
        return ImageSpec.model_validate(image.model_dump() | given)
    except ValueError:
        problem = f"'{text}' is no scale for {image.channels} channels"
        mend = "write mean,…/std,…, one value a channel, for example 0.485,0.456,0.406/0.229,0.224,0.225"
        raise ConfigError(problem, where="--scale", mend=mend) from None


def export_own(
    job: OwnModule,
    out: Path,
    *,
    formats: Sequence[Format],
    index: int = 0,
    keys: Sequence[SecretKey] = (),
    on_event: OnEvent = lambda what, done, total: None,
) -> list[ExportReport]:
    """Export a module to OUT/client-KKK, and its `back_end`, if it has one, to OUT/cloud.

    Thresholds are split-conformal on training images of the own classes: let the module not have learnt from those.
    ConfigError, ArtifactError, RunExists, EngineError, EngineUnavailable, ParityFailed.
    """
    formats = check_formats(formats)
    learns = check_trainable(job.trainable, formats, whole="of a user's own")
    network, image = load_own(job.module, job.weights), job.image or job.data.image_spec()
    contract = Contract(image, len(job.own), job.data.classes, job.module)
    front_end, feature = front_end_of(network, contract)
    back_end = back_end_of(network, feature, contract)
    place, cloud = out / f"client-{index:03d}", out / "cloud"
    for one in (place, cloud) if back_end else (place,):
        if one.exists():
            raise RunExists("is there already", where=one, mend="choose another --out, or remove it first")
    steps = count(1)
    total = len(formats) + 1 + (back_end is not None)
    writer = _Writer(job, image, feature, keys, learns, lambda what: on_event(what, next(steps), total))
    vectors = front_end_vectors(front_end, _spread(job.data.x_test, image))
    reports = [writer.device(front_end, vectors, formats, place, index)]
    if back_end is not None:
        reports.append(writer.cloud(Answers(back_end).eval(), vectors["feature"], cloud))
    return reports


class _Writer(NamedTuple):
    job: OwnModule
    image: ImageSpec
    feature: FeatureSpec
    keys: Sequence[SecretKey]
    trainable: Trainable
    done: Callable[[str], None]

    def device(
        self, front_end: OwnFrontEnd, vectors: Vectors, formats: Sequence[Format], place: Path, index: int
    ) -> ExportReport:
        started, engines = time.perf_counter(), []
        calibrated = _calibrated(self.job, front_end, self.image)
        self.done("thresholds")
        with writing(place) as draft:
            tolerance = _tolerance(vectors)
            for one in formats:
                how = Blueprint(one, None, None)
                engines.append(add_engine(draft, front_end, how, vectors, who=self.job.module, tolerance=tolerance))
                self.done(one)
            write_vectors(draft / VECTORS, vectors)
            learning = self._learning(draft, formats)
            write_learning(draft, learning)
            used = used_parameters(front_end, vectors["image"])
            manifest = self._manifest(calibrated, formats, client=index, parameters=used)
            training = learning.training if learning else None
            seal(draft, manifest.model_copy(update={"tolerance": tolerance, "training": training}), self.keys)
        seconds = time.perf_counter() - started
        return ExportReport(place, index, self.job.module, used, tuple(engines), kept=False, seconds=seconds)

    def _learning(self, draft: Path, formats: Sequence[Format]) -> Programs | None:
        """What the heads learn with, if they may; found in the files that were written."""
        if self.trainable == "none":
            return None
        programs = {role: (draft / name).read_bytes() for role, name in FILES["onnx"].items()}
        engines = [ENGINE_OF[one] for one in formats]
        return own_training(programs, self.job.data.classes, engines, self.job.module)

    def _manifest(
        self, calibrated: Calibrated, formats: Sequence[Format], *, client: int, parameters: int
    ) -> DeviceManifest:
        names = self.job.data.class_names
        return DeviceManifest(
            harmony_version=version("harmony-sfl"),
            run=self.job.module,
            method=METHOD,
            client=client,
            architecture=self.job.module,
            dataset=self.job.data.name,
            image=self.image,
            feature=self.feature,
            classes=ClassMap(names=names, own=self.job.own, tokens=tuple(range(len(names)))),
            exits=calibrated.exits,
            held_out=calibrated.held_out,
            gate=calibrated.gate,
            fallback=Fallback(),
            engines={ENGINE_OF[one]: dict(FILES[one]) for one in formats},
            parameters=parameters,
        )

    def cloud(self, answers: Answers, features: Floats, place: Path) -> ExportReport:
        vectors, used = back_end_vectors(answers, features), used_parameters(answers, features)
        with writing(place) as draft:
            engine = add_back_end(draft, answers, self.feature, vectors)
            manifest = CloudManifest(
                harmony_version=version("harmony-sfl"),
                run=self.job.module,
                method=METHOD,
                feature=self.feature,
                tokens=self.job.data.classes,
                tolerance=TOLERANCE,
                parameters=used,
            )
            seal(draft, manifest, self.keys)
        self.done("cloud")
        return ExportReport(place, None, None, used, (engine,), kept=False, seconds=engine.seconds)


def _tolerance(vectors: Vectors) -> Tolerance:
    """Ours, in proportion to the largest value: a deep network's activations lie far from 1, and so do their errors."""
    largest = max(float(np.abs(value).max()) for name, value in vectors.items() if name != "image")
    return TOLERANCE.model_copy(update={"absolute": min(1.0, TOLERANCE.absolute * max(1.0, largest))})


def used_parameters(network: nn.Module, inputs: Floats) -> int:
    """Parameters that the outputs for the first of the inputs depend on: a module holds both sides of the cut."""
    parameters = [one.requires_grad_() for one in network.parameters()]
    out = network(torch.from_numpy(inputs[:1]))
    total = sum(one.sum() for one in (out if isinstance(out, tuple) else (out,)) if one is not None)
    reached = torch.autograd.grad(total, parameters, allow_unused=True)
    return sum(one.numel() for one, grad in zip(parameters, reached, strict=True) if grad is not None)


def _calibrated(job: OwnModule, front_end: OwnFrontEnd, image: ImageSpec) -> Calibrated:
    """Both exits, and the scores that they rest on, from at most CALIBRATION_IMAGES own training images, evenly."""
    own = np.asarray(job.own)
    mine = np.flatnonzero(np.isin(job.data.y_train, own))
    chosen = mine[np.linspace(0, len(mine) - 1, min(len(mine), CALIBRATION_IMAGES)).astype(np.int64)]
    name: ScoreName = job.score or ("own_mass" if front_end.exit1.gate else "entropy")
    score1, score2 = _scores(front_end, Preprocessor(image), job.data.x_train, chosen, (name, own))
    first, second = thresholds(score1, score2, job.pass1, job.offload)
    exits = (
        Exit(name="exit1", score=name, threshold=first, budget=job.pass1),
        Exit(name="exit2", score=name, threshold=second, budget=job.offload),
    )
    held_out = HeldOut.of(np.where(score1 >= np.float32(first), np.float32(SUREST), score2))
    return Calibrated(exits, held_out, gate=front_end.exit1.gate is not None)


def _scores(
    front_end: OwnFrontEnd,
    scale: Preprocessor,
    images: NDArray[Any],
    chosen: NDArray[np.int64],
    by: tuple[ScoreName, NDArray[np.int64]],
) -> tuple[Floats, Floats]:
    """Scores of both exits for the chosen images, (m,) each."""
    name, own = by
    both: tuple[list[Floats], list[Floats]] = ([], [])
    for part in np.split(chosen, range(BATCH, len(chosen), BATCH)):
        with torch.no_grad():
            out = front_end(torch.from_numpy(scale(images[part])))
        for scores, logits, gate in zip(both, (out.logits1, out.logits2), (out.gate1, out.gate2), strict=True):
            scores.append(score(name, logits.numpy(), None if gate is None else gate.numpy(), own))
    return np.concatenate(both[0]), np.concatenate(both[1])


def _spread(images: NDArray[Any], image: ImageSpec) -> Floats:
    """Test vectors: scaled images, spread over the test set."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), VECTORS_PER_BUNDLE)).astype(np.int64)
    return Preprocessor(image)(images[chosen])
