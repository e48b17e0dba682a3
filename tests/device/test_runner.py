"""The way of one image: exits in order, thresholds, and what the cloud changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.adaptive import SENDS_NOTHING, SUREST, AdaptiveThreshold, HeldOut, sent_in_order
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import CloudTimeout, EngineError, InvalidInput
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import score, softmax
from harmony.core.spec import ClassMap, ImageSpec
from harmony.device import CloudAnswer, Device, Engine, open_engine
from harmony.device.engine import ExitOut
from harmony.device.prepare import Prepare

Make = Callable[..., Path]
OWN = np.array([1, 2, 4])


class Cloud:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, answer: CloudAnswer | None) -> None:
        self.answer, self.asked = answer, list[NDArray[np.float32]]()

    def ask(self, feature: NDArray[np.float32]) -> CloudAnswer:
        self.asked.append(feature.copy())
        if self.answer is None:
            error = CloudTimeout("no answer within 1 s", where="http://cloud")
            error.sent, error.ticket = 70, 5
            raise error
        return self.answer


def _image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 1), dtype=np.uint8)


def _expected(make: Make, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """Both exits' own-class logits and gates, by numpy."""
    weights = make.net.weights  # type: ignore[attr-defined]
    flat = (image.reshape(1, 16).astype(np.float32) / 255 - 0.5) / 0.25
    return (
        flat @ weights["logits1"],
        flat @ weights["gate1"],
        2 * flat @ weights["logits2"],
        2 * flat @ weights["gate2"],
    )


def test_leaves_at_exit1_if_its_score_reaches_the_threshold(make_bundle: Make, tmp_path: Path) -> None:
    image = _image()
    logits, gate, _, _ = _expected(make_bundle, image)
    value = float(score("own_mass", logits, gate, OWN)[0])
    for threshold, exit_ in ((value - 1e-4, "exit1"), (value + 1e-4, "exit2")):
        bundle = make_bundle(tmp_path / exit_, thresholds=(threshold, -1e9))
        answer = Device.open(bundle).answer(image)
        assert answer.exit == exit_
        assert answer.scores[0] == pytest.approx(value, abs=1e-4)
        assert len(answer.scores) == (1 if exit_ == "exit1" else 2)
        assert not answer.would_offload


class Broken:
    """An engine, one of whose outputs holds a number that is none."""

    image = None

    def __init__(self, engine: Engine, output: str, value: float) -> None:
        self._engine, self._output, self._value = engine, output, value

    def exit1(self, image: NDArray[np.float32]) -> ExitOut:
        return self._changed(self._engine.exit1(image), "hidden", "logits1", "gate1")

    def exit2(self, hidden: NDArray[np.float32]) -> ExitOut:
        return self._changed(self._engine.exit2(hidden), "feature", "logits2", "gate2")

    def _changed(self, found: ExitOut, *names: str) -> ExitOut:
        out = [None if one is None else one.copy() for one in found]
        for name, one in zip(names, out, strict=True):
            if name == self._output and one is not None:
                one[0, 1] = self._value
        return out[0], out[1], out[2]  # type: ignore[return-value]


@pytest.mark.parametrize(("output", "leave"), [("logits1", -1e9), ("gate1", 1e9), ("logits2", 1e9), ("gate2", 1e9)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's; to silence it takes time
def test_numbers_that_are_not_finite_are_no_answer(
    make_bundle: Make, tmp_path: Path, output: str, leave: float, value: float
) -> None:
    bundle = make_bundle(tmp_path / "b", thresholds=(leave, -1e9))
    manifest = open_device_bundle(bundle)
    device = Device(manifest, Broken(open_engine(bundle, manifest), output, value))
    with pytest.raises(EngineError, match=f"exit{output[-1]} gives numbers that are not finite"):
        device.answer(_image())


class Gate:
    """An engine whose gates are what it is told."""

    image = None

    def __init__(self, own: int) -> None:
        self.gate, self._logits = np.zeros((1, 1), np.float32), np.zeros((1, own), np.float32)

    def exit1(self, image: NDArray[np.float32]) -> ExitOut:
        return image, self._logits, self.gate

    def exit2(self, hidden: NDArray[np.float32]) -> ExitOut:
        return np.zeros((1, 2, 4, 4), np.float32), self._logits, self.gate


@pytest.mark.parametrize(("count", "own"), [(2, (1,)), (5, (1, 2, 4)), (5, (0, 1, 2, 3, 4)), (100, (3, 7, 99))])
def test_the_loop_scores_a_gate_as_evaluation_does_to_the_bit(bundle: Path, count: int, own: tuple[int, ...]) -> None:
    classes = ClassMap(names=tuple(map(str, range(count))), own=own, tokens=tuple(range(count)))
    engine, rng = Gate(len(own)), np.random.default_rng(0)
    device = Device(open_device_bundle(bundle).model_copy(update={"classes": classes}), engine)
    for scale in (0, 1e-3, 1, 10, 1e4, 1e10, 1e28, 1e30, 1e37):  # those of no network, too: of its logits without mass
        for _ in range(50):
            engine.gate = (scale * rng.normal(size=(1, count))).astype(np.float32)
            expected = float(score("own_mass", engine.gate, engine.gate, np.array(own))[0])
            assert set(device.answer(_image()).scores) == {expected}


def test_exit_2_follows_the_stream_as_evaluation_says(make_bundle: Make, tmp_path: Path) -> None:
    """The same images are sent as by the function that `harmony evaluate` asks. Foreign is what scores low."""
    images = [_image(seed) for seed in range(300)]
    plain = Device.open(make_bundle(tmp_path / "plain", thresholds=(1.0, 0.0)))
    surety = np.array([SUREST if len(one.scores) == 1 else one.scores[1] for one in map(plain.answer, images)], "f4")
    own, foreign = np.flatnonzero(surety > 0), np.flatnonzero(surety < -2)
    held_out = HeldOut.of(surety[own[::2]])
    assert held_out is not None
    rng = np.random.default_rng(0)
    quiet, mixed = rng.choice(own, 200), rng.permutation(np.append(rng.choice(own, 200), rng.choice(foreign, 100)))
    stream = np.concatenate([quiet, mixed, quiet, quiet, quiet])
    bundle = make_bundle(tmp_path / "b", thresholds=(1.0, 0.5), held_out=held_out)

    answers = list(map(Device.open(bundle).answer, [images[at] for at in stream]))
    assert [one.would_offload for one in answers] == sent_in_order(
        AdaptiveThreshold(held_out, 0.5), surety[stream]
    ).tolist()
    assert {one.threshold for one in answers} == {1.0, 0.5, SENDS_NOTHING}
    assert not any(one.would_offload for one in answers[16:200] + answers[-50:])
    assert sum(one.would_offload for one in answers[200:500]) > 60

    fixed = map(Device.open(bundle, threshold="fixed").answer, [images[at] for at in stream])
    assert [(one.would_offload, one.threshold in (1.0, 0.5)) for one in fixed] == [
        (bool(score < 0.5), True) for score in surety[stream]
    ]


def test_label_name_and_probability_are_those_of_the_own_classes(make_bundle: Make, tmp_path: Path) -> None:
    device = Device.open(make_bundle(tmp_path / "b", thresholds=(1e9, -1e9)))
    seen = set()
    for seed in range(20):
        image = _image(seed)
        logits = _expected(make_bundle, image)[2]
        best = int(logits.argmax())
        answer = device.answer(image)
        assert (answer.label, answer.class_name) == (int(OWN[best]), ("bee", "cat", "eel")[best])
        assert answer.probability == pytest.approx(float(softmax(logits)[0, best]), abs=1e-5)
        seen.add(answer.label)
    assert seen == {1, 2, 4}


def test_the_same_image_gives_the_same_answer_after_others(bundle: Path) -> None:
    """Buffers are reused between calls; nothing of one image may stay in the next."""
    device = Device.open(bundle)
    first = device.answer(_image(1))
    device.answer(_image(2))
    again = device.answer(_image(1))
    assert (again.label, again.scores, again.probability) == (first.label, first.scores, first.probability)
    assert device.answer(_image(2)).scores != first.scores


def test_the_engine_reads_what_was_prepared_whatever_it_was_given_before(bundle: Path) -> None:
    manifest = open_device_bundle(bundle)
    engine = open_engine(bundle, manifest)
    device, alone = Device(manifest, engine), Device.open(bundle)
    for seed in range(3):
        engine.exit1(np.full((1, 1, 4, 4), seed, np.float32))
        assert device.answer(_image(seed)).scores == alone.answer(_image(seed)).scores


def test_without_a_cloud_exit2_stands_undegraded(bundle: Path) -> None:
    answer = Device.open(bundle).answer(_image())
    assert (answer.exit, answer.would_offload, answer.degraded, answer.reason) == ("exit2", True, False, None)


def test_the_cloud_is_asked_with_the_feature_and_has_the_last_word(bundle: Path, make_bundle: Make) -> None:
    cloud = Cloud(CloudAnswer(0, 0.75, 70, 7))
    image = _image(3)
    answer = Device.open(bundle, fallback=cloud).answer(image)
    assert (answer.label, answer.class_name, answer.exit, answer.probability) == (0, "ant", "cloud", 0.75)
    assert answer.local_label in OWN
    assert (answer.bytes_sent, answer.bytes_received, answer.degraded) == (70, 7, False)
    hidden = 2 * (image.reshape(1, 4, 4).astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(cloud.asked[0], np.concatenate([hidden, -hidden]), rtol=1e-5)


def test_the_cloud_is_not_asked_about_what_the_device_knows(make_bundle: Make, tmp_path: Path) -> None:
    cloud = Cloud(CloudAnswer(0, 1))
    device = Device.open(make_bundle(tmp_path / "b", thresholds=(1e9, -1e9)), fallback=cloud)
    assert device.answer(_image()).exit == "exit2"
    assert not cloud.asked


def test_a_cloud_that_fails_leaves_the_local_answer_with_the_reason(bundle: Path) -> None:
    alone = Device.open(bundle).answer(_image())
    answer = Device.open(bundle, fallback=Cloud(None)).answer(_image())
    assert (answer.label, answer.exit, answer.degraded) == (alone.label, "exit2", True)
    assert answer.reason == "CloudTimeout: http://cloud: no answer within 1 s"
    assert (answer.bytes_sent, answer.bytes_received, answer.ticket) == (70, 0, 5)


def test_a_bundle_without_gate(make_bundle: Make, tmp_path: Path) -> None:
    device = Device.open(make_bundle(tmp_path / "b", gate=False, thresholds=(0.0, 0.0)))
    answer = device.answer(_image())
    assert answer.exit == "exit1"
    assert 1 / 3 <= answer.scores[0] <= 1


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 1), np.uint8), np.zeros((4, 4, 1), np.float32), np.zeros((4, 4))],
)
def test_other_images_are_refused_by_shape_and_type(bundle: Path, image: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInput, match="the model takes 4x4x1 uint8"):
        Device.open(bundle).answer(image)


def test_nan_is_refused(make_bundle: Make, tmp_path: Path) -> None:
    spec = ImageSpec(height=4, width=4, channels=1, dtype="float32", mean=(0,), std=(1,))
    device = Device.open(make_bundle(tmp_path / "b", image=spec))
    with pytest.raises(InvalidInput, match="not finite"):
        device.answer(np.full((4, 4, 1), np.nan, np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_is_the_preprocessor_bit_by_bit(channels: int) -> None:
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 1.0)[:channels]
    spec = ImageSpec(height=16, width=20, channels=channels, mean=mean, std=std)
    image = np.random.default_rng(0).integers(0, 256, (16, 20, channels), dtype=np.uint8)
    prepared = Prepare(spec)(image)
    assert prepared.flags.c_contiguous
    assert np.array_equal(prepared, Preprocessor(spec)(image[None]))
    assert np.array_equal(Prepare(spec)(image[::-1]), Preprocessor(spec)(image[None, ::-1]))
