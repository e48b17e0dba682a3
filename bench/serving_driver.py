"""Drives one load from a process of its own: an order as JSON on stdin, the LoadResult as JSON on stdout.

form: one of serving_requests.FORMS, `full` (the reference client's form, each request with its own id) or `raw` (the
bare float32 of one feature, to `path` of a peer).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import uvloop

from harmony.bench.serving_load import LoadSettings, drive
from harmony.bench.serving_requests import CUT, Address, address_of, requests_of, requests_with_ids, target_of


def requests(order: dict[str, Any], address: Address) -> list[bytes] | Iterator[bytes]:
    """What is sent."""
    if order["form"] == "raw":
        return raw_requests(order["path"], address)
    target = target_of(address, order["key"], "backend")
    if order["form"] == "full":
        return requests_with_ids(target, address, order["key"])
    return requests_of(target, address, order["key"], order["form"])


def raw_requests(path: str, address: Address, different: int = 16) -> list[bytes]:
    """The bare values of one feature each."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(different):
        blob = np.maximum(rng.normal(size=CUT.shape), 0).astype("<f4").tobytes()
        lines = [f"POST {path} HTTP/1.1", f"Host: {address.host}:{address.port}"]
        lines += ["Content-Type: application/octet-stream", f"Content-Length: {len(blob)}", "", ""]
        made.append("\r\n".join(lines).encode() + blob)
    return made


def main() -> None:
    """One order."""
    order = json.load(sys.stdin)
    address = address_of(order["url"])
    settings = LoadSettings.model_validate(order["settings"])
    work = drive(address.host, address.port, requests(order, address), settings, address.tls)
    sys.stdout.write(uvloop.run(work).model_dump_json() + "\n")


if __name__ == "__main__":
    main()
