"""`harmony bench personalize` on the small front end: every way is timed and learns, and the bundle stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from harmony.bench.personal import bench_personal
from harmony.bench.personal_results import PersonalBench, PersonalSettings
from harmony.cli.main import main
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import digest_of

MakeBundle = Callable[..., Path]
Draw = Callable[[int, int], NDArray[np.uint8]]


@pytest.fixture
def bundle(make_bundle: MakeBundle, draw: Draw, names: tuple[str, ...], tmp_path: Path) -> Path:
    """Whose data set is a file of pictures of all classes."""
    parts = {"train": range(20), "test": range(20, 30)}
    arrays: dict[str, object] = {"class_names": np.asarray(names)}
    for part, which in parts.items():
        images = [draw(label, 30)[which] for label in range(len(names))]
        arrays |= {f"x_{part}": np.concatenate(images), f"y_{part}": np.repeat(range(len(names)), len(which))}
    np.savez(tmp_path / "all.npz", **arrays)  # type: ignore[arg-type]
    return make_bundle(tmp_path / "phone" / "b", dataset=str(tmp_path / "all.npz"))


def _cloud_right(bundle: Path, cloud: Path, own: tuple[int, ...]) -> tuple[float, float]:
    """How often the back end is right on test images of `own`, and of the other classes; run by hand."""
    manifest = open_device_bundle(bundle)
    first, second, last = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (bundle / "exit1.onnx", bundle / "exit2.onnx", cloud / "back_end.onnx")
    )
    with np.load(manifest.dataset) as data:
        images, labels = Preprocessor(manifest.image)(data["x_test"]), data["y_test"]
    right = []
    for image, label in zip(images, labels, strict=True):
        hidden = first.run(["hidden"], {"image": image[None]})[0]
        feature = second.run(["feature"], {"hidden": hidden})[0]
        token = int(last.run(None, {"feature": feature})[0].argmax())
        right.append(manifest.classes.tokens[label] == token)
    mine = np.isin(labels, own)
    return float(np.mean(np.asarray(right)[mine])), float(np.mean(np.asarray(right)[~mine]))


def test_every_way_is_timed_and_learns(
    bundle: Path,
    cloud_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    digest, out = digest_of(bundle), tmp_path / "new" / "p.json"
    words = [str(bundle), "--back-end", str(cloud_bundle), "--images", "15", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["harmony", "bench", "personalize", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    found = PersonalBench.model_validate_json(out.read_bytes())
    assert (found.digest, digest_of(bundle)) == (digest, digest)
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]
    assert found.own_before == ("ant", "bee", "cat")
    assert found.own_after == ("bee", "cat", "dog")
    assert [str(one.way) for one in found.steps] == ["head, onnxruntime", "front-end, onnxruntime"]
    assert found.skipped == {"head, executorch": "the bundle has no training program for it"}
    assert all(one.cpu_ms.n == 2 and one.cpu_ms.min > 0 for one in found.steps)
    head, whole = found.learning
    assert head.adopted
    assert head.after > head.before
    assert head.cloud is None
    assert head.peak_bytes.n == head.cpu_s.n == 2
    assert 20 < head.peak_bytes.median / 2**20 < 200  # no torch
    assert whole.cloud is not None
    expected = _cloud_right(bundle, cloud_bundle, (1, 2, 3))
    assert (whole.cloud.own_before, whole.cloud.other_before) == pytest.approx(expected)
    assert found.host.versions["onnxruntime"] == onnxruntime.__version__
    printed = capsys.readouterr().out
    for part in (
        "head, onnxruntime",
        "From ant, bee, cat to bee, cat, dog",
        "The cloud alone",
        "head, executorch: the",
    ):
        assert part in printed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": None}, "holds nothing to learn with"),
        ({"dataset": "fashion-mnist-mini"}, "fashion-mnist-mini: its classes are not those of .* .name the images"),
    ],
)
def test_bundles_that_cannot_be_measured(
    make_bundle: MakeBundle, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    wrong = make_bundle(tmp_path / "b", **changes)
    with pytest.raises(ConfigError, match=words):
        bench_personal(PersonalSettings(bundle=wrong))


def test_a_class_that_is_none(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"--classes: there is no class 'wolf' .of ant, bee"):
        bench_personal(PersonalSettings(bundle=bundle, classes=("ant", "wolf")))
