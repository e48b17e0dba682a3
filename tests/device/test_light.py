"""A device that answers loads what it needs for that, and nothing else."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harmony.core import ed25519
from harmony.core.bundle import DeviceManifest
from harmony.core.sealed import sign_sealed
from harmony.core.signing_keys import make_key, read_secret

HEAVY = {
    "PIL", "_hashlib", "asyncio", "bz2", "cryptography", "email", "executorch", "http.client", "httpx2",
    "importlib.metadata", "lzma", "onnx", "rich", "safetensors", "shutil", "ssl", "stamina", "tempfile", "torch",
    "typer", "zipfile", "zstandard", "harmony.core.archive", "harmony.core.checkpoint", "harmony.core.data",
    "harmony.core.signing", "harmony.core.wire", "harmony.device.fallback", "harmony.device.personal",
}  # fmt: skip
"""What an answer without a cloud has no use for."""
SCRIPT = (
    "import atexit, json, runpy, sys\n"
    "atexit.register(lambda: print(json.dumps([name for name, module in sys.modules.items() if module])))\n"
    "runpy.run_module('harmony.device.stream', run_name='__main__', alter_sys=True)\n"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_file({"images": np.zeros((3, 4, 4, 1), np.uint8)}, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors"


def _loaded(*arguments: object, refused: str = "") -> set[str]:
    """Modules of a device process after it answered, or was refused with that error."""
    command = [sys.executable, "-OO", "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, bool(done.stderr)) == ((2, True) if refused else (0, False)), done.stderr
    assert refused in done.stderr
    return set(json.loads(done.stdout))


def test_an_answer_brings_nothing_that_it_does_not_need(
    make_bundle: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    loaded = _loaded(make_bundle(tmp_path / "b"), "--images", images, "--out", tmp_path / "report.json")
    assert {"numpy", "onnxruntime", "pydantic"} <= loaded
    assert not HEAVY & loaded


def test_a_signature_is_checked_without_a_second_openssl(
    make_bundle: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    if ed25519._openssl() is None:
        pytest.skip("this Python's OpenSSL cannot be reached from hashlib")
    make_key(tmp_path / "release")
    bundle = make_bundle(tmp_path / "b")
    sign_sealed(bundle, DeviceManifest, [read_secret(tmp_path / "release.key")])
    trusted = ("--trust", tmp_path / "release.pub", "--images", images, "--out", tmp_path / "report.json")
    loaded = _loaded(bundle, *trusted)
    assert "harmony.core.signing" in loaded
    assert HEAVY & loaded == {"_hashlib", "harmony.core.signing"}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cloud_is_asked_without_openssl_where_nothing_is_secret(
    scheme: str, make_bundle: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        server = f"{scheme}://127.0.0.1:{nobody.getsockname()[1]}"
        asked = ("--images", images, "--out", tmp_path / "report.json", "--server", server)
        loaded = _loaded(make_bundle(tmp_path / "b"), *asked, refused="no connection")
    assert "http.client" in loaded
    assert ("_ssl" in loaded) is (scheme == "https")
