"""The reference as a bundle: a small net takes the place of MobileNet, everything else is as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harmony.bench import reference, reference_network
from harmony.bench.arm.mobilenets import Pooled
from harmony.bench.reference import reference_bundle
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import EngineUnavailable
from harmony.device.engine import open_engine


def _small(name: str) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 32, 32), nn.Hardsigmoid(), Pooled(), nn.Linear(8, 1000)]
    return nn.Sequential(*layers).eval()


def test_it_is_made_once_and_answers_as_the_net_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARMONY_CACHE", str(tmp_path))
    monkeypatch.setattr(reference_network, "build", _small)
    folder = reference_bundle("mobilenet-v1", "onnxruntime")
    monkeypatch.setattr(reference, "_write", None)  # a second making would fail
    assert reference_bundle("mobilenet-v1", "onnxruntime") == folder
    engine = open_engine(folder, open_device_bundle(folder))
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = _small("")(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(engine.exit1(image)[1], expected, atol=1e-4)
    assert expected.std() > 0.01


def test_what_is_missing_to_make_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARMONY_CACHE", str(tmp_path))
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"without torch, onnx, .*pip install 'harmony-sfl\[export\]'"):
        reference_bundle("mobilenet-v1", "onnxruntime")
    assert not (tmp_path / "reference").exists()
