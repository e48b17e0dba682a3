"""The same application on Ray Serve. What needs Ray runs only where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from harmony.cloud.on_ray import serve_on_ray
from harmony.cloud.process import running_service
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.source import Place
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Floats

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'harmony-sfl[ray]'")


def no_announcement(_: object) -> None:
    raise AssertionError("it must not come so far")


def test_what_ray_cannot_do_is_named_before_it_starts(bundle: Bundle, tmp_path: Path) -> None:
    place = Place(bundle.folder)
    with pytest.raises(ConfigError, match=r"--tls-cert: is not for --ray"):
        serve_on_ray(place, ServiceSettings(tls_cert=tmp_path, tls_key=tmp_path), no_announcement)
    with pytest.raises(ConfigError, match="would let everybody in"):
        serve_on_ray(place, ServiceSettings(host="0.0.0.0"), no_announcement)  # noqa: S104  # refused
    assert "RAY_AUTH_TOKEN" not in os.environ


@needs_ray
def test_two_replicas_answer_as_our_own_server_does(bundle: Bundle, features: Callable[..., Floats]) -> None:
    feature = features(3)
    one = triton.InferInput("feature", list(feature.shape), "FP32")
    one.set_data_from_numpy(feature, binary_data=True)
    with running_service(bundle.folder, "--ray", "--workers", "2") as service:
        client: Any = triton.InferenceServerClient(service.url.removeprefix("http://"))
        known = {"Authorization": f"Bearer {service.key}"}
        for _ in range(8):
            found = client.infer("backend", [one], headers=known).as_numpy("probabilities")
            np.testing.assert_allclose(found, bundle.answer(feature), rtol=1e-3, atol=1e-5)
        with pytest.raises(InferenceServerException, match=r"\[401\]"):
            client.infer("backend", [one])
        with pytest.raises(InferenceServerException, match="unknown model 'other'"):
            client.infer("other", [one], headers=known)
        client.close()
    assert not Path(f"/proc/{service.pid}").exists()
