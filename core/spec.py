"""The contracts of shape, type and meaning: input image, cut, classes, architecture. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harmony.core.errors import ConfigError, ContractMismatch

Side = Annotated[int, Field(ge=1, le=4096)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


_STEEPEST = 1e30


class Frozen(BaseModel):
    """Base of every contract: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSpec(Frozen):
    """What a front end is fed: images (height, width, channels), and how their values are scaled.

    A uint8 image is divided by 255 first; then every channel is shifted by `mean` and divided by `std`.
    """

    height: Side
    width: Side
    channels: Channels
    dtype: Literal["uint8", "float32"] = "uint8"
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need one value for each of {self.channels} channels")
        if any(max(1, abs(mean)) / std > _STEEPEST for mean, std in zip(self.mean, self.std, strict=True)):
            raise ValueError(f"1/std and mean/std must be at most {_STEEPEST:g}, to scale an image in float32")
        return self

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels} {self.dtype}"


class FeatureSpec(Frozen):
    """The cut contract: the feature that leaves a front end and enters the back end, one sample (C, H, W).

    Checkpoint, bundles, wire and cloud all carry it, and every boundary checks it.
    """

    channels: Channels
    height: Side
    width: Side
    dtype: Literal["float32"] = "float32"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}-{self.dtype}"

    def require_same(self, other: FeatureSpec, *, mine: str, theirs: str) -> None:
        """Raise ContractMismatch, naming both sides, unless `other` is the same cut."""
        if other != self:
            raise ContractMismatch(
                f"the cut contract differs: {mine} has {self}, {theirs} has {other}",
                mend="use a front end and a back end of the same run",
            )


class ClassMap(Frozen):
    """A client's view of the classes.

    names: all classes, by label; own: labels that this client holds (its in-distribution classes), ascending, one or
    more; tokens: tokens[label] is the token under which the cloud knows that class (a permutation).
    """

    names: Annotated[tuple[str, ...], Field(min_length=2, max_length=100_000)]
    own: Annotated[tuple[int, ...], Field(min_length=1)]
    tokens: tuple[int, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(self.tokens) != list(range(len(self.names))):
            raise ValueError(f"tokens must be a permutation of 0 … {len(self.names) - 1}")
        if list(self.own) != sorted(set(self.own)) or not all(0 <= c < len(self.names) for c in self.own):
            raise ValueError(f"own must be ascending labels within 0 … {len(self.names) - 1}")
        return self

    @property
    def label_of_token(self) -> NDArray[np.int64]:
        """Inverse of `tokens`: label_of_token[token] is the label."""
        return np.argsort(np.asarray(self.tokens, dtype=np.int64))

    @property
    def own_tokens(self) -> NDArray[np.int64]:
        """Tokens of the client's own classes, in the order of `own`."""
        return np.asarray([self.tokens[label] for label in self.own], dtype=np.int64)


FAMILY_NAMES = ("resnet", "mobilenet", "patch")
"""Families of front ends, by name; `harmony.core.models` knows how to build each."""
_ARCHITECTURE = re.compile(r"([a-z][a-z0-9]*)-w([0-9]{1,4})-d([0-9]{1,2})")


class Architecture(Frozen):
    """One front-end architecture: a family, its width (channels of stage 1) and depth (blocks a stage).

    Written `family-wWIDTH-dDEPTH`, for example `resnet-w16-d2`.
    """

    family: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")]
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    depth: Annotated[int, Field(ge=1, le=16)]

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read `family-wWIDTH-dDEPTH`; ConfigError if it is not that, or if there is no such family."""
        match = _ARCHITECTURE.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"'{text}' is not an architecture", mend="write family-wWIDTH-dDEPTH, for example resnet-w16-d2"
            )
        family, width, depth = match.group(1), int(match.group(2)), int(match.group(3))
        if width % 8 or not 8 <= width <= 1024 or not 1 <= depth <= 16:
            raise ConfigError(f"'{text}' is out of range", mend="width: a multiple of 8 from 8 to 1024; depth: 1 to 16")
        return cls(family=family, width=width, depth=depth).known()

    def known(self) -> Self:
        """Itself; ConfigError if this version has no such family (a manifest of another version may name one)."""
        if self.family not in FAMILY_NAMES:
            mend = f"choose one of {', '.join(FAMILY_NAMES)}"
            raise ConfigError(f"unknown family '{self.family}' in '{self}'", mend=mend)
        return self

    def __str__(self) -> str:
        return f"{self.family}-w{self.width}-d{self.depth}"
