"""Names of the feature's forms on the wire, for whoever need not write them. No torch, and no zstandard."""

from __future__ import annotations

from typing import Literal, get_args

Codec = Literal["fp32", "fp16", "int8-zstd"]
CODECS: tuple[Codec, ...] = get_args(Codec)
