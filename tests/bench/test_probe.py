"""The stopwatch times an image on the path that it was given, wherever the device's threshold would follow to."""

from __future__ import annotations

from typing import Any

from harmony.bench.probe import pinned
from harmony.bench.results import AnswerPath
from harmony.core.adaptive import EVERY, HeldOut
from harmony.core.bundle import open_device_bundle
from harmony.core.data import load
from harmony.device import Device, open_engine
from harmony.device.decision import Loop


def test_every_image_takes_the_path_on_which_it_is_timed(federation: Any) -> None:
    bundle, images = federation.devices[0], load("fashion-mnist-mini").x_test[: 4 * EVERY]
    manifest = open_device_bundle(bundle).model_copy(update={"held_out": HeldOut(images=1, scores=(-1e9,))})
    engine = open_engine(bundle, manifest)
    paths: tuple[tuple[AnswerPath, bool], ...] = (("exit2", False), ("cloud", True))
    for path, sent in paths:
        device = Device(manifest, Loop(manifest, engine, pinned(manifest, path)))
        answers = [device.answer(image) for image in images]
        assert {one.would_offload for one in answers if len(one.scores) == 2} == {sent}


def test_a_fixed_threshold_is_left_alone(federation: Any) -> None:
    assert pinned(open_device_bundle(federation.devices[0]), "cloud") is None
