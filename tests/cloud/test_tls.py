"""https by flags: right answers over it, and certificates that cannot be used."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harmony.cloud.process import running_service
from harmony.cloud.settings import ServiceSettings
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
Make = Callable[..., tuple[Path, Path]]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_https(
    bundle: Bundle, features: Features, tensor: Tensor, make_certificate: Make, tmp_path: Path, workers: str
) -> None:
    certificate, key = make_certificate(tmp_path)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--workers", workers)
    feature = features(2)
    text = json.dumps(tensor([2, 8, 4, 4], 1024)).encode()
    with running_service(bundle.folder, *flags) as service:
        assert service.url.startswith("https://127.0.0.1:")
        port = int(service.url.rsplit(":", 1)[1])
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        headers = {"Authorization": f"Bearer {service.key}", "Inference-Header-Content-Length": str(len(text))}
        for _ in range(2):
            connection.request("POST", "/v2/models/backend/infer", text + feature.tobytes(), headers)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            found = np.frombuffer(body[-80:], "<f4").reshape(2, 10)
            np.testing.assert_allclose(found, bundle.answer(feature), rtol=1e-4, atol=1e-6)
        connection.close()
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.request("GET", "/v2/health/live")
            plain.getresponse()
        plain.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_handshakes_that_never_end_starve_nobody(
    bundle: Bundle, make_certificate: Make, tmp_path: Path, workers: str
) -> None:
    """More silent sockets than the process may have descriptors: those who speak are let in all the same."""
    certificate, key = make_certificate(tmp_path)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--workers", workers, "--max-connections", "32")
    with running_service(bundle.folder, *flags) as service, ExitStack() as stack:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        for pid in (service.pid, *map(int, children)):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (200, 200))
        host, port = service.url.removeprefix("https://").split(":")
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        context = ssl.create_default_context(cafile=str(certificate))
        for _ in range(4):
            connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=context)
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().status == 200
            connection.close()


def test_certificates_that_cannot_be_used_are_named(make_certificate: Make, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path / "one")
    _, other = make_certificate(tmp_path / "other")
    _, locked = make_certificate(tmp_path / "locked", b"secret")
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"\0\1\2")
    for cert, private, words in (
        (certificate, None, "--tls-cert: goes with --tls-key"),
        (None, key, "give both"),
        (certificate, other, "KEY_VALUES_MISMATCH"),
        (certificate, locked, "without a passphrase"),
        (noise, key, "noise.pem: cannot be used"),
        (certificate, tmp_path / "nowhere.pem", "nowhere.pem: no such file"),
        (tmp_path / "nowhere.pem", key, "nowhere.pem: no such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            ServiceSettings(tls_cert=cert, tls_key=private).require_tls()
    ServiceSettings(tls_cert=certificate, tls_key=key).require_tls()
