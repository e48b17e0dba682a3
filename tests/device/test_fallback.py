"""Both fallback clients against real servers on a real port, good ones and every kind of bad one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.core.bundle import DeviceManifest, Fallback, open_device_bundle
from harmony.core.errors import (
    CloudAnswerInvalid,
    CloudRefused,
    CloudTimeout,
    CloudUnreachable,
    ConfigError,
    ContractMismatch,
    FallbackError,
    InvalidInput,
)
from harmony.device import Device, FallbackClient

Reply = Callable[..., None]
GOOD = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
FEATURE = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)


pytestmark = pytest.mark.usefixtures("either_client")


def test_asks_and_translates_the_token_into_a_label(
    manifest: DeviceManifest, serve: Any, reply_probabilities: Reply, parse_request: Callable[..., Any]
) -> None:
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url, "secret", manifest=manifest) as client,
    ):
        answer = client.ask(FEATURE)
    assert answer.label == 4  # token 2, by the class map's (3, 0, 4, 1, 2)
    assert answer.probability == pytest.approx(0.4)
    (request,) = service.requests
    assert request["path"] == "/v2/models/backend/infer"
    assert request["headers"]["authorization"] == "Bearer secret"
    assert answer.sent == len(request["body"])
    assert answer.received > 20
    header, feature = parse_request(request)
    assert header["parameters"] == {"cut": "2x4x4-float32"}
    assert header["outputs"] == [{"name": "probabilities", "parameters": {"binary_data": True}}]
    np.testing.assert_allclose(feature, FEATURE, atol=float(np.abs(FEATURE).max()) / 127)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8-zstd"])
def test_every_codec_and_model_name(
    codec: Any, manifest: DeviceManifest, serve: Any, reply_probabilities: Reply, parse_request: Callable[..., Any]
) -> None:
    other = manifest.model_copy(update={"fallback": Fallback(model="second", codec=codec)})
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url + "/", None, manifest=other) as client,
    ):
        client.ask(FEATURE)
    assert service.requests[0]["path"] == "/v2/models/second/infer"
    assert "authorization" not in service.requests[0]["headers"]
    np.testing.assert_allclose(parse_request(service.requests[0])[1], FEATURE, atol=0.02)


def test_one_connection_for_all_questions(manifest: DeviceManifest, serve: Any, reply_probabilities: Reply) -> None:
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url, None, manifest=manifest) as client,
    ):
        for _ in range(5):
            client.ask(FEATURE)
    assert len(service.requests) == 5
    assert len(service.connections) == 1


@pytest.mark.parametrize(("status", "mend"), [(401, "check the key"), (404, "check the URL"), (413, ""), (500, "")])
def test_a_refusal_carries_status_and_words(
    status: int, mend: str, manifest: DeviceManifest, serve: Any, reply: Reply
) -> None:
    body = json.dumps({"error": "so\nnot"}).encode()
    with serve(lambda handler, _: reply(handler, status, body)) as service:
        client = FallbackClient(service.url, "wrong", manifest=manifest)
        with client, pytest.raises(CloudRefused, match=rf"answered {status}: so not") as caught:
            client.ask(FEATURE)
    assert mend in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert len(service.requests) == 1


def test_a_refusal_whose_body_is_nonsense(manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    with serve(lambda handler, _: reply(handler, 400, b"\xff" * 50)) as service:
        client = FallbackClient(service.url, None, manifest=manifest)
        with client, pytest.raises(CloudRefused, match=r"answered 400$"):
            client.ask(FEATURE)


def test_a_redirect_is_not_followed(manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    with serve(lambda handler, _: reply(handler, 307, b"", Location="/elsewhere")) as service:
        client = FallbackClient(service.url, "k", manifest=manifest)
        with client, pytest.raises(CloudRefused, match="answered 307"):
            client.ask(FEATURE)
    assert len(service.requests) == 1


def test_busy_then_free(manifest: DeviceManifest, serve: Any, reply: Reply, reply_probabilities: Reply) -> None:
    def behave(handler: Any, attempt: int) -> None:
        if attempt == 1:
            reply(handler, 503, b'{"error": "busy"}', Retry_After="0")
        else:
            reply_probabilities(handler, GOOD)

    with serve(behave) as service, FallbackClient(service.url, None, manifest=manifest) as client:
        answer = client.ask(FEATURE)
    assert answer.label == 4
    assert answer.sent == sum(len(request["body"]) for request in service.requests)
    assert len(service.requests) == 2


def test_a_retry_that_would_come_too_late_is_not_made(manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    with serve(lambda handler, _: reply(handler, 503, b'{"error": "busy"}', Retry_After="30")) as service:
        started = time.monotonic()
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=2)
        with client, pytest.raises(CloudRefused, match="answered 503: busy"):
            client.ask(FEATURE)
    assert len(service.requests) == 1
    assert time.monotonic() - started < 2


def test_always_busy_gives_up(manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    with serve(lambda handler, _: reply(handler, 503, b"", Retry_After="0")) as service:
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=5)
        with client, pytest.raises(CloudRefused, match="503"):
            client.ask(FEATURE)
    assert len(service.requests) == 3


def _answer(**changes: Any) -> bytes:
    output = {
        "name": "probabilities", "datatype": "FP32", "shape": [1, 5], "parameters": {"binary_data_size": 20},
    } | changes  # fmt: skip
    return json.dumps({"outputs": [output]}).encode()


INVALID = {
    "not JSON": (b"<html>hello</html>", GOOD.tobytes(), "is not JSON"),
    "a list": (b"[]", GOOD.tobytes(), "not a JSON object"),
    "no outputs": (b"{}", GOOD.tobytes(), "exactly one output"),
    "another name": (_answer(name="logits"), GOOD.tobytes(), "another output"),
    "another type": (_answer(datatype="FP64"), GOOD.tobytes(), "FP64"),
    "another shape": (_answer(shape=[1, 6]), GOOD.tobytes(), r"\[1, 6\]"),
    "two rows": (_answer(shape=[2, 5]), GOOD.tobytes() * 2, r"\[2, 5\]"),
    "size is text": (_answer(parameters={"binary_data_size": "20"}), GOOD.tobytes(), "20 bytes"),
    "no parameters": (_answer(parameters=None), GOOD.tobytes(), "probabilities"),
    "short": (_answer(), GOOD.tobytes()[:-1], "19 bytes"),
    "long": (_answer(), GOOD.tobytes() + b"x", "21 bytes"),
    "NaN": (_answer(), np.array([np.nan, 1, 0, 0, 0], "<f4").tobytes(), "not finite"),
    "infinity": (_answer(), np.array([np.inf, 1, 0, 0, 0], "<f4").tobytes(), "not finite"),
    "negative": (_answer(), np.array([-0.5, 1.5, 0, 0, 0], "<f4").tobytes(), "negative"),
    "sum": (_answer(), (GOOD * 2).tobytes(), "add up to 2"),
    "deep": (b"[" * 60000, b"", "is not JSON"),
}


@pytest.mark.parametrize("fault", INVALID)
def test_an_answer_that_is_none(fault: str, manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    text, blob, words = INVALID[fault]

    def behave(handler: Any, _: int) -> None:
        reply(handler, 200, text + blob, Inference_Header_Content_Length=str(len(text)))

    with serve(behave) as service:
        client = FallbackClient(service.url, None, manifest=manifest)
        with client, pytest.raises(CloudAnswerInvalid, match=words):
            client.ask(FEATURE)


@pytest.mark.parametrize("length", [None, "-1", "x", "9999999999", "²"])
def test_a_header_length_that_is_none(length: str | None, manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    headers = {} if length is None else {"Inference_Header_Content_Length": length}
    with serve(lambda handler, _: reply(handler, 200, _answer() + GOOD.tobytes(), **headers)) as service:
        client = FallbackClient(service.url, None, manifest=manifest)
        with client, pytest.raises(CloudAnswerInvalid, match="Inference-Header-Content-Length"):
            client.ask(FEATURE)


def _raw(head: str, body: bytes) -> Callable[[Any, int], None]:
    def behave(handler: Any, _: int) -> None:
        handler.wfile.write(head.replace("\n", "\r\n").encode() + body)
        handler.close_connection = True

    return behave


def _chunked(content: bytes, *cuts: int) -> bytes:
    parts = [content[start:end] for start, end in zip((0, *cuts), (*cuts, len(content)), strict=True)]
    return b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: 1\r\n\r\n"


_HEADER = f"Inference-Header-Content-Length: {len(_answer())}\n"
_BODY = _answer() + GOOD.tobytes()
FORMS = {
    "as long as it says": (f"HTTP/1.1 200 OK\n{_HEADER}Content-Length: {len(_BODY)}\n\n", _BODY),
    "in chunks": (f"HTTP/1.1 200 OK\n{_HEADER}Transfer-Encoding: chunked\n\n", _chunked(_BODY, 1, 7, len(_BODY) - 1)),
    "until it hangs up": (f"HTTP/1.1 200 OK\n{_HEADER}\n", _BODY),
    "of version 1.0": (f"HTTP/1.0 200 OK\n{_HEADER}\n", _BODY),
    "without a reason": (f"HTTP/1.1 200 \n{_HEADER}Content-Length: {len(_BODY)}\n\n", _BODY),
    "after a promise": (f"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n{_HEADER}Content-Length: {len(_BODY)}\n\n", _BODY),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_answer(form: str, manifest: DeviceManifest, serve: Any) -> None:
    with (
        serve(_raw(*FORMS[form])) as service,
        FallbackClient(service.url, None, manifest=manifest, deadline_s=5) as client,
    ):
        for _ in range(2):  # the second over the first's connection, if that were kept by mistake
            assert client.ask(FEATURE).label == 4


NONSENSE = {
    "a length that is none": ("HTTP/1.1 200 OK\nContent-Length: -5\n\n", b""),
    "another coding": ("HTTP/1.1 200 OK\nTransfer-Encoding: gzip\n\n", b"x" * 50),
    "a chunk too long": ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"ffffffffffff\r\n" + b"x" * 9999),
    "a chunk without size": ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"\r\n\r\n"),
    "a chunk cut short": ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"50\r\nhalf"),
    "another protocol": ("HTTQ/1.1 200 OK\n\n", b""),
    "no status": ("HTTP/1.1 OK\n\n", b""),
    "headers without end": (f"HTTP/1.1 200 OK\nX: {'x' * 99999}\n\n", b""),
    "many headers": ("HTTP/1.1 200 OK\n" + "X: 1\n" * 999 + "\n", b""),
}


@pytest.mark.parametrize("fault", NONSENSE)
def test_what_is_not_quite_http(fault: str, manifest: DeviceManifest, serve: Any) -> None:
    with serve(_raw(*NONSENSE[fault])) as service:
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=5)
        with client, pytest.raises((CloudUnreachable, CloudAnswerInvalid), match=service.url):
            client.ask(FEATURE)


def test_an_endless_answer_is_cut_off(manifest: DeviceManifest, serve: Any) -> None:
    sent = 0

    def behave(handler: Any, _: int) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while sent < 1 << 30:
                sent += handler.wfile.write(b"x" * 65536)
        except OSError:
            handler.close_connection = True

    with serve(behave) as service:
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=30)
        with client, pytest.raises(CloudAnswerInvalid, match="larger than"):
            client.ask(FEATURE)
    assert sent < 1 << 26


def _drip_body(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    _drip(handler, b"x")


def _drip_headers(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Padding: ")
    _drip(handler, b"x")


def _drip(handler: Any, byte: bytes) -> None:
    """A byte every 50 ms: no single read is slow, all of them together never end."""
    handler.close_connection = True
    try:
        for _ in range(200):
            handler.wfile.write(byte)
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


def _say_nothing(handler: Any) -> None:
    handler.close_connection = True
    time.sleep(2)


@pytest.mark.parametrize("slow", [_say_nothing, _drip_headers, _drip_body])
def test_however_slow_the_deadline_holds(slow: Any, manifest: DeviceManifest, serve: Any) -> None:
    with serve(lambda handler, _: slow(handler)) as service:
        started = time.monotonic()
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=0.4)
        with client, pytest.raises(CloudTimeout, match=r"no answer within 0\.4 s"):
            client.ask(FEATURE)
        # Ten times the deadline would be the drip's end: generous for a busy machine, and far from it.
        assert 0.35 < time.monotonic() - started < 4


def test_nobody_listens(manifest: DeviceManifest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = FallbackClient(url, None, manifest=manifest, deadline_s=2)
        with client, pytest.raises(CloudUnreachable, match=rf"{url}.*is the service running"):
            client.ask(FEATURE)


def test_an_unknown_host(manifest: DeviceManifest) -> None:
    client = FallbackClient("http://nobody.invalid:8080", None, manifest=manifest, deadline_s=5)
    with client, pytest.raises(FallbackError):
        client.ask(FEATURE)


def test_a_server_that_dies_midway_is_asked_again(
    manifest: DeviceManifest, serve: Any, reply_probabilities: Reply
) -> None:
    def behave(handler: Any, attempt: int) -> None:
        if attempt == 1:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf")
            handler.close_connection = True
        else:
            reply_probabilities(handler, GOOD)

    with serve(behave) as service, FallbackClient(service.url, None, manifest=manifest) as client:
        assert client.ask(FEATURE).label == 4
    assert len(service.requests) == 2


def test_a_server_that_always_dies_midway(manifest: DeviceManifest, serve: Any) -> None:
    def behave(handler: Any, _: int) -> None:
        handler.close_connection = True

    with serve(behave) as service:
        client = FallbackClient(service.url, None, manifest=manifest, deadline_s=5)
        with client, pytest.raises(CloudUnreachable):
            client.ask(FEATURE)
    assert len(service.requests) == 3


def test_something_that_is_not_http(manifest: DeviceManifest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 smtp ready\r\n\r\n")
                    connection.recv(65536)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = FallbackClient(url, None, manifest=manifest, deadline_s=5)
        with client, pytest.raises(FallbackError):
            client.ask(FEATURE)
        thread.join(5)


def test_a_feature_that_is_not_finite_is_not_sent(manifest: DeviceManifest, serve: Any) -> None:
    with (
        serve(lambda handler, _: None) as service,
        FallbackClient(service.url, None, manifest=manifest) as client,
        pytest.raises(InvalidInput),
    ):
        client.ask(FEATURE * np.float32(np.nan))
    assert not service.requests


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://host", "http://", "http://host:99999", "http://u@host", "http://h/?q", "http://ü"],
)
def test_urls_that_are_none(url: str, manifest: DeviceManifest) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        FallbackClient(url, None, manifest=manifest)


@pytest.mark.parametrize("key", ["", "two words", "new\nline", "schlüssel"])
def test_keys_that_are_none(key: str, manifest: DeviceManifest) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        FallbackClient("http://127.0.0.1:1", key, manifest=manifest)


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_deadlines_that_are_none(deadline: float, manifest: DeviceManifest) -> None:
    with pytest.raises(ConfigError, match="deadline"):
        FallbackClient("http://127.0.0.1:1", None, manifest=manifest, deadline_s=deadline)


def _metadata(feature: object, probabilities: object) -> bytes:
    return json.dumps(
        {
            "name": "backend",
            "inputs": [{"name": "feature_frame", "shape": [-1]}, {"name": "feature", "shape": feature}],
            "outputs": [{"name": "probabilities", "shape": probabilities}],
        }
    ).encode()


def test_check_passes_for_the_same_cut(manifest: DeviceManifest, serve: Any, reply: Reply) -> None:
    with (
        serve(lambda handler, _: reply(handler, 200, _metadata([-1, 2, 4, 4], [-1, 5]))) as service,
        FallbackClient(service.url, "k", manifest=manifest) as client,
    ):
        client.check()
    assert service.requests[0]["path"] == "/v2/models/backend"
    assert service.requests[0]["headers"]["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("feature", "probabilities", "words"),
    [
        ([-1, 32, 7, 7], [-1, 5], r"device has 2x4x4-float32.*takes feature \[-1, 32, 7, 7\]"),
        ([-1, 2, 4, 4], [-1, 10], r"device knows 5 classes.*\[-1, 10\]"),
        (None, [-1, 5], "takes feature None"),
    ],
)
def test_check_names_both_sides_of_a_mismatch(
    feature: object, probabilities: object, words: str, manifest: DeviceManifest, serve: Any, reply: Reply
) -> None:
    with serve(lambda handler, _: reply(handler, 200, _metadata(feature, probabilities))) as service:
        client = FallbackClient(service.url, None, manifest=manifest)
        with client, pytest.raises(ContractMismatch, match=words):
            client.check()


def test_device_degrades_within_the_deadline_and_recovers(bundle: Path, serve: Any, reply_probabilities: Reply) -> None:
    manifest = open_device_bundle(bundle)

    def behave(handler: Any, attempt: int) -> None:
        if attempt == 1:
            _say_nothing(handler)
        else:
            reply_probabilities(handler, GOOD)

    image = np.random.default_rng(0).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    with serve(behave) as service, FallbackClient(service.url, None, manifest=manifest, deadline_s=0.4) as client:
        device = Device.open(bundle, fallback=client)
        first, second = device.answer(image), device.answer(image)
    assert (first.exit, first.degraded) == ("exit2", True)
    assert first.reason is not None
    assert first.reason.startswith("CloudTimeout: http://127.0.0.1")
    assert 0.35 < first.seconds < 1.9
    assert (second.exit, second.label, second.degraded) == ("cloud", 4, False)
