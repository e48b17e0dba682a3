"""Training configs: TOML files checked field by field. No torch."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from harmony.core.errors import ConfigError
from harmony.core.partition import ClassesPerClient, PartitionSpec
from harmony.core.scores import ScoreName
from harmony.core.sealed import write_atomically
from harmony.core.spec import Architecture, Finite, Frozen

_MAX_BYTES = 1 << 20
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Method = Literal["harmony", "splitgp", "local", "lg_fedavg", "heterofl", "fedproto", "fedtgp", "fedgh"]


def _writable(text: str) -> str:
    """A name from the command line may hold bytes that are no UTF-8, which TOML cannot: UnicodeError, a ValueError."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_writable)]


class Table(Frozen):
    """A table of the file. Strict: `rounds = true`, 2.5 or "40" is a mistake, not a number of rounds."""

    model_config = ConfigDict(strict=True)


class DataConfig(Table):
    """Which images. name: a named set or a path; holdout: share of each client's images kept for calibration.

    own_test: 0 judges every client by the official test images; more than that first merges them with the training
    images, deals all of them to the clients, and judges each by this share of its own (HtFE8 and PFLlib: 0.25).
    shift, mirror: augmentation of the batches that train: pixels by which an image is moved at most, either way, and
    whether every second is turned left to right.
    """

    name: Text = "fashion-mnist-mini"
    folder: Text | None = None
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    own_test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Annotated[int, Field(ge=0, le=64)] = 0
    mirror: bool = False


class TokenConfig(Table):
    """Under which token the cloud knows a class, and how truly it is told.

    key_file: 32 secret bytes (see harmony.core.tokens) that decide both; without it they follow from the run's seed,
    which is for simulations only; epsilon: the token of each training image is told under randomised response with this
    ε, drawn once an image; without it the truth is told.
    """

    key_file: Text | None = None
    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None


class SplitGPConfig(Table):
    """SplitGP (Han et al., INFOCOM 2023). `mixing`: λ, the share of its own weights that a client keeps each round."""

    mixing: Share = 0.2


class HeteroFLConfig(Table):
    """HeteroFL (Diao et al., ICLR 2021). `masked`: a client's classes alone count in its loss of the back end, too."""

    masked: bool = True


class FedProtoConfig(Table):
    """FedProto (Tan et al., AAAI 2022). `pull`: λ, the weight of the distance to the class's global prototype."""

    pull: Annotated[Finite, Field(ge=0)] = 1.0


class FedTGPConfig(Table):
    """FedTGP (Zhang et al., AAAI 2024).

    pull: as in FedProto; margin: τ, the most that another prototype has to be farther away; server_steps, server_rate:
    steps of the server's training of the prototypes in a round, and their learning rate.
    """

    pull: Annotated[Finite, Field(ge=0)] = 1.0
    margin: Annotated[Finite, Field(ge=0)] = 100.0
    server_steps: Positive = 100
    server_rate: Annotated[Finite, Field(gt=0, le=10)] = 1e-2


class FedGHConfig(Table):
    """FedGH (Yi et al., ACM MM 2023).

    server_steps, server_rate: steps of the server's training of the header in a round, and their learning rate.
    """

    server_steps: Positive = 100
    server_rate: Annotated[Finite, Field(gt=0, le=10)] = 1e-2


class HarmonyConfig(Table):
    """The parts of HARMONY; each can be switched off.

    simulate: clients run each other's architectures in turn, rather than only their own; inner_steps: steps of
    personalisation that a client simulates before its features count (0 switches it off), of size inner_rate, on the
    share inner_share of the architectures at a step; contrast: weight of the server-side contrastive loss (0 switches
    it off); temperature: of that loss; personalize: what a client makes its own at the end: its heads, over the shared
    extractor, or its whole front end but the gates; personalize_epochs: passes over its own images that train the heads
    (0 leaves them as the gate's rows); personalize_steps, personalize_rate: batches of its own images that then train
    the whole front end, and their learning rate (Muon's changes with it as Adam's does).
    """

    simulate: bool = True
    inner_steps: Annotated[int, Field(ge=0, le=16)] = 0
    inner_rate: Annotated[Finite, Field(gt=0)] = 0.01
    inner_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    contrast: Annotated[Finite, Field(ge=0)] = 0.0
    temperature: Annotated[Finite, Field(gt=0)] = 0.1
    personalize: Literal["heads", "front-end"] = "heads"
    personalize_epochs: Annotated[int, Field(ge=0)] = 10
    personalize_steps: Annotated[int, Field(ge=0)] = 20
    personalize_rate: Annotated[Finite, Field(gt=0, le=10)] = 1e-3


class ExitConfig(Table):
    """Which score decides at each exit, and how many held-out in-distribution images it may let pass on.

    pass1: share of held-out images that exit 1 passes on to stage 2 (1: nobody leaves there);
    offload: share that goes to the cloud in the end.
    """

    score: ScoreName = "own_mass"
    pass1: Share = 0.5
    offload: Share = 0.05


class TrainConfig(Table):
    """One federation, from its data to its exits. Architectures are dealt to the clients in turn.

    A round is `steps` batches of every client that takes part. participation: the share of clients drawn for a round.
    optimizer: what takes the steps of training; learning_rate: Adam's at the start; muon_rate: Muon's, for convolutions
    (the rest stays Adam's); both are annealed to 0. precision: of layers and what lies between them while training;
    weights, losses and whatever is saved are float32. gamma: weight of the exits' loss against the back end's. device:
    where rounds are computed; a GPU sums in orders of its own, so a run does not move from one to the other.
    """

    method: Method = "harmony"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = DataConfig()
    partition: PartitionSpec = ClassesPerClient(clients=8, classes=3)
    architectures: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = (
        "resnet-w16-d1",
        "mobilenet-w16-d1",
        "resnet-w24-d1",
        "mobilenet-w24-d1",
    )
    back_end_width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 32
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    rounds: Positive = 60
    steps: Positive = 10
    batch: Positive = 16
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 4e-3
    optimizer: Literal["adam", "muon"] = "adam"
    muon_rate: Annotated[float, Field(gt=0, le=10)] = 0.02
    precision: Literal["float32", "bfloat16"] = "float32"
    gamma: Share = 0.5
    tokens: TokenConfig = TokenConfig()
    exits: ExitConfig = ExitConfig()
    splitgp: SplitGPConfig = SplitGPConfig()
    heterofl: HeteroFLConfig = HeteroFLConfig()
    fedproto: FedProtoConfig = FedProtoConfig()
    fedtgp: FedTGPConfig = FedTGPConfig()
    fedgh: FedGHConfig = FedGHConfig()
    harmony: HarmonyConfig = HarmonyConfig()
    checkpoint_every: Positive = 10
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("architectures")
    @classmethod
    def _parsable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(Architecture.parse(text)) for text in value)
        except ConfigError as error:  # from here, pydantic adds the field
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _score_has_its_head(self) -> Self:
        if self.method != "harmony" and self.exits.score == "own_mass":
            raise ValueError(f"exits.score 'own_mass' needs a gate head, which {self.method} has not; try 'entropy'")
        return self

    @model_validator(mode="after")
    def _tokens_are_told(self) -> Self:
        if self.method != "harmony" and self.tokens.epsilon is not None:
            raise ValueError(f"tokens.epsilon is for harmony: clients of {self.method} tell no token for every image")
        return self


# What differs between methods where a config is silent: no rival has a gate head, and SplitGP has one exit, at the cut.
# Other rates suit those that share no weights, and slices: docs/algorithm.md says where that was found.
_MUON: dict[str, Any] = {"optimizer": "muon"}
_NO_GATE: dict[str, Any] = _MUON | {"exits": {"score": "entropy", "pass1": 1.0}}
_OWN_WEIGHTS: dict[str, Any] = _NO_GATE | {"learning_rate": 2e-3, "muon_rate": 0.05}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "harmony": _MUON,
    "splitgp": _NO_GATE,
    "local": _OWN_WEIGHTS,
    "lg_fedavg": _NO_GATE,
    "heterofl": _NO_GATE | {"learning_rate": 2e-3},
    "fedproto": _OWN_WEIGHTS,
    "fedtgp": _OWN_WEIGHTS,
    "fedgh": _OWN_WEIGHTS,
}


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a TOML file; ConfigError names the file, the field and what is wrong."""
    return make_config(merged(read_toml(path), overrides or {}), where=path)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file of bounded size; ConfigError if it cannot be read or is not one."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("no such file", where=path, mend="check the path") from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=path, mend="check the path") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"is larger than {_MAX_BYTES} bytes", where=path)
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number or a nesting without end
        raise ConfigError(f"is not TOML: {error}", where=path) from None


def make_config(value: dict[str, Any], where: object = "config") -> TrainConfig:
    """Check a config; ConfigError names the first field that is wrong."""
    method = value.get("method", "harmony")
    usual = METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
    defaults = merged(TrainConfig().model_dump(mode="json"), usual)
    try:
        return TrainConfig.model_validate(merged(defaults, value))
    except ValidationError as error:
        first = error.errors()[0]
        loc = first["loc"]
        if loc[:1] == ("partition",):  # its second part is the kind, which is no table of the file
            loc = (*loc[:1], *loc[2:])
        field = ".".join(str(part) for part in loc) or None
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=where, field=field) from None


def recorded_config(value: dict[str, Any], where: object = "config") -> TrainConfig:
    """A whole config as this or an earlier version saved it; ConfigError as `make_config`.

    What it does not name did not exist then, and was not done: it has its field's default, whatever is usual for the
    method today.
    """
    return make_config(merged(TrainConfig().model_dump(mode="json"), value), where=where)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, table by table. A partition of another kind replaces the whole table."""
    result = dict(base)
    for key, value in over.items():
        kept = result.get(key)
        if (
            isinstance(kept, dict)
            and isinstance(value, dict)
            and value.get("kind", kept.get("kind")) == kept.get("kind")
        ):
            result[key] = merged(kept, value)
        else:
            result[key] = value
    return result


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the whole config, defaults included, as TOML."""
    write_atomically(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode())


def demo_config(method: Method, seed: int = 0, *, fast: bool = False) -> TrainConfig:
    """The demo's federation: 8 clients with 3 of 10 classes each, 4 architectures of 2 families, one budget for all.

    fast: a tenth of the rounds, for a quick look at the machinery; its accuracies mean nothing.
    """
    settings: dict[str, Any] = {"method": method, "seed": seed, "rounds": 6 if fast else 60, "checkpoint_every": 20}
    # Hardly trained and asked little, a device would hardly ever show what it does with the cloud.
    return make_config(settings | ({"exits": {"offload": 0.25}} if fast else {}))
