"""A user's own module: exported like one of ours, and held to its contract in one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harmony.cli.main import main
from harmony.core.bundle import open_cloud_bundle, open_device_bundle
from harmony.core.data import load
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ConfigError, RunExists
from harmony.core.preprocess import Preprocessor
from harmony.core.tensors import save_tensors
from harmony.device.runner import Device
from harmony.export import export_own, own_module
from harmony.export.own import Contract, back_end_of, front_end_of, load_own

HERE = Path(__file__).parent
DATA = load("fashion-mnist-mini")
CONTRACT = Contract(DATA.image_spec(), own=3, classes=10, where="own_module:small")


@pytest.fixture(autouse=True)
def beside_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def small() -> Any:
    return load_own("own_module:small", None)


def _saved(network: nn.Module, path: Path, **changes: Tensor) -> Path:
    save_tensors(path, {name: value.numpy() for name, value in (network.state_dict() | changes).items()})
    return path


def test_a_module_by_name_becomes_bundles_that_answer_as_it_does(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = small.late.bias.detach() + torch.tensor([0.3, 0.0, -0.3])
    weights, out = _saved(small, tmp_path / "w.safetensors", **{"late.bias": trained}), tmp_path / "out"
    words = ["--module", "own_module:small", "--weights", str(weights), "--own", "Trouser,4,Sneaker"]
    monkeypatch.setattr("sys.argv", ["harmony", "export", *words, "--client", "7", "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    device, cloud = json.loads(capsys.readouterr().out)
    manifest = open_device_bundle(out / "client-007")
    assert (manifest.client, manifest.classes.own, str(manifest.architecture)) == (7, (1, 4, 7), "own_module:small")
    assert set(manifest.engines) == {"onnxruntime", "executorch"}
    assert [one["delegated"] for one in device["engines"]] == [None, 1.0]
    # Each side counts what it needs: the device not the cloud's layer, and not the other way round.
    rest = sum(one.numel() for one in small.rest.parameters())
    assert device["parameters"] == sum(one.numel() for one in small.parameters()) - rest
    assert cloud["parameters"] == rest
    assert open_cloud_bundle(out / "cloud").feature == manifest.feature
    small.load_state_dict(small.state_dict() | {"late.bias": trained})
    images = DATA.x_test[:64]
    with torch.no_grad():
        x = torch.from_numpy(Preprocessor(manifest.image)(images))
        hidden = small.lower(x)
        late = small.exit2(small.upper(hidden)).argmax(1).numpy()
        early = small.exit1(hidden).argmax(1).numpy()
    opened = Device.open(out / "client-007", threshold="fixed")
    answers = [opened.answer(image) for image in images]
    labels = np.asarray(manifest.classes.own)
    assert {one.exit for one in answers} >= {"exit1"}
    for one, first, second in zip(answers, early, late, strict=True):
        assert one.label == labels[first if one.exit == "exit1" else second]
    own = DATA.x_train[np.isin(DATA.y_train, labels)][::10]
    assert np.mean([opened.answer(image).would_offload for image in own]) <= 0.05 + 0.03  # what export promises


class _Broken(nn.Module):
    """The small module, one of its methods replaced."""

    def __init__(self, small: Any, name: str, function: Callable[..., Any]) -> None:
        super().__init__()
        for one in ("lower", "exit1", "upper", "exit2", "back_end"):
            setattr(self, one, getattr(small, one))
        setattr(self, name, function)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("exit1", lambda x: torch.zeros(1, 4), r"exit1 gives \(1, 4\), not \(1, 3\)"),
        ("exit2", lambda x: torch.zeros(1, 3, dtype=torch.float64), r"exit2 gives torch.float64, not a float32"),
        ("exit2", lambda x: (torch.zeros(1, 3), torch.zeros(1, 9)), r"gate of exit2 gives \(1, 9\), not \(1, 10\)"),
        ("exit2", lambda x: (torch.zeros(1, 3), torch.zeros(1, 10)), r"one exit has a gate, the other has none"),
        ("upper", lambda x: x.flatten(1), r"upper gives \(1, \d+\).*a feature is \(n, channels, h, w\)"),
        ("upper", lambda x: {"feature": x}, r"upper gives dict, not a float32 tensor"),
        ("lower", lambda x: x[:, 5], r"lower fails on an input \(1, 1, 28, 28\): index 5"),
        ("back_end", lambda x: torch.zeros(2, 3), r"back_end gives \(2, 3\), not \(2, 10\)"),
    ],
)
def test_a_broken_contract_is_named(small: Any, name: str, function: Callable[..., Any], words: str) -> None:
    network = _Broken(small, name, function)
    with pytest.raises(ConfigError, match=words) as raised:
        _, feature = front_end_of(network, CONTRACT)
        back_end_of(network, feature, CONTRACT)
    assert "\n" not in str(raised.value)
    assert "own_module:small" in str(raised.value)


def test_a_module_without_a_back_end_has_none(small: Any) -> None:
    network = _Broken(small, "back_end", lambda x: x)
    _, feature = front_end_of(network, CONTRACT)
    del network.back_end
    assert back_end_of(network, feature, CONTRACT) is None


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("own_module", "names no function"),
        ("no_such_package:small", "cannot be imported: No module named"),
        ("own_module:large", "has no function 'large'"),
        ("own_module:OWN", "has no function 'OWN'"),
        ("own_module:Small.lower", "has no function"),
        ("math:pi", "has no function 'pi'"),
        ("math:sqrt", "fails: .*without arguments"),
        ("sys:exit", "fails: SystemExit"),
        ("time:time", "returned float, not an nn.Module"),
        ("torch.nn:ReLU", "the module has no lower, exit1, upper, exit2"),
    ],
)
def test_a_function_that_gives_no_such_module(module: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        load_own(module, None)
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_the_module_s(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ArtifactMissing, match="no such file"):
        load_own("own_module:small", path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        load_own("own_module:small", path)
    for change, words in (
        ({"late.bias": torch.zeros(4)}, "size mismatch for late.bias"),
        ({"other": torch.zeros(1)}, "Unexpected key"),
        ({"late.bias": torch.full((3,), float("nan"))}, "not finite"),
    ):
        with pytest.raises(ArtifactCorrupt, match=words) as raised:
            load_own("own_module:small", _saved(small, path, **change))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("own", "scale", "words"),
    [
        ("Trouser,Hat", None, "no class 'Hat'.*choose among T-shirt"),
        ("", None, "no class ''"),
        (None, "0.5", "'0.5' is no scale for 1 channels"),
        (None, "0.5/0", "is no scale"),
        (None, "0.5,0.5/1,1", "is no scale"),
        (None, "nan/1", "is no scale"),
    ],
)
def test_words_that_name_nothing(own: str | None, scale: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        own_module("own_module:small", None, "fashion-mnist-mini", own=own, scale=scale)


def test_a_scale_of_one_value_is_every_channel_s() -> None:
    job = own_module("own_module:small", None, "fashion-mnist-mini", scale="0.5/0.25")
    assert job.image is not None
    assert (job.image.mean, job.image.std) == ((0.5,), (0.25,))
    assert job.own == tuple(range(10))


def test_nothing_is_written_over(tmp_path: Path) -> None:
    job = own_module("own_module:small", None, "fashion-mnist-mini", own="1,4,7")
    (tmp_path / "cloud").mkdir()
    with pytest.raises(RunExists, match="is there already"):
        export_own(job, tmp_path, formats=("onnx",))
    assert not (tmp_path / "client-000").exists()


@pytest.mark.parametrize("arguments", [[], ["runs/first", "--module", "own_module:small"]])
def test_a_run_or_a_module(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["harmony", "export", *arguments, "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ConfigError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harmony: ConfigError: ")
