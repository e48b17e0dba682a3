"""The front end of a bundle while it is made personal: its files taken apart, what it sees, its heads. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, ExitName
from harmony.core.errors import ConfigError, ContractMismatch, EngineError
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import read_sealed
from harmony.core.training import Head, Training
from harmony.device.onnx_engine import open_session
from harmony.device.personal.onnx_weights import ExitProgram
from harmony.device.personal.steps import Floats

EXITS: tuple[ExitName, ExitName] = ("exit1", "exit2")
Programs = Mapping[ExitName, ExitProgram]


class Seen(NamedTuple):
    """What a front end makes of n images.

    embeddings, gates: of both exits, (n, E) and (n, classes) each, gates None without gate heads; features:
    (n, *FeatureSpec.shape), or (0, …) if they were not asked for.
    """

    embeddings: tuple[Floats, Floats]
    gates: tuple[Floats, Floats] | None
    features: Floats


class Rows(NamedTuple):
    """A linear head. weight: (rows, E); bias: (rows,)."""

    weight: Floats
    bias: Floats

    def of(self, labels: tuple[int, ...]) -> Rows:
        """Some of the rows."""
        return Rows(self.weight[list(labels)], self.bias[list(labels)])

    def __call__(self, embedding: Floats) -> Floats:
        """(n, E) → logits (n, rows)."""
        out: Floats = embedding @ self.weight.T + self.bias
        return out


Heads = tuple[Rows, Rows]


def training_of(manifest: DeviceManifest, bundle: Path) -> Training:
    """What the bundle holds to learn with; ConfigError if it holds nothing."""
    if manifest.training is None or "onnxruntime" not in manifest.engines:
        problem = "holds nothing to learn with"
        raise ConfigError(problem, where=bundle, mend="harmony export --format onnx,executorch --trainable head")
    return manifest.training


def read_programs(bundle: Path, manifest: DeviceManifest) -> dict[ExitName, ExitProgram]:
    """The ONNX files of an opened bundle."""
    files = manifest.engines["onnxruntime"]
    return {name: ExitProgram(read_sealed(bundle, manifest, files[name]), bundle / files[name]) for name in EXITS}


def heads_of(training: Training, exit_: ExitName) -> Head:
    """Where the head of an exit lies."""
    return training.exit1 if exit_ == "exit1" else training.exit2


def own_rows(programs: Programs, manifest: DeviceManifest, training: Training) -> Heads:
    """The personal heads as they are, a row for each own class. ContractMismatch if they are no such heads."""
    rows = len(manifest.classes.own)
    heads = {name: heads_of(training, name) for name in EXITS}
    first, second = (_rows(programs[name], one.weight, one.bias, rows) for name, one in heads.items())
    return first, second


def all_rows(programs: Programs, manifest: DeviceManifest, training: Training, mine: Heads) -> Heads:
    """A row for every class to begin with: the personal head's own, and the gate's, or zeros, for the others."""
    first, second = (
        _all(programs[name], heads_of(training, name), manifest, rows) for name, rows in zip(EXITS, mine, strict=True)
    )
    return first, second


def _rows(program: ExitProgram, weight: str, bias: str, rows: int) -> Rows:
    found = Rows(program.tensor(weight), program.tensor(bias))
    if found.weight.ndim != 2 or (len(found.weight), found.bias.shape) != (rows, (rows,)):
        problem = f"'{weight[:100]}' and '{bias[:100]}' are no head of {rows} classes"
        raise ContractMismatch(problem, where=program.where, mend="export the bundle again")
    return found


def _all(program: ExitProgram, head: Head, manifest: DeviceManifest, mine: Rows) -> Rows:
    own, classes, width = list(manifest.classes.own), len(manifest.classes.names), mine.weight.shape[1]
    rows = Rows(np.zeros((classes, width), np.float32), np.zeros(classes, np.float32))
    if head.gate_weight is not None and head.gate_bias is not None:
        rows = _rows(program, head.gate_weight, head.gate_bias, classes)
        if rows.weight.shape[1] != width:
            problem = f"the gate looks at {rows.weight.shape[1]} numbers, the head at {width}"
            raise ContractMismatch(problem, where=program.where, mend="export the bundle again")
    rows.weight[own], rows.bias[own] = mine.weight, mine.bias
    return rows


class Eyes:
    """Runs both exits for what they see, image by image, as the device does."""

    def __init__(self, programs: Programs, manifest: DeviceManifest, training: Training, bundle: Path) -> None:
        self._prepare, self._gate, self._shape = Preprocessor(manifest.image), manifest.gate, manifest.feature.shape
        self._where = bundle
        self._names: list[list[str]] = []
        self._sessions: list[Any] = []
        for name, carried, gate in (("exit1", "hidden", "gate1"), ("exit2", "feature", "gate2")):
            exit_: ExitName = "exit1" if name == "exit1" else "exit2"
            embedding = programs[exit_].read_with(heads_of(training, exit_).weight)
            where = bundle / manifest.engines["onnxruntime"][exit_]
            self._sessions.append(open_session(programs[exit_].with_output(embedding), where))
            self._names.append([carried, embedding, *([gate] if manifest.gate else [])])

    def look(
        self,
        images: NDArray[Any],
        chosen: NDArray[np.int64],
        on_image: Callable[[int, int], None],
        *,
        features: bool = False,
    ) -> Seen:
        """images: (n, H, W, C), unscaled; chosen: (m,) which of them."""
        rows = []
        for done, index in enumerate(chosen):
            rows.append(self._look(self._prepare(images[index : index + 1]), features))
            on_image(done + 1, len(chosen))
        return self._seen(rows)

    def look_scaled(self, images: Floats) -> Seen:
        """images: (n, C, H, W), scaled; features are asked for."""
        return self._seen([self._look(image, True) for image in np.split(images, len(images))])

    def _look(self, image: Floats, features: bool) -> list[Floats]:
        """embedding1, embedding2, gate1, gate2, feature: those that there are."""
        try:
            first = self._sessions[0].run(self._names[0], {"image": image})
            second = self._sessions[1].run(self._names[1], {"hidden": first[0]})
        except Exception as error:  # the runtime's own exceptions share no base class
            raise EngineError(f"ONNX Runtime failed: {str(error)[:300]}", where=self._where) from None
        gates = [first[2], second[2]] if self._gate else []
        return [first[1], second[1], *gates, *([second[0]] if features else [])]

    def _seen(self, rows: list[list[Floats]]) -> Seen:
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        features = columns[-1] if len(columns) % 2 else np.zeros((0, *self._shape), np.float32)
        return Seen((columns[0], columns[1]), (columns[2], columns[3]) if self._gate else None, features)
