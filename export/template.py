"""Lower once per architecture, then fill in each client's weights.

Lowering a front end takes seconds, and its result depends on the weights only where it stores them. So a network is
lowered whose parameters are *numbered*: parameter i holds the float 2^100 · (1 + i · 2^-23), a bit pattern that says i
and that no real constant has. Wherever a pattern turns up in the program, that client's parameter i goes.

Nothing is assumed about the exporter: a template is only made if every number turns up exactly once, so that an
exporter that folds, scales or drops weights leads to no template (and to lowering per client), never to a wrong one.
Every filled program is still held against eager PyTorch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

FIRST = 0x71800000  # bits of the float32 2^100; the 23 bits of the mantissa count
CAPACITY = 1 << 23


Programs = Mapping[str, bytes]
"""File contents by role."""


class Span(NamedTuple):
    """A part of one of the programs, in bytes."""

    role: str
    start: int
    size: int


@dataclass(frozen=True)
class Template:
    """Lowered programs with places for parameters.

    places: by role, byte offsets (m,) and the parameters (m,) that go there; keyed: parts that a program itself
    refers to by their SHA-256 as hex.
    """

    programs: Programs
    places: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    keyed: tuple[Span, ...] = ()

    def fill(self, network: nn.Module) -> dict[str, bytes]:
        """The programs with the parameters of `network`, which has the template's architecture."""
        weights = torch.cat([one.detach().reshape(-1) for one in network.parameters()]).numpy()
        quads = weights.astype("<f4").view(np.uint8).reshape(-1, 4)
        filled = {role: bytearray(program) for role, program in self.programs.items()}
        for role, (offsets, numbers) in self.places.items():
            np.frombuffer(filled[role], np.uint8)[offsets[:, None] + np.arange(4)] = quads[numbers]
        out = {role: bytes(program) for role, program in filled.items()}
        # Two clients' programs must not claim the same key in one runtime's weight cache.
        for span in self.keyed:
            out[span.role] = out[span.role].replace(_key(self.programs, span), _key(filled, span))
        return out


def number(network: nn.Module) -> bool:
    """Set every parameter to its number, in place. False, and nothing done, if there are too many to tell apart."""
    sizes = [one.numel() for one in network.parameters()]
    if sum(sizes) > CAPACITY:
        return False
    numbers = (FIRST + np.arange(sum(sizes), dtype="<u4")).view("<f4")
    pieces = np.split(numbers, np.cumsum(sizes)[:-1])
    with torch.no_grad():
        for one, piece in zip(network.parameters(), pieces, strict=True):
            one.copy_(torch.from_numpy(piece.copy()).reshape(one.shape))
    return True


def make_template(
    programs: Programs, constants: Iterable[Span], parameters: int, keyed: Sequence[Span] = ()
) -> Template | None:
    """The template in programs lowered from a numbered network; None if a number is missing or turns up twice.

    constants: where float32 constants may lie, without overlaps.
    """
    found = [(span.role, *_numbered(programs[span.role], span)) for span in constants]
    numbers = np.concatenate([np.empty(0, np.int64), *(numbers for _, _, numbers in found)])
    if not np.array_equal(np.sort(numbers), np.arange(parameters)):
        return None
    places = {
        role: (
            np.concatenate([offsets for mine, offsets, _ in found if mine == role]),
            np.concatenate([numbers for mine, _, numbers in found if mine == role]),
        )
        for role in {role for role, _, _ in found}
    }
    return Template(programs, places, tuple(keyed))


def _numbered(program: bytes, span: Span) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The byte offset of each number in a span, and the number."""
    words = np.frombuffer(program, "<u4", span.size // 4, span.start)
    slots = np.flatnonzero((words >> 23) == FIRST >> 23)
    return slots * 4 + span.start, words[slots].astype(np.int64) - FIRST


def _key(programs: Mapping[str, bytes | bytearray], span: Span) -> bytes:
    return hashlib.sha256(programs[span.role][span.start : span.start + span.size]).hexdigest().encode()
