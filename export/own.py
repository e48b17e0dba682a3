"""Bring your own front end: a module of two exits and a cut, loaded by name and held to its contract.

`--module package:factory` names a function without arguments that returns an `nn.Module` with these methods, for n
images, scaled, of shape (n, C, H, W):

    lower(image) → hidden                 one tensor, whatever its shape
    exit1(hidden) → logits (n, own)       or (logits, gate): gate (n, classes) are logits over all classes
    upper(hidden) → feature               (n, channels, height, width), the cut
    exit2(feature) → as exit1
    back_end(feature) → logits            (n, classes), the cloud's part; may be missing

Its code is the user's, and importing it runs it. Its weights are data: a safetensors file with the names of its
`state_dict`. All shapes are found by running it once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ConfigError
from harmony.core.models import FrontEnd
from harmony.core.spec import FeatureSpec, ImageSpec
from harmony.core.tensors import load_tensors

NEEDED = ("lower", "exit1", "upper", "exit2")
MAX_WEIGHT_BYTES = 1 << 30
_SHOWN = 300


class Contract(NamedTuple):
    """What a module has to fit: the images, how many own classes of how many; where: who is blamed if it does not."""

    image: ImageSpec
    own: int
    classes: int
    where: str


class OwnExit(nn.Module):
    """One exit of the user's module, in the words of ours. gate: whether it has an all-class head."""

    def __init__(self, network: nn.Module, name: str, *, gate: bool) -> None:
        super().__init__()
        self.network, self.name, self.gate = network, name, True if gate else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Personal logits (n, own), and gate logits (n, classes) or None."""
        out = getattr(self.network, self.name)(x)
        return (out[0], out[1]) if isinstance(out, tuple) else (out, None)


class OwnFrontEnd(FrontEnd):
    """The user's module where one of ours is expected. Its parameters are those of the whole module."""

    def __init__(self, network: nn.Module, *, gate: bool) -> None:
        nn.Module.__init__(self)
        self.network = network.eval()
        self.exit1 = cast("Any", OwnExit(network, "exit1", gate=gate))
        self.exit2 = cast("Any", OwnExit(network, "exit2", gate=gate))

    def lower(self, image: Tensor) -> Tensor:
        """(n, C, H, W) → hidden."""
        return cast("Tensor", self.network.lower(image))  # type: ignore[operator]

    def upper(self, hidden: Tensor) -> Tensor:
        """Hidden → feature (n, channels, height, width)."""
        return cast("Tensor", self.network.upper(hidden))  # type: ignore[operator]


class OwnBackEnd(nn.Module):
    """The cloud's part of the user's module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return cast("Tensor", self.network.back_end(feature))  # type: ignore[operator]


def load_own(module: str, weights: Path | None) -> nn.Module:
    """The user's module with its weights, in eval mode. ConfigError, ArtifactMissing, ArtifactCorrupt."""
    network = _call(_factory(module), module)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"returned {type(network).__name__}, not an nn.Module", where=module)
    missing = [name for name in NEEDED if not callable(getattr(network, name, None))]
    if missing:
        raise ConfigError(
            f"the module has no {', '.join(missing)}", where=module, mend=f"it needs the methods {', '.join(NEEDED)}"
        )
    if weights is not None:
        _load(network, weights)
    return network.eval()


def _factory(module: str) -> Callable[[], object]:
    package, _, name = module.partition(":")
    if not package or not name:
        raise ConfigError(f"'{module}' names no function", where="--module", mend="write package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: the user's file lies where the user is
    try:
        found = getattr(importlib.import_module(package), name, None)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(f"cannot be imported: {_words(error)}", where=package, mend="correct --module") from None
    if not callable(found):
        raise ConfigError(f"has no function '{name}'", where=package, mend="correct --module")
    return cast("Callable[[], object]", found)


def _call(factory: Callable[[], object], where: str) -> object:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"fails: {_words(error)}", where=where, mend="it is called without arguments") from None


def _load(network: nn.Module, weights: Path) -> None:
    if not weights.is_file():
        raise ArtifactMissing("no such file", where=weights, mend="correct --weights")
    if weights.stat().st_size > MAX_WEIGHT_BYTES:
        raise ArtifactCorrupt(f"is larger than {MAX_WEIGHT_BYTES} bytes", where=weights)
    tensors = {name: torch.from_numpy(value) for name, value in load_tensors(weights).items()}
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        problem = f"these are not the weights of the module: {_words(error)}"
        raise ArtifactCorrupt(problem, where=weights, mend="save its state_dict") from None
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise ArtifactCorrupt("holds weights that are not finite", where=weights, mend="train again")


def front_end_of(network: nn.Module, contract: Contract) -> tuple[OwnFrontEnd, FeatureSpec]:
    """The module as a front end, and the cut that it ends in. ConfigError where it breaks its contract."""
    image, where = contract.image, contract.where
    blank = torch.zeros(1, image.channels, image.height, image.width)
    hidden = _run(network, "lower", blank, where)
    feature = _run(network, "upper", _tensor(hidden, "lower", where), where)
    if _tensor(feature, "upper", where).dim() != 4 or len(feature) != 1:
        raise ConfigError(f"upper gives {tuple(feature.shape)}", where=where, mend="a feature is (n, channels, h, w)")
    gates = {_has_gate(network, name, x, contract) for name, x in (("exit1", hidden), ("exit2", feature))}
    if len(gates) == 2:
        raise ConfigError("one exit has a gate, the other has none", where=where, mend="give both one, or neither")
    _, channels, height, width = feature.shape
    return OwnFrontEnd(network, gate=gates.pop()), FeatureSpec(channels=channels, height=height, width=width)


def back_end_of(network: nn.Module, feature: FeatureSpec, contract: Contract) -> OwnBackEnd | None:
    """The cloud's part, None if the module has none. ConfigError where it breaks its contract."""
    if not callable(getattr(network, "back_end", None)):
        return None
    logits = _run(network, "back_end", torch.zeros(2, *feature.shape), contract.where)
    _require_shape(logits, (2, contract.classes), "back_end", contract.where)
    return OwnBackEnd(network)


def _has_gate(network: nn.Module, name: str, x: Tensor, contract: Contract) -> bool:
    where, out = contract.where, _run(network, name, x, contract.where)
    logits, gate = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    _require_shape(logits, (1, contract.own), name, where)
    if gate is not None:
        _require_shape(gate, (1, contract.classes), f"the gate of {name}", where)
    return gate is not None


def _run(network: nn.Module, name: str, x: Tensor, where: str) -> Any:
    try:
        with torch.no_grad():
            return getattr(network, name)(x)
    except Exception as error:
        problem = f"{name} fails on an input {tuple(x.shape)}: {_words(error)}"
        raise ConfigError(problem, where=where, mend="see the contract in docs/own-front-end.md") from None


def _tensor(value: Any, name: str, where: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} gives {kind}, not a float32 tensor", where=where)
    return value


def _require_shape(value: Any, shape: tuple[int, ...], name: str, where: str) -> None:
    if tuple(_tensor(value, name, where).shape) != shape:
        raise ConfigError(
            f"{name} gives {tuple(value.shape)}, not {shape}", where=where, mend="correct the module, --own or --data"
        )


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
