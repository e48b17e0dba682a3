"""The native core gives the decisions of the Python path, bit by bit, and its frames are those of core/wire.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.adaptive import SENDS_NOTHING, SUREST, HeldOut
from harmony.core.bundle import DeviceManifest, Exit, Fallback, open_device_bundle
from harmony.core.errors import EngineError, InvalidInput
from harmony.core.scores import ScoreName
from harmony.core.sealed import read_sealed
from harmony.core.spec import ImageSpec
from harmony.core.wire import CODECS, Codec, decode, encode
from harmony.device.decision import Decider, Decision, Loop
from harmony.device.executorch_engine import ExecutorchEngine
from harmony.device.native_engine import NativeEngine
from harmony.device.onnx_engine import OnnxEngine

Run = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., Path]
Images = NDArray[np.uint8]
ULP = float(np.finfo(np.float32).eps)


def _program(bundle: Path) -> tuple[bytes, DeviceManifest, Path]:
    manifest = open_device_bundle(bundle)
    return read_sealed(bundle, manifest, manifest.engines["executorch"]["program"]), manifest, bundle


def _decisions(decider: Decider, images: NDArray[Any]) -> list[Decision]:
    """With features that last."""
    return [_lasting(decider.decide(image)) for image in images]


def _lasting(decision: Decision) -> Decision:
    return decision if decision.feature is None else decision._replace(feature=decision.feature.copy())


def _assert_same(found: Decision, expected: Decision) -> None:
    assert found[:2] == expected[:2]
    assert (found.scores, found.threshold) == (expected.scores, expected.threshold)
    assert found.probability == pytest.approx(expected.probability, rel=1e-15)
    assert (found.feature is None) == (expected.feature is None)
    if found.feature is not None and expected.feature is not None:
        assert found.feature.tobytes() == expected.feature.tobytes()


@pytest.fixture
def engine(native: Path, real: Path) -> NativeEngine:
    return NativeEngine(*_program(real))


def test_the_same_bits_as_the_python_path_on_the_same_program(engine: NativeEngine, real: Path, images: Images) -> None:
    program, manifest, _ = _program(real)
    python = Loop(manifest, ExecutorchEngine(program, manifest, real))
    ways = set()
    for image in images:
        expected = python.decide(image)
        found = engine.decide(image)
        _assert_same(found, expected)
        ways.add((found.exit, found.feature is None, found.label))
    assert len({way[:2] for way in ways}) == 3, "the images must leave at exit 1, at exit 2, and at neither"
    assert len({way[2] for way in ways}) > 1


def test_a_threshold_that_follows_takes_the_same_exits_over_a_stream(native: Path, real: Path, images: Images) -> None:
    """2,000 images: first such as were held out, then such as the device is unsure of, and again."""
    program, manifest, _ = _program(real)
    plain = NativeEngine(program, manifest, real)
    sure = np.array([plain.decide(image).scores[-1] >= manifest.exits[1].threshold for image in images])
    held_out = [found.scores for found in _decisions(plain, images[sure])]
    surety = np.array([SUREST if len(scores) == 1 else scores[1] for scores in held_out], np.float32)
    known = manifest.model_copy(update={"held_out": HeldOut.of(surety)})
    core, python = NativeEngine(program, known, real), Loop(known, NativeEngine(program, known, real))
    rng, thresholds = np.random.default_rng(0), []
    for share, count in ((1, 400), (0.5, 300), (1, 900), (0.5, 400)):
        own, any_ = rng.choice(np.flatnonzero(sure), count), rng.integers(0, len(images), count)
        drawn = np.where(rng.random(count) < share, own, any_)
        for image in images[drawn]:
            expected = python.decide(image)
            _assert_same(core.decide(image), expected)
            thresholds.append(expected.threshold)
    changes = [one for one, _ in groupby(one for one in thresholds if one != manifest.exits[0].threshold)]
    fixed = manifest.exits[1].threshold
    assert changes[:4] == [fixed, SENDS_NOTHING, fixed, SENDS_NOTHING]


def test_the_same_decisions_as_onnx_runtime(engine: NativeEngine, real: Path, images: Images) -> None:
    _, manifest, _ = _program(real)
    files = [read_sealed(real, manifest, manifest.engines["onnxruntime"][role]) for role in ("exit1", "exit2")]
    onnx = Loop(manifest, OnnxEngine(files[0], files[1], manifest, real))
    for found, expected in zip(_decisions(engine, images), _decisions(onnx, images), strict=True):
        near = min(abs(score - one.threshold) for score, one in zip(expected.scores, manifest.exits, strict=False))
        assert found[:2] == expected[:2] or near < 1e-4
        assert found.scores[0] == pytest.approx(expected.scores[0], abs=1e-4)


@pytest.mark.parametrize("name", get_args(ScoreName))
def test_every_score(name: ScoreName, native: Path, make_tiny: Make, tmp_path: Path) -> None:
    """In numpy's bits where numpy calls libm; where it approximates by itself, within a few of the last places."""
    exits = tuple(Exit(name=one, score=name, threshold=1e30) for one in ("exit1", "exit2"))
    bundle = make_tiny(tmp_path / "b", exits=exits)
    engine = NativeEngine(*_program(bundle))
    python = Loop(open_device_bundle(bundle), engine)
    rng = np.random.default_rng(0)
    for scale in np.geomspace(1e-3, 1e3, 60):
        image = rng.normal(0, scale, (4, 6, 3)).astype(np.float32)
        for found, expected in zip(engine.decide(image).scores, python.decide(image).scores, strict=True):
            exact = name in ("own_mass", "energy", "max_logit")
            assert found == (expected if exact else pytest.approx(expected, rel=8 * ULP, abs=8 * ULP))


@pytest.mark.parametrize("own", [(0, 1, 2), (2, 3, 4), (0, 2, 4)])
def test_own_classes_at_either_end(own: tuple[int, ...], native: Path, make_tiny: Make, tmp_path: Path) -> None:
    manifest = open_device_bundle(make_tiny(tmp_path / "first"))
    bundle = make_tiny(tmp_path / "b", classes=manifest.classes.model_copy(update={"own": own}))
    engine = NativeEngine(*_program(bundle))
    python = Loop(open_device_bundle(bundle), engine)
    labels = set()
    for image in np.random.default_rng(0).normal(0, 1, (40, 4, 6, 3)).astype(np.float32):
        found = engine.decide(image)
        _assert_same(found, python.decide(image))
        labels.add(found.label)
    assert labels == set(own)


def test_colour_images_are_scaled_bit_by_bit(native: Path, make_tiny: Make, tmp_path: Path) -> None:
    spec = ImageSpec(height=4, width=6, channels=3, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 1.0))
    engine = NativeEngine(*_program(make_tiny(tmp_path / "b", image=spec)))
    python = Loop(open_device_bundle(tmp_path / "b"), engine)
    values = np.arange(4 * 6 * 3 * 4).astype(np.uint8).reshape(4, 4, 6, 3)
    for image in (*values, values[0][::-1], np.asfortranarray(values[1])):
        _assert_same(engine.decide(image), python.decide(image))


def _difficult() -> NDArray[np.float32]:
    """Images whose features hold zeros, subnormals of float16, ties between two of its values, and large numbers."""
    rng = np.random.default_rng(3)
    out = rng.normal(0, 1, (40, 4, 6, 3)) * np.geomspace(1e-6, 1e6, 40)[:, None, None, None]
    out[::3, :, :, 1] = 0
    ties = (np.arange(1024, 1024 + 72) + 0.5) / 2048  # halfway between neighbours of float16
    out[-1] = np.sqrt(ties).reshape(4, 6, 3) / 2
    out[-2] = np.sqrt(ties * 2.0**-20).reshape(4, 6, 3) / 2
    return out.astype(np.float32)


@pytest.mark.parametrize("codec", CODECS)
def test_frames(codec: Codec, native: Path, make_tiny: Make, run: Run, tmp_path: Path) -> None:
    bundle = make_tiny(tmp_path / "b", fallback=Fallback(codec=codec))
    images = _difficult()
    np.save(tmp_path / "images.npy", images)
    done = run(bundle, tmp_path / "images.npy", "--features", tmp_path / "features")
    assert (done.returncode, done.stderr) == (0, "")
    spec, python = open_device_bundle(bundle).feature, NativeEngine(*_program(bundle))
    for number, image in enumerate(images):
        feature = python.decide(image).feature
        assert feature is not None
        frame, expected = (tmp_path / "features" / f"{number:06d}.hff").read_bytes(), encode(feature, codec)
        head = 12 + 4 * spec.channels if codec == "int8-zstd" else len(expected)
        assert frame[:head] == expected[:head]
        assert np.array_equal(decode(frame, spec), decode(expected, spec))


def test_the_feature_is_not_overwritten_by_an_image_that_is_refused(
    native: Path, make_tiny: Make, tmp_path: Path
) -> None:
    engine = NativeEngine(*_program(make_tiny(tmp_path / "b")))
    image = np.ones((4, 6, 3), np.float32)
    feature = engine.decide(image).feature
    assert feature is not None
    image[0, 0, 0] = np.inf
    with pytest.raises(InvalidInput, match="not finite"):
        engine.decide(image)
    assert np.array_equal(feature, np.full((3, 4, 6), 4, np.float32))


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((4, 6, 1), np.float32), "4x6x1 float32, the model takes 4x6x3 float32"),
        (np.zeros((4, 6, 3), np.uint8), "4x6x3 uint8, the model takes 4x6x3 float32"),
        (np.full((4, 6, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_images_that_are_none(image: NDArray[Any], problem: str, native: Path, make_tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=problem):
        NativeEngine(*_program(make_tiny(tmp_path / "b"))).decide(image)


def test_outputs_that_are_not_finite_are_refused(native: Path, make_tiny: Make, run: Run, tmp_path: Path) -> None:
    """2·1e25, squared, is beyond float32; the logits are still finite, so nothing else would notice."""
    bundle = make_tiny(tmp_path / "b")
    images = np.zeros((2, 4, 6, 3), np.float32)
    images[1] = 1e25
    with pytest.raises(EngineError, match=r"front_end\.pte: exit2\.output 0: holds values that are not finite"):
        NativeEngine(*_program(bundle)).decide(images[1])
    np.save(tmp_path / "images.npy", images)
    done = run(bundle, tmp_path / "images.npy")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1, "the answers before it stand"
    assert done.stderr.startswith("harmony-run: EngineError: ")


def test_engines_in_two_threads_do_not_disturb_each_other(native: Path, real: Path, images: Images) -> None:
    engines = [NativeEngine(*_program(real)) for _ in range(2)]
    alone = _decisions(engines[0], images)
    halves = (images, images[::-1])
    with ThreadPoolExecutor(2) as pool:
        forward, backward = pool.map(_decisions, engines, halves)
    for found, other, expected in zip(forward, reversed(backward), alone, strict=True):
        _assert_same(found, expected)
        _assert_same(other, expected)


def test_the_original_weights_are_given_back(
    native: Path, make_tiny: Make, wide_program: bytes, tmp_path: Path
) -> None:
    """XNNPACK packs them into memory of its own: without giving them back, they would be held twice."""
    bundle = make_tiny(tmp_path / "b", program=wide_program)
    engine = NativeEngine(*_program(make_tiny(tmp_path / "first")))  # whatever the first one loads
    program, manifest, where = _program(bundle)
    before = _anonymous_bytes()
    engine = NativeEngine(program, manifest, where)
    grown = _anonymous_bytes() - before
    assert 0.8 * len(program) < grown < 1.5 * len(program)
    image = np.ones((4, 6, 3), np.float32)
    assert engine.decide(image).scores == Loop(manifest, engine).decide(image).scores


def _anonymous_bytes() -> int:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def test_without_torch(native: Path, real: Path, images: Images, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", images[0])
    program = (
        "import sys; from pathlib import Path; import numpy as np; from harmony.device import Device\n"
        "bundle, image = map(Path, sys.argv[1:])\n"
        "print(Device.open(bundle, engine='native').answer(np.load(image)).exit)\n"
        "assert not {'torch', 'executorch', 'onnxruntime'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(real), str(tmp_path / "image.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in ("exit1", "exit2")
