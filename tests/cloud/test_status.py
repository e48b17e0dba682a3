"""The status page: who may see it, what it says, and that a browser shows it as it is meant, under its own policy."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from harmony.cloud.history import quantile
from harmony.cloud.process import RunningService, running_service

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()}


def shown(client: Client) -> str:
    """The page's text, without its tags."""
    body = re.sub(r"<style>.*?</style>", "", client.get("/status").body.decode())
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_a_browser_asks_for_the_key(client: Client) -> None:
    refused = client.get("/status", {"Authorization": ""})
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith('Basic realm="')
    assert client.get("/status", basic(client.key)).status == 200
    for header in ({"Authorization": "Basic !"}, {"Authorization": "Basic \xff"}, basic("not-the-right-key-at-all")):
        assert client.get("/status", header).status == 401
    assert client.get("/v2", basic(client.key)).status == 401, "for the page alone"


def test_it_loads_nothing_runs_nothing_and_stays_nowhere(client: Client) -> None:
    reply = client.get("/status")
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "no-store"
    found: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append(tag)
            found.extend(name for name, _ in attributes)

    Tags().feed(reply.body.decode())
    assert {"script", "link", "img", "iframe", "form", "style=", "src", "href", "onload"}.isdisjoint(found)
    assert found.count("style") == 1, "one element of that name, and no attribute"


def test_what_it_says_is_what_was_counted(
    bundle: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    feature = features(2)
    with running_service(bundle.folder) as service:
        client = client_of(service)
        assert "No device has told" in shown(client)
        document = tensor([2, 8, 4, 4], feature.nbytes)
        for header in ({}, {"Harmony-Exits": "3, 1"}):
            assert client.binary(document, feature.tobytes(), header).status == 200
        for wrong in ("3", "3,1,1", "-1,2", "a,b", "1e3,1", "", "12345678901,1"):
            reply = client.binary(document, feature.tobytes(), {"Harmony-Exits": wrong})
            assert (reply.status, "Harmony-Exits holds 2 numbers" in reply.error) == (400, True)
        text = shown(client)
        metrics = client.get("/metrics").body.decode()
    assert "backend 1 latest cut 8x4x4-float32 runs in onnxruntime_onnx requests 2 samples 4 not served 7" in text
    assert "first exit: 37.5% on the device, second exit: 12.5% here: 50.0%" in text
    assert "malformed 7" in text
    assert 'harmony_device_exits_total{exit="exit1",model="backend",version="1"} 3.0' in metrics


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ([], 0.5, None),
        ([(1.0, 0), (2.0, 0)], 0.5, None),
        ([(1.0, 0), (2.0, 10)], 0.5, 1.5),
        ([(1.0, 10), (2.0, 10)], 0.99, 0.99),
        ([(1.0, 5), (float("inf"), 10)], 0.99, 1.0),
    ],
)
def test_quantiles_lie_between_bounds(counts: list[tuple[float, int]], share: float, seconds: float | None) -> None:
    assert quantile(counts, share) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package 'chromium')")
def test_a_browser_shows_it_under_its_policy(service: RunningService, tmp_path: Path) -> None:
    """The colours come from the one style that the policy lets in: were its hash wrong, the page would be white."""
    picture = tmp_path / "status.png"
    quiet = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")
    command = [CHROMIUM or "", "--headless", "--no-sandbox", *quiet, "--hide-scrollbars", "--enable-logging=stderr"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,1400", f"--screenshot={picture}"]
    url = service.url.replace("http://", f"http://anybody:{service.key}@")
    done = subprocess.run([*command, *where, f"{url}/status"], capture_output=True, text=True, timeout=120, check=False)
    assert picture.is_file(), done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    back = (0xF4, 0xF5, 0xF7)
    assert tuple(pixels[2, 2]) == back
    assert (pixels == (0xFF, 0xFF, 0xFF)).all(axis=2).mean() > 0.05, "cards"
    assert (pixels[:, -12:] == back).all(), "nothing runs out at the right"
