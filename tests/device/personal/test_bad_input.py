"""Whatever a user can get wrong is one named error, and nothing is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harmony.cli.main import main
from harmony.core.bundle import VECTORS, open_cloud_bundle, open_device_bundle
from harmony.core.errors import (
    ArtifactCorrupt,
    ConfigError,
    ContractMismatch,
    DataForeign,
    DataMissing,
    EmptyClass,
    EngineError,
    EngineUnavailable,
    HarmonyError,
    InvalidInput,
    LabelOutOfRange,
)
from harmony.core.sealed import digest_of, seal, sealing
from harmony.core.training_parts import PARTS_KEY, parts_of
from harmony.device.personal import Budget, Plan, Wish, personalize
from harmony.device.personal.cloud import CloudJudge
from harmony.device.personal.onnx_weights import ExitProgram
from harmony.device.personal.steps import Form, OnnxStep

MakeBundle = Callable[..., Path]


def _picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def _nothing(root: Path) -> None:
    root.mkdir()


def _empty_class(root: Path) -> None:
    _picture(root / "ant" / "1.png")
    (root / "bee").mkdir()


def _one_class(root: Path) -> None:
    for index in range(3):
        _picture(root / "ant" / f"{index}.png")


def _one_image(root: Path) -> None:
    _one_class(root)
    _picture(root / "bee" / "1.png")


def _other_size(root: Path) -> None:
    _one_class(root)
    _picture(root / "bee" / "large.png", (9, 8))


def _other_class(root: Path) -> None:
    _one_class(root)
    _picture(root / "wolf" / "1.png")


def _label_out_of_range(root: Path) -> None:
    _one_class(root)
    _picture(root / "6" / "1.png")


def _no_image(root: Path) -> None:
    _one_class(root)
    (root / "bee").mkdir()
    (root / "bee" / "1.png").write_bytes(b"\x89PNG but not really")


def _npz_of_another_size(root: Path) -> None:
    root.mkdir()
    x, y = np.zeros((4, 5, 5), np.uint8), np.asarray([0, 0, 1, 1])
    np.savez(root / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)


@pytest.mark.parametrize(
    ("make", "source", "error", "words"),
    [
        (_nothing, ".", DataMissing, "no class folders"),
        (_nothing, "gone", DataMissing, "neither a known data set nor a path"),
        (_empty_class, ".", EmptyClass, "bee: no images"),
        (_one_class, ".", DataForeign, "all images are of the class 'ant'"),
        (_one_image, ".", DataForeign, "the class 'bee' has 1 image"),
        (_other_size, ".", InvalidInput, "large.png: holds 8x9"),
        (_other_class, ".", LabelOutOfRange, "no class 'wolf'"),
        (_label_out_of_range, ".", LabelOutOfRange, "no class '6'"),
        (_no_image, ".", DataForeign, "1.png: cannot be read"),
        (_npz_of_another_size, "mine.npz", InvalidInput, "holds images of 5x5x1"),
    ],
)
def test_data(
    bundle: Path, tmp_path: Path, make: Callable[[Path], None], source: str, error: type[HarmonyError], words: str
) -> None:
    make(tmp_path / "photos")
    before = digest_of(bundle)
    with pytest.raises(error, match=words) as found:
        personalize(bundle, str(tmp_path / "photos" / source), Wish(), Budget())
    assert "\n" not in str(found.value)
    assert digest_of(bundle) == before


def test_classes_may_be_labels_and_data_may_be_an_npz(bundle: Path, photos: Path, tmp_path: Path) -> None:
    x = np.stack([np.load(path) for path in sorted(photos.glob("*/*.npy"))])
    y = np.repeat(np.arange(4), 10)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=["1", "2", "dog", "eel"])
    outcome = personalize(bundle, str(tmp_path / "mine.npz"), Wish(heads=Plan(20, 2e-2)), Budget())
    assert outcome.own_after == ("bee", "cat", "dog", "eel")


def test_bundles_that_cannot_learn(make_bundle: MakeBundle, photos: Path, tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain", training=None)
    with pytest.raises(ConfigError, match=r"holds nothing to learn with.*--trainable head"):
        personalize(plain, str(photos), Wish(), Budget())
    whole = open_device_bundle(make_bundle(tmp_path / "whole")).training
    assert whole is not None
    heads = make_bundle(tmp_path / "heads", training=whole.model_copy(update={"front_end": None}))
    with pytest.raises(ConfigError, match="no training program for the whole front end"):
        personalize(heads, str(photos), Wish(what="front-end", heads=Plan(1, 1e-3)), Budget())
    small = make_bundle(tmp_path / "small", precision="int8")  # whatever else it holds
    with pytest.raises(ConfigError, match=r"whole front end .*--what head, or .*--precision fp32"):
        personalize(small, str(photos), Wish(what="front-end"), Budget())
    with pytest.raises(EngineUnavailable, match="no training program for executorch"):
        personalize(heads, str(photos), Wish(engine="executorch"), Budget())


def test_a_training_program_that_is_not_the_bundles(
    make_bundle: MakeBundle, photos: Path, tmp_path: Path, steps: dict[str, bytes]
) -> None:
    whole = open_device_bundle(make_bundle(tmp_path / "whole")).training
    assert whole is not None
    swapped = make_bundle(
        tmp_path / "swapped", training=whole.model_copy(update={"head": {"onnxruntime": "front_end_step.onnx"}})
    )
    with pytest.raises(ContractMismatch, match="takes or gives"):
        personalize(swapped, str(photos), Wish(), Budget())
    nameless = whole.exit1.model_copy(update={"weight": "nobody.weight"})
    wrong = make_bundle(tmp_path / "wrong", training=whole.model_copy(update={"exit1": nameless}))
    with pytest.raises(ContractMismatch, match=r"nobody\.weight"):
        personalize(wrong, str(photos), Wish(), Budget())
    narrow = {"head": {"onnxruntime": "narrow_step.onnx"}, "embedding": 4}
    wrong = make_bundle(tmp_path / "narrow", training=whole.model_copy(update=narrow))
    with pytest.raises(ContractMismatch, match="its training program is for 4 numbers, a head looks at 8"):
        personalize(wrong, str(photos), Wish(), Budget())
    headless = make_bundle(tmp_path / "no", training=whole.model_copy(update={"front_end": "headless_step.onnx"}))
    with pytest.raises(ContractMismatch, match="does not train the heads"):
        personalize(headless, str(photos), Wish(what="front-end"), Budget())
    with pytest.raises(ArtifactCorrupt, match="does not say what it trains"):
        parts_of(steps["head_step.onnx"], tmp_path)
    with pytest.raises(ArtifactCorrupt, match="does not say what it trains: damaged"):
        parts_of(b"\x72\x02\xff\xff" + steps["front_end_step.onnx"], tmp_path)  # a note that ends in the middle
    assert PARTS_KEY.encode() in steps["front_end_step.onnx"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight": "exit1.conv"}, "'exit1.conv' and 'exit1.head.bias' are no head of 3 classes"),
        ({"bias": "exit1.gate.bias"}, "'exit1.head.weight' and 'exit1.gate.bias' are no head of 3 classes"),
        ({"gate_weight": "exit1.head.weight"}, "'exit1.head.weight' and 'exit1.gate.bias' are no head of 6 classes"),
    ],
)
def test_a_head_that_is_none(
    make_bundle: MakeBundle, photos: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    whole = open_device_bundle(make_bundle(tmp_path / "whole")).training
    assert whole is not None
    head = whole.exit1.model_copy(update=changes)
    wrong = make_bundle(tmp_path / "wrong", training=whole.model_copy(update={"exit1": head}))
    with pytest.raises(ContractMismatch, match=words):
        personalize(wrong, str(photos), Wish(), Budget())


def test_a_back_end_of_another_run(bundle: Path, photos: Path, make_bundle: MakeBundle, tmp_path: Path) -> None:
    wish = Wish(what="front-end", back_end=make_bundle(tmp_path / "device"))
    with pytest.raises(ArtifactCorrupt, match="not a 'harmony-cloud-bundle'"):
        personalize(bundle, str(photos), wish, Budget())


def test_a_back_end_that_does_not_read_features(bundle: Path, cloud_bundle: Path, tmp_path: Path) -> None:
    with sealing(tmp_path / "cloud") as draft:
        (draft / "back_end.onnx").write_bytes((bundle / "exit2.onnx").read_bytes())
        (draft / VECTORS).write_bytes((cloud_bundle / VECTORS).read_bytes())
        seal(draft, open_cloud_bundle(cloud_bundle))
    judge = CloudJudge(tmp_path / "cloud", open_device_bundle(bundle))
    with pytest.raises(EngineError, match="cloud: ONNX Runtime failed: "):
        judge.accuracy(np.zeros((1, 8, 4, 4), np.float32), np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"seconds": 1e-6}, "--max-seconds: 1e-06 s are too few: looking at the images alone took"),
        ({"memory": 1}, "--max-memory: 1 MiB are too few: the process has taken"),
        ({"seconds": 0}, "give more than 0"),
        ({"memory": float("nan")}, "give more than 0"),
    ],
)
def test_budgets_that_are_too_small(bundle: Path, photos: Path, budget: dict[str, Any], words: str) -> None:
    before = digest_of(bundle)
    with pytest.raises(ConfigError, match=words):
        personalize(bundle, str(photos), Wish(), Budget(**budget))
    assert digest_of(bundle) == before


def test_a_full_disk_leaves_the_old_bundle(bundle: Path, photos: Path) -> None:
    """The system refuses files above a kilobyte, as a full disk would."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "from harmony.cli.main import main\nmain()"
    )
    before = digest_of(bundle)
    command = [sys.executable, "-c", script, "personalize", str(bundle), "--data", str(photos), "--epochs", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("harmony: StorageError: ")
    assert done.returncode == 2
    assert digest_of(bundle) == before
    assert personalize(bundle, str(photos), Wish(heads=Plan(30, 2e-2)), Budget()).adopted


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harmony", "personalize", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_says_what_it_did(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _command(monkeypatch, str(bundle), "--data", str(photos), "--rate", "0.02") == 0
    printed = capsys.readouterr().out
    for words in ("version 1 is in use", "own classes now: bee, cat, dog, eel", "32 images in 160 steps", "MB at"):
        assert words in printed
    monkeypatch.setattr("sys.argv", ["harmony", "inspect", str(bundle)])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "heads (onnxruntime), front end (onnxruntime)" in printed
    assert "version 1: head, 32 images, " in printed
    assert _command(monkeypatch, str(bundle), "--rollback", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--data: is missing"),
        (("--rollback", "--data", "x"), "--rollback: learns nothing"),
        (("--rollback",), "there is no version before this one"),
        (("--data", "photos", "--key", "gone.key"), "gone.key"),
        (("--data", "photos", "--max-seconds", "-1"), "--max-seconds"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Path,
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _command(monkeypatch, str(bundle), *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_tensors_are_read_as_they_were_written_and_nothing_else_changes(bundle: Path) -> None:
    where = bundle / "exit1.onnx"
    program = ExitProgram(where.read_bytes(), where)
    weight = program.tensor("exit1.head.weight")
    again = program.with_tensors({"exit1.head.weight": weight}, {})
    assert ExitProgram(again, where).tensor("exit1.head.weight").tobytes() == weight.tobytes()
    assert len(again) == len(where.read_bytes())
    with pytest.raises(ContractMismatch, match="no float32 tensor 'axes'"):
        program.tensor("axes")  # whole numbers
    assert program.with_output("gate1") == where.read_bytes()  # which is one already
    with pytest.raises(ArtifactCorrupt, match="damaged output"):
        ExitProgram(b"\x3a\x04\x62\x02\xff\xff", where)  # a graph with an output that ends in the middle


def test_a_step_of_another_form_is_refused(steps: dict[str, bytes], tmp_path: Path) -> None:
    form = Form(weights=54, sample=(8,), classes=6)
    OnnxStep(steps["head_step.onnx"], form, tmp_path)
    for wrong in (form._replace(weights=55), form._replace(sample=(9,)), form._replace(classes=5)):
        with pytest.raises(ContractMismatch):
            OnnxStep(steps["head_step.onnx"], wrong, tmp_path)
