"""Where the named data sets come from: every file that may be downloaded, with its publisher's checksum."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_CIFAR = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Source:
    """One file to download.

    path: its place below the cache folder, and below a mirror's URL (a mirror is a cache folder, served);
    url: the publisher's; algorithm and digest: the published checksum, hex; max_bytes: refuse more than that.
    """

    path: PurePosixPath
    url: str
    digest: str
    algorithm: Literal["md5", "sha256"] = "md5"
    max_bytes: int = 256 << 20

    def url_at(self, mirror: str | None = None) -> str:
        """The URL to ask: at `mirror`, else at $HARMONY_DATA_MIRROR, else at the publisher."""
        base = mirror or os.environ.get("HARMONY_DATA_MIRROR")
        return f"{base.rstrip('/')}/{self.path}" if base else self.url


def _fashion(name: str, md5: str) -> Source:
    return Source(PurePosixPath("fashion-mnist", name), f"{_FASHION}/{name}", md5)


def _cifar(name: str, md5: str) -> Source:
    return Source(PurePosixPath(name), f"{_CIFAR}/{name}", md5)


SOURCES: dict[str, tuple[Source, ...]] = {
    "fashion-mnist": (
        _fashion("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _fashion("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        _fashion("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        _fashion("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (_cifar("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    "cifar100": (_cifar("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
}

LICENCES: dict[str, str] = {
    "fashion-mnist-mini": "MIT, (c) 2017 Zalando SE; a subset, see core/data/LICENSE-fashion-mnist",
    "fashion-mnist": "MIT, (c) 2017 Zalando SE",
    "cifar10": "none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    "cifar100": "none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
}
