"""A training step in an engine: weights and Adam's moments stay there, batches go in, losses come out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from harmony.core.errors import ContractMismatch, EngineError
from harmony.core.training import BATCH, BETAS, INPUTS, OUTPUTS
from harmony.device.onnx_engine import open_session

Floats = NDArray[np.float32]
_STATE = INPUTS[:3]
_NEXT = OUTPUTS[2:]


class Form(NamedTuple):
    """What a step is about. weights: numbers that learn; sample: shape of one input; classes: rows of a head."""

    weights: int
    sample: tuple[int, ...]
    classes: int

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of every input, by name."""
        flat = (self.weights,)
        shapes = (flat, flat, flat, (1,), (BATCH, self.classes), (self.classes,), (BATCH, *self.sample))
        return dict(zip(INPUTS, shapes, strict=True))

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of every output, by name."""
        flat = (self.weights,)
        return dict(zip(OUTPUTS, ((1,), flat, flat, flat, flat), strict=True))


class Step(Protocol):
    """A loaded training program."""

    def start(self, weights: Floats) -> None:
        """Begin with these weights (p,), and with moments of zero."""

    def run(self, rate: float, target: Floats, mask: Floats, batch: Floats) -> float:
        """One step of Adam; the loss before it. target (BATCH, classes), mask (classes,), batch (BATCH, …)."""

    def weights(self) -> Floats:
        """The weights as they are now, (p,)."""


class Corrected:
    """Adam's rate, corrected for moments that start at zero (Kingma & Ba 2015, end of section 2)."""

    def __init__(self) -> None:
        self._steps = 0

    def __call__(self, rate: float) -> Floats:
        """The rate of the next step, (1,)."""
        self._steps += 1
        factor = np.sqrt(1 - BETAS[1] ** self._steps) / (1 - BETAS[0] ** self._steps)
        return np.asarray([rate * factor], np.float32)


class OnnxStep:
    """A step in ONNX Runtime. What it gives is what it takes next: nothing is copied in between."""

    def __init__(self, program: bytes, form: Form, where: Path) -> None:
        self._session, self._where = open_session(program, where), where
        _require_ports(self._session.get_inputs(), form.inputs, where)
        _require_ports(self._session.get_outputs(), form.outputs, where)
        self._state: dict[str, Any] = {}
        self._mask = _value(np.zeros(form.classes, np.float32))
        self._rate = Corrected()

    @property
    def notes(self) -> dict[str, str]:
        """The program's metadata."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def start(self, weights: Floats) -> None:
        """See Step."""
        values = (weights.copy(), np.zeros_like(weights), np.zeros_like(weights))
        self._state = {name: _value(value) for name, value in zip(_STATE, values, strict=True)}
        self._rate = Corrected()

    def run(self, rate: float, target: Floats, mask: Floats, batch: Floats) -> float:
        """See Step."""
        fresh = zip(INPUTS[3:], (self._rate(rate), target, mask, batch), strict=True)
        feed = self._state | {name: _value(value) for name, value in fresh}
        try:
            loss, *state = self._session.run_with_ort_values([OUTPUTS[0], *_NEXT], feed)
        except Exception as error:  # the runtime's own exceptions share no base class
            raise EngineError(f"ONNX Runtime failed: {str(error)[:300]}", where=self._where) from None
        self._state = dict(zip(_STATE, state, strict=True))
        return float(loss.numpy()[0])

    def weights(self) -> Floats:
        """See Step."""
        found: Floats = self._state[_STATE[0]].numpy().copy()
        return found


def _value(array: Floats) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _require_ports(ports: Sequence[Any], expected: dict[str, tuple[int, ...]], where: Path) -> None:
    found = {port.name: tuple(port.shape) for port in ports if port.type == "tensor(float)"}
    if found != expected:
        problem = f"takes or gives {found}, the bundle needs {expected}"
        raise ContractMismatch(problem, where=where, mend="export the bundle again")
