"""`harmony serve` as its user meets it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harmony.core.bundle import VECTORS, CloudManifest, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.spec import FeatureSpec

COMMAND = [sys.executable, "-m", "harmony.cli.main", "serve"]
KEY = "a-key-for-this-test"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest back end: the softmax of a 2x1x1 feature."""
    folder = tmp_path_factory.mktemp("export") / "cloud"
    flatten = helper.make_node("Flatten", ["feature"], ["flat"])
    softmax = helper.make_node("Softmax", ["flat"], ["probabilities"])
    inputs = [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", 2, 1, 1])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph([flatten, softmax], "back_end", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    vectors = {"feature": np.zeros((1, 2, 1, 1), np.float32), "probabilities": np.full((1, 2), 0.5, np.float32)}
    feature = FeatureSpec(channels=2, height=1, width=1)
    manifest = CloudManifest(harmony_version="0", run="r", method="m", feature=feature, tokens=2, parameters=1)
    with sealing(folder) as draft:
        (draft / "back_end.onnx").write_bytes(onnx.ModelProto.SerializeToString(model))
        write_vectors(draft / VECTORS, vectors)
        seal(draft, manifest)
    return folder


@contextmanager
def serving(*arguments: str, keys: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HARMONY_KEY")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | (keys or {}),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def fails(*arguments: str) -> str:
    """The one line of an exit with code 2."""
    with serving(*arguments) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err


def status(url: str, key: str | None = None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_json_is_one_line_and_a_signal_is_a_clean_exit(bundle: Path, number: signal.Signals) -> None:
    with serving(str(bundle.parent), "--port", "0", "--json") as process:
        said = json.loads(lines(process, 1)[0])
        assert set(said) == {"url", "key", "models", "pid"}
        assert (said["models"], said["pid"]) == (["backend"], process.pid)
        assert status(f"{said['url']}/v2/health/ready") == 200
        assert status(f"{said['url']}/v2/models/backend") == 401
        assert status(f"{said['url']}/v2/models/backend", said["key"]) == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_for_people_it_says_where_and_the_key_once(bundle: Path) -> None:
    with serving(str(bundle), "--port", "0") as process:
        where, key = lines(process, 2)
        url = where.split()[2].rstrip(",")
        assert "models: backend" in where
        assert status(f"{url}/v2", key.split(": ")[1].strip()) == 200


def test_given_keys_count_and_are_not_repeated(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("the-key-of-the-file\n")
    arguments = ["--port", "0", "--json", "--key", KEY, "--key-file", str(tmp_path / "keys")]
    with serving(str(bundle), *arguments, keys={"HARMONY_KEYS": "first-of-two-keys-,second-of-two-keys"}) as process:
        said = json.loads(lines(process, 1)[0])
        assert said["key"] is None
        for key in (KEY, "the-key-of-the-file", "first-of-two-keys-", "second-of-two-keys"):
            assert status(f"{said['url']}/v2", key) == 200
        assert status(f"{said['url']}/v2", "some-other-key-here") == 401


def test_without_keys_on_loopback(bundle: Path) -> None:
    with serving(str(bundle), "--port", "0", "--json", "--no-key") as process:
        said = json.loads(lines(process, 1)[0])
        assert said["key"] is None
        assert status(f"{said['url']}/v2") == 200


def test_logs_are_json_lines_on_stderr_without_the_key(bundle: Path) -> None:
    with serving(str(bundle), "--port", "0", "--json", "--key", KEY, "--log-level", "info") as process:
        said = json.loads(lines(process, 1)[0])
        assert status(f"{said['url']}/v2/models/backend/infer", KEY) == 405
        process.terminate()
        _, err = process.communicate(timeout=30)
    events = [json.loads(line) for line in err.splitlines()]
    assert {"event": "refused", "status": 405, "reason": "method"}.items() <= next(
        one for one in events if one["event"] == "refused"
    ).items()
    assert events[-1]["logger"].startswith(("harmony", "uvicorn"))
    assert KEY not in err


def test_port_in_use(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"PortInUse: 127.0.0.1:{port}" in fails(str(bundle), "--port", str(port))


def test_beyond_this_machine_only_with_keys(bundle: Path) -> None:
    everywhere = "0.0.0.0"  # noqa: S104
    said = fails(str(bundle), "--no-key", "--host", everywhere)
    assert "ConfigError: --host: listening on 0.0.0.0 without keys" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--key", "short"], "ConfigError: --key: a key has 16 to 256"),
        (["--key", KEY, "--no-key"], "ConfigError: --no-key: excludes"),
        (["--key-file", "absent"], "DataMissing: absent"),
        (["--port", "70000"], "port: Input should be less than or equal to 65535"),
        (["--max-body", "0"], "max_body_bytes"),
        (["--host", "not a host"], "ConfigError: not a host:8080: --host: unknown host"),
        (["--host", "192.0.2.1"], "ConfigError: 192.0.2.1:8080: --port: cannot listen there"),
    ],
)
def test_settings_that_cannot_be_meant(bundle: Path, arguments: list[str], words: str) -> None:
    assert words in fails(str(bundle), *arguments)


def test_bundles_that_cannot_be_served(bundle: Path, tmp_path: Path) -> None:
    assert "ArtifactMissing" in fails(str(tmp_path / "absent"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-1])
    assert "ArtifactCorrupt" in fails(str(copy))


def test_help_has_examples() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "harmony serve bundles/cloud" in done.stdout
