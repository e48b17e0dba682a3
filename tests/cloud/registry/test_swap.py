"""Hot swap and the repository's endpoints, on a real service that follows a real registry."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from harmony.cloud.process import RunningService, running_service
from harmony.cloud.registry.keys import KeyLimits
from harmony.core.spec import FeatureSpec

if TYPE_CHECKING:
    from harmony.cloud.registry.catalogue import Registry
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]
Make = Callable[..., Path]
Pair = tuple["Bundle", "Bundle"]
ME = "cli:me"


def served(registry: Registry) -> Any:
    return running_service(None, "--registry", str(registry.database.location.file).removesuffix("/registry.db"))


class Asker:
    """Binary requests over one connection, and who answered what."""

    def __init__(self, service: RunningService, features: Features, pair: Pair) -> None:
        self.service, self.feature = service, features(1)
        self.known = {str(number): bundle.answer(self.feature) for number, bundle in enumerate(pair, 1)}
        self.heard: Counter[str] = Counter()

    def ask(self, client: Any, version: str = "", **parameters: Any) -> str:
        """Version that answered; its probabilities must be that version's."""
        one = triton.InferInput("feature", list(self.feature.shape), "FP32")
        one.set_data_from_numpy(self.feature, binary_data=True)
        headers = {"Authorization": f"Bearer {self.service.key}"}
        result = client.infer("backend", [one], model_version=version, headers=headers, parameters=parameters or None)
        answered: str = result.get_response()["model_version"]
        np.testing.assert_allclose(result.as_numpy("probabilities"), self.known[answered], rtol=1e-3, atol=1e-5)
        self.heard[answered] += 1
        return answered

    def client(self) -> Any:
        return triton.InferenceServerClient(self.service.url.removeprefix("http://"))


def test_a_hundred_swaps_under_load_without_a_failed_request(
    folder_registry: Registry, pair: Pair, admin_key: str, features: Features
) -> None:
    registry, swaps = folder_registry, 100
    for bundle in pair:
        registry.register(bundle.folder, who=ME)
    with served(registry) as service:
        asker, stop, failures = Asker(service, features, pair), threading.Event(), []

        def load() -> None:
            client = asker.client()
            while not stop.is_set():
                try:
                    asker.ask(client)
                except (InferenceServerException, AssertionError, OSError) as error:
                    failures.append(error)
                stop.wait(0.002)
            client.close()

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        client = asker.client()
        for number in range(swaps):
            registry.alias("backend", "latest", 1 + number % 2, who=ME)
            client.load_model("backend", headers={"Authorization": f"Bearer {admin_key}"})
            assert asker.ask(client) == str(1 + number % 2), "load returns once the other version answers"
        stop.set()
        for thread in threads:
            thread.join()
        client.close()
        assert failures == []
        assert min(asker.heard["1"], asker.heard["2"]) > swaps / 2
        status = Path(f"/proc/{service.pid}/status").read_text()
        assert int(status.split("Threads:")[1].split()[0]) < 20, "the threads of replaced versions end"


def test_a_swap_while_a_body_is_on_its_way(
    folder_registry: Registry, pair: Pair, admin_key: str, features: Features, tensor: Tensor
) -> None:
    registry = folder_registry
    for bundle in reversed(pair):
        registry.register(bundle.folder, who=ME)
    with served(registry) as service:
        text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
        body = text + features(1).tobytes()
        lines = (
            "POST /v2/models/backend/infer HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {service.key}",
            f"Content-Length: {len(body)}",
            f"Inference-Header-Content-Length: {len(text)}",
            "Connection: close",
        )
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall("\r\n".join((*lines, "", "")).encode() + body[:100])
            registry.alias("backend", "latest", 1, who=ME)
            client = triton.InferenceServerClient(f"{host}:{port}")
            client.load_model("backend", headers={"Authorization": f"Bearer {admin_key}"})
            index = client.get_model_repository_index(headers=admin_and_read(service))
            assert [one["version"] for one in index] == ["1"]
            client.close()
            connection.sendall(body[100:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"model_version":"1"' in answer


def test_a_version_that_cannot_be_loaded_changes_nothing(
    folder_registry: Registry, pair: Pair, admin_key: str, features: Features
) -> None:
    registry, admin = folder_registry, {"Authorization": f"Bearer {admin_key}"}
    registry.register(pair[0].folder, who=ME)
    with served(registry) as service:
        asker = Asker(service, features, pair)
        client = asker.client()
        broken = registry.register(pair[1].folder, who=ME)
        program = registry.store.folder(broken.digest) / "back_end.onnx"
        whole = program.read_bytes()
        program.write_bytes(whole[:-1] + b"\0")
        with pytest.raises(InferenceServerException, match=r"failed to load 'backend': version 2: .*SHA-256 differs"):
            client.load_model("backend", headers=admin)
        assert asker.ask(client) == "1"
        index = {one["version"]: one for one in client.get_model_repository_index(headers=admin_and_read(service))}
        assert (index["1"]["state"], index["2"]["state"]) == ("READY", "UNAVAILABLE")
        assert "SHA-256 differs" in index["2"]["reason"]
        program.write_bytes(whole)
        client.load_model("backend", headers=admin)
        assert asker.ask(client) == "2"
        client.close()


def admin_and_read(service: RunningService) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.key}"}


def test_the_protocols_repository(
    folder_registry: Registry, pair: Pair, admin_key: str, features: Features, client_of: ClientOf
) -> None:
    registry, admin = folder_registry, {"Authorization": f"Bearer {admin_key}"}
    registry.register(pair[0].folder, who=ME)
    with served(registry) as service:
        asker, reader = Asker(service, features, pair), admin_and_read(service)
        client = asker.client()
        with pytest.raises(InferenceServerException, match="lacks the scope 'admin'") as refused:
            client.unload_model("backend", headers=reader)
        assert refused.value.status() == "403"
        client.unload_model("backend", headers=admin)
        with pytest.raises(InferenceServerException, match="unknown model 'backend'"):
            asker.ask(client)
        assert not client.is_model_ready("backend", headers=reader)
        assert client.get_model_repository_index(headers=reader) == [
            {"name": "backend", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        ]
        assert client_of(service).call("POST", "/v2/repository/index", b'{"ready": true}').json == []
        client.load_model("backend", headers=admin)
        assert asker.ask(client) == "1"
        for overrides, name in (
            ({"config": '{"max_batch_size": 1}'}, "config"),
            ({"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "config|file:1/model.onnx"),
        ):
            with pytest.raises(InferenceServerException, match=rf"({name}): overrides are not offered"):
                client.load_model("backend", headers=admin, **overrides)
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.load_model("other", headers=admin)
        client.close()
        mine = client_of(service)
        big = json.dumps({"parameters": {"file:1/model.onnx": "x" * (1 << 20)}})
        reply = mine.call("POST", "/v2/repository/models/backend/load", big, admin)
        assert (reply.status, "overrides are not offered" in reply.error) == (413, True)
        for body in (b"[]", b"{", b'{"parameters": 1}', b"\xff"):
            assert mine.call("POST", "/v2/repository/models/backend/load", body, admin).status == 400
        audit = mine.get("/v2/repository/audit?limit=2", admin).json
        assert [(one["act"], one["who"][:4]) for one in audit] == [("model.load", "key:"), ("model.unload", "key:")]
        assert mine.get("/v2/repository/audit").status == 403
        assert mine.get("/v2/repository/audit?limit=0", admin).status == 400
        described = mine.get("/openapi.json").json["paths"]
        assert {"/v2/repository/models/{model}/load", "/v2/repository/audit"} <= set(described)


def test_a_canary_gets_exactly_its_share(folder_registry: Registry, pair: Pair, features: Features) -> None:
    registry = folder_registry
    registry.register(pair[0].folder, who=ME)
    registry.register(pair[1].folder, names=["canary"], share=0.1, who=ME)
    with served(registry) as service:
        asker = Asker(service, features, pair)
        client = asker.client()
        answered = [asker.ask(client) for _ in range(40)]
        assert Counter(answered) == {"1": 36, "2": 4}
        assert "".join(answered).count("22") == 0, "counted out, not drawn"
        assert [asker.ask(client, name) for name in ("canary", "2", "latest", "1")] == ["2", "2", "1", "1"]
        headers = admin_and_read(service)
        about = client.get_model_metadata("backend", "canary", headers=headers)
        assert (about["versions"], about["parameters"]["version"], about["parameters"]["aliases"]) == (
            ["1", "2"],
            "2",
            "canary",
        )
        counts = client.get_inference_statistics("backend", headers=headers)["model_stats"]
        assert {one["version"]: one["inference_count"] for one in counts} == {"1": 38, "2": 6}
        counts = client.get_inference_statistics("backend", "canary", headers=headers)["model_stats"]
        assert [one["version"] for one in counts] == ["2"]
        assert [(one["batch_size"], one["compute_infer"]["count"]) for one in counts[0]["batch_stats"]] == [(1, 6)]
        parts = {
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        }
        assert set(counts[0]["inference_stats"]) == parts
        assert len(client.get_inference_statistics(headers=headers)["model_stats"]) == 2
        client.close()


def test_a_device_gets_the_version_of_its_cut_contract(
    folder_registry: Registry, bundle_of: Make, client_of: ClientOf, tensor: Tensor
) -> None:
    registry, other = folder_registry, FeatureSpec(channels=4, height=8, width=4)
    registry.register(bundle_of("a"), who=ME)
    registry.register(bundle_of("b", other), who=ME)
    registry.register(bundle_of("c"), who=ME)
    with served(registry) as service:
        client = client_of(service)

        def ask(shape: list[int], path: str = "", **parameters: str) -> tuple[int, str]:
            document = tensor([1, *shape], 512)
            document["parameters"] |= parameters
            text = json.dumps(document).encode()
            header = {"Inference-Header-Content-Length": str(len(text))}
            reply = client.call("POST", f"/v2/models/backend{path}/infer", text + bytes(512), header)
            if reply.status != 200:
                return reply.status, reply.error
            return 200, json.loads(reply.body[: int(reply.headers["inference-header-content-length"])])["model_version"]

        first, second = [8, 4, 4], [4, 8, 4]
        assert ask(first, cut="8x4x4-float32") == (200, "3")
        assert ask(second, cut=str(other)) == (200, "2")
        assert ask(second, "/versions/latest", cut=str(other)) == (200, "2")
        assert ask(first) == (200, "3"), "who names no cut gets the newest version"
        status, error = ask(first, cut="9x9x9-float32")
        assert status == 409
        assert all(one in error for one in ("8x4x4-float32", str(other), "9x9x9-float32"))
        status, error = ask(second, "/versions/3", cut=str(other))
        assert (status, "8x4x4-float32" in error, str(other) in error) == (409, True, True)
        assert ask(first, "/versions/1")[0] == 404, "no name points at it"
        about = client.get(f"/v2/models/backend?cut={other}").json
        assert (about["parameters"]["version"], about["inputs"][0]["shape"]) == ("2", [-1, 4, 8, 4])
        assert client.get("/v2/models/backend?cut=1x1x1-float32").status == 409


def test_a_folder_is_served_without_a_registry(pair: Pair, admin_key: str, features: Features, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    pair[0].folder.rename(folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    admin = {"Authorization": f"Bearer {admin_key}"}
    with running_service(folder) as service:
        asker = Asker(service, features, pair)
        client = asker.client()
        assert asker.ask(client) == "1"
        client.load_model("backend", headers=admin)
        assert asker.ask(client) == "1", "the same bundle is the same version"
        assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing is written"
        folder.rename(tmp_path / "old")
        pair[1].folder.rename(folder)
        client.load_model("backend", headers=admin)
        assert asker.ask(client) == "2"
        client.unload_model("backend", headers=admin)
        with pytest.raises(InferenceServerException, match="unknown model"):
            asker.ask(client)
        client.load_model("backend", headers=admin)
        assert asker.ask(client) == "2"
        client.close()


def test_every_worker_follows_the_registry(
    folder_registry: Registry, pair: Pair, admin_key: str, features: Features, tmp_path: Path
) -> None:
    registry = folder_registry
    for bundle in pair:
        registry.register(bundle.folder, who=ME)
    with running_service(None, "--registry", str(tmp_path / "registry"), "--workers", "2") as service:
        asker = Asker(service, features, pair)
        asker.service = replace(service, key=registry.keys.create("new", KeyLimits(), who=ME)[1])
        registry.alias("backend", "latest", 1, who=ME)
        first = asker.client()
        first.load_model("backend", headers={"Authorization": f"Bearer {admin_key}"})
        first.close()
        deadline, row = time.monotonic() + 20, 0
        while row < 8 and time.monotonic() < deadline:  # connections go to the workers in turn
            client = asker.client()
            try:
                row = row + 1 if asker.ask(client) == "1" else 0
            except InferenceServerException as error:
                assert error.status() == "401"  # this worker has not heard of the key yet
                row = 0
            finally:
                client.close()
        assert row == 8
