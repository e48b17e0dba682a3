"""The grid of an experiment: a TOML file that says which methods run on which data, and every cell of it, checked.

Every entry of an axis is a name and the training settings that it sets (`harmony.core.config`). A cell merges, each
winning over the one before: base, data, split, family, method, and what the method sets for that data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from harmony.core.config import METHOD_DEFAULTS, Table, Text, TrainConfig, make_config, merged, read_toml
from harmony.core.errors import ConfigError
from harmony.core.mix import RHOS

Role = Literal["ours", "rival", "reference", "ablation"]
Name = Annotated[Text, Field(min_length=1, max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
_Listed = Field(min_length=1, strict=False)


class Choice(Table):
    """One entry of an axis: a name, and beside it the training settings that it sets."""

    model_config = ConfigDict(extra="allow")

    name: Name

    @property
    def settings(self) -> dict[str, Any]:
        """The training settings, as nested tables."""
        return dict(self.model_extra or {})


class MethodChoice(Choice):
    """A method, or an ablation of one, in the words of the tables.

    role: `ours` is what all others are compared with; a `reference` has what the others lack (SplitGP with clients of
    one architecture) and is no rival. only_data, only_families: names where it runs, everywhere if left out;
    for_data: settings for one data set, by its name.
    """

    role: Role = "rival"
    only_data: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    only_families: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    for_data: dict[Name, dict[str, Any]] = Field(default_factory=dict)

    def runs_on(self, data: str, family: str) -> bool:
        """Whether the grid has a cell of it there."""
        return data in (self.only_data or (data,)) and family in (self.only_families or (family,))


class Published(Table):
    """Accuracies at ρ = 0 that somebody else reports, in %, by the name of the data entry that they stand beside."""

    name: Name
    source: Text
    accuracy: dict[Name, Annotated[float, Field(ge=0, le=100)]]


_ALL = Choice(name="all")


class Grid(Table):
    """The whole file.

    name: of the result file; title, about: of the report; headline: whether its table stands in the README;
    evaluate_every: rounds between two looks at the models, on about `look_images` test images in all; diagnose:
    whether to compare the architectures' features before and after; gates: whether to judge every exit gate on the
    checkpoints of `ours`; published: figures of others to show beside ours.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    title: Text
    about: Text = ""
    headline: bool = False
    seeds: Annotated[tuple[Seed, ...], _Listed]
    rhos: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], _Listed] = RHOS
    evaluate_every: Annotated[int, Field(ge=1)] = 10
    look_images: Annotated[int, Field(ge=1)] = 2000
    diagnose: bool = True
    gates: bool = False
    base: dict[str, Any] = Field(default_factory=dict)
    data: Annotated[tuple[Choice, ...], _Listed]
    splits: Annotated[tuple[Choice, ...], _Listed] = (_ALL,)
    families: Annotated[tuple[Choice, ...], _Listed] = (_ALL,)
    methods: Annotated[tuple[MethodChoice, ...], _Listed]
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for axis in ("data", "splits", "families", "methods"):
            names = [one.name for one in getattr(self, axis)]
            if len(set(names)) < len(names):
                raise ValueError(f"{axis}: a name occurs twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed occurs twice")
        for method in self.methods:
            _known(f"methods '{method.name}': only_data", method.only_data, self.data)
            _known(f"methods '{method.name}': for_data", tuple(method.for_data), self.data)
            _known(f"methods '{method.name}': only_families", method.only_families, self.families)
        for other in self.published:
            _known(f"published '{other.name}': accuracy", tuple(other.accuracy), self.data)
        return self


def _known(where: str, names: Sequence[str], axis: Sequence[Choice]) -> None:
    known = [one.name for one in axis]
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: there is no '{name}', only {', '.join(known)}")


@dataclass(frozen=True)
class Cell:
    """One training run of the grid, and how it is looked at.

    data, split, family, method: names of the grid's entries; config: the whole training config, seed included.
    """

    data: str
    split: str
    family: str
    method: str
    role: Role
    config: TrainConfig
    rhos: tuple[float, ...]
    evaluate_every: int
    look_images: int
    diagnose: bool
    gates: bool

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def label(self) -> str:
        """The cell in words; an axis with one nameless entry is left out."""
        axes = (self.method, self.data, self.split, self.family)
        return ", ".join([*(name for name in axes if name != _ALL.name), f"seed {self.seed}"])

    @property
    def looks(self) -> dict[str, Any]:
        """How the run is looked at and judged, as JSON."""
        return {
            "rhos": list(self.rhos),
            "evaluate_every": self.evaluate_every,
            "look_images": self.look_images,
            "diagnose": self.diagnose,
            **({"gates": True} if self.gates else {}),  # came later: what was made before has its default
        }

    @cached_property
    def meaning(self) -> str:
        """All that the cell's numbers depend on, in one line; equal for equal runs, wherever the grid lists them."""
        return meaning_of(self.config, self.looks)

    @cached_property
    def key(self) -> str:
        """A name for its folder: a few words, the seed, and a hash of its meaning."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.data} {self.method}".lower()).strip("-")
        return f"{words[:60]}-s{self.seed}-{hashlib.sha256(self.meaning.encode()).hexdigest()[:10]}"


def meaning_of(config: TrainConfig, looks: dict[str, Any]) -> str:
    """See Cell.meaning. The tables of other methods than the config's own have no part in it, nor has Muon's rate where
    Adam takes all steps.
    """
    strange = set(METHOD_DEFAULTS) - {config.method} | ({"muon_rate"} if config.optimizer == "adam" else set())
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in strange}
    return json.dumps([settings, looks], sort_keys=True)


def load_grid(path: Path) -> Grid:
    """Read a grid; ConfigError names the file, the field and what is wrong, in any cell."""
    try:
        grid = Grid.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=path, field=field) from None
    cells_of(grid, path)
    return grid


def cells_of(grid: Grid, where: object = "grid") -> tuple[Cell, ...]:
    """Every cell, seed by seed, so that an unfinished grid has whole tables of fewer seeds. ConfigError as above."""
    axes = product(grid.seeds, grid.data, grid.splits, grid.families)
    return tuple(
        _cell(grid, seed, (data, split, family), method, where)
        for seed, data, split, family in axes
        for method in grid.methods
        if method.runs_on(data.name, family.name)
    )


def choose(
    cells: Sequence[Cell], *, methods: Sequence[str] = (), data: Sequence[str] = (), seeds: Sequence[int] = ()
) -> tuple[Cell, ...]:
    """The cells of the named methods, data and seeds; an empty list names all. ConfigError if one names nothing."""
    for option, wanted, have in (
        ("--only", methods, [cell.method for cell in cells]),
        ("--data", data, [cell.data for cell in cells]),
        ("--seed", seeds, [cell.seed for cell in cells]),
    ):
        for one in wanted:
            if one not in have:
                known = ", ".join(map(str, dict.fromkeys(have)))
                raise ConfigError(f"no cell has '{one}'", where=option, mend=f"there are {known}")
    return tuple(
        cell
        for cell in cells
        if cell.method in (methods or (cell.method,))
        and cell.data in (data or (cell.data,))
        and cell.seed in (seeds or (cell.seed,))
    )


def _cell(grid: Grid, seed: int, entries: tuple[Choice, Choice, Choice], method: MethodChoice, where: object) -> Cell:
    data, split, family = entries
    layers = dict(_layers(grid, data, split, family, method))
    settings: dict[str, Any] = {}
    for place, layer in layers.items():
        if "seed" in layer:
            raise ConfigError("belongs into the list of seeds", where=where, field=f"{place}: seed", mend="use `seeds`")
        settings = merged(settings, layer)
    try:
        config = make_config(merged(settings, {"seed": seed}), where=where)
    except ConfigError as error:
        raise ConfigError(error.problem, where=where, field=_place(error.field, layers)) from None
    return Cell(
        data=data.name,
        split=split.name,
        family=family.name,
        method=method.name,
        role=method.role,
        config=config,
        rhos=tuple(sorted(grid.rhos)),
        evaluate_every=grid.evaluate_every,
        look_images=grid.look_images,
        diagnose=grid.diagnose,
        gates=grid.gates and method.role == "ours",
    )


def _layers(
    grid: Grid, data: Choice, split: Choice, family: Choice, method: MethodChoice
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of a cell, by where they stand in the file."""
    yield "base", grid.base
    for axis, one in (("data", data), ("splits", split), ("families", family), ("methods", method)):
        yield f"{axis} '{one.name}'", one.settings
    yield f"methods '{method.name}': for_data '{data.name}'", method.for_data.get(data.name, {})


def _place(field: str | None, layers: dict[str, dict[str, Any]]) -> str | None:
    """Where the file sets a field of the config: the last layer that holds it, or that replaced the table it is in."""
    for place, layer in reversed(layers.items()):
        found: Any = layer
        for part in (field or "").split("."):
            if not isinstance(found, dict) or part not in found:
                break
            found = found[part]
        else:
            return f"{place}: {field}"
        if found is not layer and isinstance(found, dict) and "kind" in found:
            return f"{place}: {field}"
    entries = [place for place in list(layers)[1:-1] if f"'{_ALL.name}'" not in place]
    return ", ".join([*entries, *([field] if field else [])])
