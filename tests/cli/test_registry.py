"""`harmony registry` and `harmony keys` as their user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.core.bundle import VECTORS, CloudManifest, write_vectors
from harmony.core.errors import HarmonyError
from harmony.core.sealed import seal, sealing
from harmony.core.spec import FeatureSpec

Run = Callable[..., subprocess.CompletedProcess[str]]
CUT = FeatureSpec(channels=2, height=2, width=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harmony.cli.main", *arguments]
        known = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COLUMNS": "200"}
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env=known | {"HARMONY_REGISTRY": "registry"} | environment,
        )

    return call


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What harmony export writes, as far as the registry looks at it: cloud/ with a back end of one layer."""
    weight = np.eye(8, 3, dtype=np.float32)
    nodes = [
        helper.make_node("Flatten", ["feature"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    feature = helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", *CUT.shape])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [feature], [probabilities], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    vectors = {"feature": np.zeros((2, *CUT.shape), np.float32), "probabilities": np.full((2, 3), 1 / 3, np.float32)}
    with sealing(tmp_path / "export" / "cloud") as draft:
        (draft / "back_end.onnx").write_bytes(model.SerializeToString())
        write_vectors(draft / VECTORS, vectors)
        manifest = {"harmony_version": "0", "run": "r", "method": "m", "feature": CUT, "tokens": 3, "parameters": 24}
        seal(draft, CloudManifest.model_validate(manifest))
    return tmp_path / "export"


def test_from_a_bundle_to_a_history(run: Run, export: Path) -> None:
    def done(*arguments: str) -> str:
        result = run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    made: Any = json.loads(done("registry", "add", str(export), "--json"))
    assert [(one["model"], one["version"], one["aliases"]) for one in made] == [("backend", 1, ["latest"])]
    done("registry", "alias", "backend", "canary", "1", "--share", "0.5")
    listed = done("registry", "list")
    assert "canary, latest" in listed
    assert str(CUT) in listed
    key = json.loads(done("keys", "create", "phones", "--rate", "5", "--expires", "90d", "--json"))
    assert (key["scopes"], key["rate"], key["state"], len(key["key"])) == (["infer"], 5.0, "active", 43)
    assert key["key"] not in done("keys", "list", "--json") + done("keys", "list")
    assert "versions are whole, 0 bundles deleted" in done("registry", "check", "--prune")
    acts = [one["act"] for one in json.loads(done("registry", "audit", "--json"))]
    assert acts == ["key.create", "alias.set", "alias.set", "version.register"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("registry list", "ArtifactMissing: registry/registry.db: no registry here"),
        ("registry list --registry mysql://x", "ConfigError: --registry: 'mysql' is not supported"),
        ("registry list --registry postgresql://u:secret@127.0.0.1:1/x --store .", "ServiceError: postgresql+psycopg://u:***"),
        ("registry add nowhere", "ArtifactMissing: nowhere: no such folder"),
        ("registry add export --alias 7", "ConfigError: '7' is no alias"),
        ("registry add export --share 2", "ConfigError: 2 is no share"),
        ("keys create a/b", "ConfigError: 'a/b' is no name of a key"),
        ("keys create a --scope root", "ConfigError: 'root' is no scope"),
        ("keys create a --expires soon", "ConfigError: 'soon' is no span of time"),
        ("keys create a --expires 0", "ConfigError: expires: must lie in the future"),
        ("keys create a --rate 0", "ConfigError: rate: must be above 0"),
        ("keys create a --inflight 0", "ConfigError: inflight: must be from 1"),
        ("keys rotate a --overlap never", "ConfigError: --overlap: the old key has to end"),
        ("keys revoke a", "ArtifactMissing: registry/registry.db: no registry here"),
        ("serve --registry registry", "ArtifactMissing: registry/registry.db: no registry here"),
        ("serve export --registry registry", "ConfigError: harmony serve: give either a folder of bundles, or --reg"),
        ("serve --registry registry --no-key", "ConfigError: --no-key: a registry keeps keys"),
        ("serve", "ConfigError: harmony serve: give either a folder of bundles, or --registry"),
        ("HARMONY_REGISTRY=mine serve", "ArtifactMissing: mine/registry.db: no registry here"),
        ("HARMONY_REGISTRY=mine serve nowhere", "ArtifactMissing: nowhere: no such folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_leaves_nothing(
    export: Path, arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harmony.cli.main import app

    assert export.is_dir()
    monkeypatch.chdir(tmp_path)
    for name in ("HARMONY_KEY", "HARMONY_KEYS", "HARMONY_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    words = arguments.split()
    if "serve" not in words:
        monkeypatch.setenv("HARMONY_REGISTRY", "registry")
    if "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("="))
    with pytest.raises(HarmonyError) as refused:
        app(words, standalone_mode=False)
    assert f"{type(refused.value).__name__}: {refused.value}".startswith(says)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "registry").exists()


def test_no_registry_named(run: Run) -> None:
    done = run("registry", "list", HARMONY_REGISTRY="")
    assert (done.returncode, done.stderr) == (
        2,
        "harmony: ConfigError: --registry: name a registry (or set HARMONY_REGISTRY)\n",
    )


@pytest.mark.parametrize("name", ["registry", "keys"])
def test_help_has_examples(name: str) -> None:
    from typer.testing import CliRunner

    from harmony.cli.main import app

    assert "export HARMONY_REGISTRY=registry/" in CliRunner().invoke(app, [name, "--help"]).stdout
