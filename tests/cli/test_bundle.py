"""keygen, bundle, inspect and --trust, as their user meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.cli.main import main
from harmony.core.bundle import VECTORS, CloudManifest, write_vectors
from harmony.core.sealed import hash_file, seal, sealing
from harmony.core.spec import FeatureSpec
from harmony.core.tokens import read_token_key

CUT = FeatureSpec(channels=2, height=2, width=2)


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, in this process: its own start would be most of a test's time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HARMONY_REGISTRY", "registry")

    def call(*arguments: str, **environment: str) -> Said:
        with monkeypatch.context() as here:
            here.setattr(sys, "argv", ["harmony", *arguments])
            for name, value in environment.items():
                here.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main()
        return Said(int(end.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A cloud bundle: a back end of one layer, whose answer to zeros is known."""
    weight = numpy_helper.from_array(np.eye(8, 3, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("Flatten", ["feature"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    feature = helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", *CUT.shape])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [feature], [probabilities], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    vectors = {"feature": np.zeros((2, *CUT.shape), np.float32), "probabilities": np.full((2, 3), 1 / 3, np.float32)}
    with sealing(tmp_path / "cloud") as draft:
        (draft / "back_end.onnx").write_bytes(model.SerializeToString())
        write_vectors(draft / VECTORS, vectors)
        seal(draft, CloudManifest(harmony_version="0", run="r", method="m", feature=CUT, tokens=3, parameters=24))
    return tmp_path / "cloud"


def test_from_a_key_to_a_trusted_archive(run: Run, bundle: Path, tmp_path: Path) -> None:
    made = json.loads(run("keygen", "release", "--json").stdout)
    assert (made["secret"], made["public"]) == ("release.key", "release.pub")
    assert (tmp_path / "release.pub").read_text() == made["line"] + "\n"
    assert "not signed" in run("verify", "cloud").stdout
    refused = run("verify", "cloud", "--trust", "release.pub")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("harmony: ArtifactUntrusted: cloud: is not signed; trusted: release")
    assert run("bundle", "sign", "cloud", "--key", "release.key").stdout == f"cloud: signed by {made['id']}\n"
    assert f"cloud: signed by {made['id']}, not checked" in run("verify", "cloud").stdout
    assert run("bundle", "pack", "cloud", "--out", "packed").stdout == "packed/cloud.tar\n"
    assert (
        f"cloud.tar: signed by {made['id']}, trusted"
        in run("verify", "packed/cloud.tar", HARMONY_TRUST="release.pub").stdout
    )
    unpacked = run("bundle", "unpack", "packed/cloud.tar", "--trust", "release.pub")
    assert unpacked.stdout == "packed/cloud\n"
    (document,) = json.loads(run("verify", "packed/cloud", "--trust", "release.pub", "--json").stdout)
    assert (document["signed"], document["trusted"]) == ([made["id"]], True)


def test_inspect_shows_a_back_end(run: Run, bundle: Path) -> None:
    text = run("inspect", "cloud").stdout
    for words in (
        "harmony-cloud-bundle 1",
        "nobody",
        "back_end.onnx",
        "1 Flatten, 1 MatMul, 1 Softmax",
        "2x2x2-float32",
    ):
        assert words in text
    run("bundle", "pack", "cloud")
    document = json.loads(run("inspect", "cloud.tar", "--json").stdout)
    assert document["manifest"]["tokens"] == 3
    assert document["digest"] == hash_file(bundle / "manifest.json")
    (program,) = document["programs"]
    assert program["operators"] == {"Flatten": 1, "MatMul": 1, "Softmax": 1}
    assert (program["delegated"], program["planned_bytes"]) == (None, None)


def test_two_places_of_trust_in_the_environment(run: Run, bundle: Path) -> None:
    for name in ("one", "two"):
        run("keygen", name)
    run("bundle", "sign", "cloud", "--key", "two.key")
    assert run("verify", "cloud", HARMONY_TRUST="one.pub").returncode == 2
    assert run("verify", "cloud", HARMONY_TRUST="one.pub:two.pub").returncode == 0


def test_a_key_of_tokens_is_made_once_and_is_its_owner_s(run: Run, tmp_path: Path) -> None:
    assert run("keygen", "federation", "--tokens").stdout.startswith("federation.tokens: for every client")
    path = tmp_path / "federation.tokens"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_token_key(path)) == 32
    refused = run("keygen", "federation", "--tokens", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is there already" in refused.stderr
    assert json.loads(run("keygen", "other", "--tokens", "--json").stdout) == {"tokens": "other.tokens"}
    assert not (tmp_path / "federation.key").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "cloud", "--trust", "gone.pub"), "ConfigError: gone.pub: cannot be read"),
        (("verify", "cloud", "--trust", "release.key"), "ConfigError: release.key: holds a secret key"),
        (("keygen", "release"), "ConfigError: release.key: is there already"),
        (("bundle", "sign", "cloud", "--key", "release.pub"), "ConfigError: release.pub: is no secret key"),
        (("bundle", "sign", "gone", "--key", "release.key"), "ConfigError: gone: is no folder"),
        (("bundle", "pack", "gone"), "ArtifactMissing: gone: no bundle here"),
        (("bundle", "unpack", "cloud.tar"), "ArtifactMissing: cloud.tar: no bundle here"),
        (("inspect", "gone"), "ArtifactMissing: gone: no bundle here"),
        (("bundle", "pack", "cloud", "--trust", "release.pub"), "ArtifactUntrusted: cloud: is not signed"),
        (("registry", "add", "cloud", "--trust", "release.pub"), "ArtifactUntrusted: cloud: is not signed"),
        (("export", "run", "--out", "x", "--sign", "gone.key"), "ConfigError: gone.key: cannot be read"),
    ],
)
def test_mistakes_are_one_line_each(
    arguments: tuple[str, ...], words: str, run: Run, bundle: Path, tmp_path: Path
) -> None:
    run("keygen", "release")
    before = sorted(tmp_path.glob("*"))
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"harmony: {words}"), line
    assert [path for path in sorted(tmp_path.glob("*")) if path.name not in ("registry", ".cache")] == before
