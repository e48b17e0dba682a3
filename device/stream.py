"""A device process: `python -m harmony.device.stream BUNDLE --images FILE --out FILE [--server URL …]`.

Answers every image of a file, then writes one JSON document:

    samples          columns, one value an image: label, exit ("exit1", "exit2", "cloud"), local_label, score1, score2
                     (null if exit 2 was not reached), threshold (what the last of them was held against), probability,
                     seconds, bytes_sent, bytes_received, would_offload, degraded, reason (null unless degraded)
    peak_rss_bytes   most memory that the process ever held (VmHWM)
    cpu_seconds      user and system time of the whole process
    torch_loaded     false, or the process fails, with the engines onnxruntime and native
    versions         of what answered
    bundle, engine, server

Imports as little as it can, because what it reports is the weight of a device.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

if __name__ == "__main__":
    # pydantic looks for plugins among all that is installed. There is none for a manifest, and the search alone, with
    # the mail and zip readers that it brings, would be 2 MiB of this process and a tenth of its start.
    _no_plugins = ModuleType("pydantic.plugin._loader")
    vars(_no_plugins)["get_plugins"] = tuple
    sys.modules[_no_plugins.__name__] = _no_plugins
    if not any(word.startswith("--trust") for word in sys.argv):  # signatures are checked by OpenSSL
        # Python by itself hashes some hundred kilobytes in a millisecond; OpenSSL's library would be 3 MiB more.
        sys.modules["_hashlib"] = cast("ModuleType", None)
        if not any("https:" in word for word in sys.argv):  # http.client would load that library, and not use it
            sys.modules["_ssl"] = cast("ModuleType", None)

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import ConfigError, DataForeign, DataMissing, EngineError, HarmonyError
from harmony.core.sealed import write_atomically
from harmony.device.answer import Answer, Fallback
from harmony.device.decision import ThresholdChoice, with_threshold
from harmony.device.engine import EngineChoice, open_engine
from harmony.device.memory import peak_bytes
from harmony.device.runner import Device

if TYPE_CHECKING:
    from harmony.core.signing import Trust

IMAGES = "images"
MAX_HEADER_BYTES = 1 << 20
_DTYPES = {"U8": "u1", "F32": "<f4"}
_COLUMNS = (
    "label", "exit", "local_label", "threshold", "probability", "seconds", "bytes_sent", "bytes_received",
    "would_offload", "degraded", "reason",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; a named error is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except HarmonyError as error:
        sys.stderr.write(f"harmony.device.stream: {type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def run(options: argparse.Namespace) -> None:
    """Open the bundle, answer every image, write the report."""
    manifest = with_threshold(open_device_bundle(options.bundle, _trust(options.trust)), options.threshold)
    fallback = _fallback(options, manifest)
    device = Device(manifest, open_engine(options.bundle, manifest, options.engine), fallback)
    columns = answer_all(device, options.images, options.limit)
    torch_loaded = "torch" in sys.modules
    if torch_loaded and options.engine in ("onnxruntime", "native"):
        raise EngineError("torch was imported, but inference on the device must do without", where=options.bundle)
    report = {
        "bundle": str(options.bundle),
        "engine": options.engine,
        "server": options.server,
        "samples": columns,
        "peak_rss_bytes": peak_bytes(),
        "cpu_seconds": time.process_time(),
        "torch_loaded": torch_loaded,
        "versions": _versions(options.engine, manifest),
    }
    write_atomically(options.out, json.dumps(report, allow_nan=False).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harmony.device.stream", description="Answer a file of images.", allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, width=100),  # that of the terminal is asked of shutil
    )  # fmt: skip
    parser.add_argument("bundle", type=Path, help="a device bundle")
    parser.add_argument("--images", type=Path, required=True, help="safetensors file with 'images' (n, H, W, C)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON report to write")
    parser.add_argument("--server", help="URL of the fallback service; without one, exit 2 has the last word")
    parser.add_argument("--key-env", metavar="NAME", help="environment variable that holds the API key")
    parser.add_argument("--engine", choices=get_args(EngineChoice), default="onnxruntime")
    parser.add_argument(
        "--threshold", choices=get_args(ThresholdChoice), default="adaptive", help="whether exit 2's follows the stream"
    )
    parser.add_argument("--deadline", type=float, default=1.0, metavar="S", help="seconds for one offload (default 1)")
    parser.add_argument(
        "--trust", type=Path, action="append", metavar="PUB", help="public key, list or folder of them; repeatable"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    return parser


def _trust(paths: list[Path] | None) -> Trust | None:
    if not paths:
        return None
    from harmony.core.signing import Trust  # noqa: PLC0415  (rare, and weight on a device)

    return Trust.read(paths)


def _fallback(options: argparse.Namespace, manifest: DeviceManifest) -> Fallback | None:
    """A checked connection, or None. The key is read from the environment, since arguments are seen by everybody."""
    if options.server is None:
        return None
    from harmony.device.fallback import FallbackClient  # noqa: PLC0415  (brings an HTTP client)

    key = None
    if options.key_env is not None:
        key = os.environ.get(options.key_env)
        if not key:
            raise ConfigError("this variable is not set", where=options.key_env, mend="put the API key into it")
    client = FallbackClient(options.server, key, manifest=manifest, deadline_s=options.deadline)
    client.check()
    return client


def answer_all(device: Device, path: Path, limit: int | None = None) -> dict[str, list[Any]]:
    """The columns of the report, over the tensor `images` (n, H, W, C) of a safetensors file.

    DataMissing, DataForeign for the file, InvalidInput for an image.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, "score1", "score2")}
    images = map_images(path)
    shape = images.shape[1:]
    with path.open("rb") as file:  # read, not touched in the map: every page touched there would stay in memory
        file.seek(images.offset)
        for _ in range(len(images[:limit])):
            _append(columns, device.answer(np.fromfile(file, images.dtype, math.prod(shape)).reshape(shape)))
    return columns


def map_images(path: Path) -> np.memmap[Any, Any]:
    """The tensor `images` of a safetensors file, read from the disk as it is used: a device has no room for all.

    The format is 8 bytes of length, so much JSON, then the values (https://github.com/huggingface/safetensors#format);
    its library would be a megabyte of the device's memory. DataMissing, DataForeign.
    """
    if not path.is_file():
        raise DataMissing("no such file", where=path, mend="check the path")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(min(size, MAX_HEADER_BYTES)))[IMAGES]
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        offset = _offset(entry["data_offsets"], dtype.itemsize, shape)
        images: np.memmap[Any, Any] = np.memmap(path, dtype, "r", 8 + size + offset, shape)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataForeign(
            f"holds no tensor '{IMAGES}' of uint8 or float32 that can be read: {str(error)[:200]}", where=path,
            mend="write it with safetensors.numpy.save_file",
        ) from None  # fmt: skip
    return images


def _offset(offsets: list[int], item: int, shape: tuple[int, ...]) -> int:
    """Where the values start after the header; ValueError unless their number is what the shape needs."""
    start, end = offsets
    if not all(type(side) is int and side > 0 for side in shape) or end - start != item * math.prod(shape):
        raise ValueError("shape and size do not agree")
    return start


def _append(columns: dict[str, list[Any]], answer: Answer) -> None:
    for name in _COLUMNS:
        columns[name].append(getattr(answer, name))
    columns["score1"].append(answer.scores[0])
    columns["score2"].append(answer.scores[1] if len(answer.scores) > 1 else None)


def _versions(engine: EngineChoice, manifest: DeviceManifest) -> dict[str, str]:
    versions = {"python": sys.version.split()[0], "numpy": np.__version__, "bundle": manifest.harmony_version}
    module = sys.modules.get(engine)
    found = getattr(module, "__version__", None)
    return versions | ({engine: found} if found else {})


if __name__ == "__main__":
    sys.exit(main())
