"""One fallback client, sixteen threads or tasks, a real service: everybody gets the answer to their own question."""

from __future__ import annotations

import asyncio
import gc
import http.client
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.cloud.process import RunningService, running_service
from harmony.core.bundle import VECTORS, CloudManifest, DeviceManifest, Exit, Fallback, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.device import AsyncFallbackClient, Device, FallbackClient
from harmony.device.decision import Decision

CUT = FeatureSpec(channels=4, height=1, width=64)
TOKENS, THREADS, QUESTIONS = 256, 16, 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A back end whose answer is the place of the feature's largest value, so that each question has its own."""
    nodes = [
        helper.make_node("Flatten", ["feature"], ["flat"]),
        helper.make_node("Mul", ["flat", "ten"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    feature = helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", *CUT.shape])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", TOKENS])
    ten = numpy_helper.from_array(np.array(10, np.float32), "ten")
    graph = helper.make_graph(nodes, "g", [feature], [probabilities], [ten])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    flat = np.full((2, TOKENS), 1 / TOKENS, np.float32)
    vectors = {"feature": np.zeros((2, *CUT.shape), np.float32), "probabilities": flat}
    folder = tmp_path_factory.mktemp("many") / "cloud"
    with sealing(folder) as draft:
        (draft / "back_end.onnx").write_bytes(model.SerializeToString())
        write_vectors(draft / VECTORS, vectors)
        seal(draft, CloudManifest(harmony_version="0", run="r", method="m", feature=CUT, tokens=TOKENS, parameters=1))
    with running_service(folder, "--queue-seconds", "10") as running:
        yield running


@pytest.fixture(scope="module")
def manifest() -> DeviceManifest:
    names = tuple(f"class {number}" for number in range(TOKENS))
    exits = (Exit(name="exit1", score="msp", threshold=1), Exit(name="exit2", score="msp", threshold=1))
    return DeviceManifest(
        harmony_version="0", run="r", method="m", client=0, architecture=Architecture.parse("resnet-w8-d1"),
        dataset="made-up", image=ImageSpec(height=4, width=4, channels=1, mean=(0,), std=(1,)), feature=CUT,
        classes=ClassMap(names=names, own=(0,), tokens=tuple(reversed(range(TOKENS)))), exits=exits, gate=False,
        fallback=Fallback(), engines={"onnxruntime": {"exit1": "a", "exit2": "b"}}, parameters=1,
    )  # fmt: skip


def question(place: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    feature = np.zeros(TOKENS, np.float32)
    feature[place] = 1
    return feature.reshape(CUT.shape)


def test_sixteen_threads(service: RunningService, manifest: DeviceManifest) -> None:
    wrong: list[object] = []
    start = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        start.wait()
        for number in range(QUESTIONS):
            place = (thread * QUESTIONS + 37 * number) % TOKENS
            try:
                answer = client.ask(question(place))
                if answer.label != TOKENS - 1 - place or answer.probability < 0.9:
                    wrong.append((place, answer))
            except Exception as error:
                wrong.append(error)

    with FallbackClient(service.url, service.key, manifest=manifest, deadline_s=30) as client:
        client.check()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_sixteen_tasks(service: RunningService, manifest: DeviceManifest) -> None:
    async def work(client: AsyncFallbackClient, task: int) -> None:
        for number in range(QUESTIONS):
            place = (task * QUESTIONS + 37 * number) % TOKENS
            answer = await client.ask(question(place))
            assert answer.label == TOKENS - 1 - place
            assert answer.probability > 0.9

    async def everybody() -> None:
        async with AsyncFallbackClient(service.url, service.key, manifest=manifest, deadline_s=30) as client:
            await client.check()
            await asyncio.gather(*(work(client, task) for task in range(THREADS)))

    asyncio.run(everybody())


class Scripted:
    """Leaves at exit 1, at exit 2, or not at all, by the image's first value."""

    def decide(self, image: Any) -> Decision:
        way = int(image[0, 0, 0])
        return Decision("exit1" if way == 0 else "exit2", 0, 1.0, (0.0,), 0.0, question(7) if way == 2 else None)


def images() -> list[Any]:
    return [np.full((4, 4, 1), (number * 7 + number // 9) % 3, np.uint8) for number in range(QUESTIONS)]


def counted(service: RunningService) -> Counter[str]:
    """Where samples were answered, as the service knows it."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {service.key}"})
    text = connection.getresponse().read().decode()
    connection.close()
    told = re.findall(r'^harmony_device_exits_total{exit="(\w+)".*} (\S+)$', text, re.MULTILINE)
    here = re.findall(r"^harmony_(rows)_total{.*} (\S+)$", text, re.MULTILINE)
    return Counter({name.replace("rows", "cloud"): int(float(count)) for name, count in [*told, *here]})


def test_the_service_learns_where_the_devices_of_sixteen_threads_answered(
    service: RunningService, manifest: DeviceManifest
) -> None:
    before, exits = counted(service), list[str]()

    def work() -> None:
        device = Device(manifest, Scripted(), client)
        exits.extend([device.answer(image).exit for image in images()])

    with FallbackClient(service.url, service.key, manifest=manifest, deadline_s=30) as client:
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.ask(question(0))  # tells what was answered after the last question
    assert len(exits) == THREADS * QUESTIONS
    assert counted(service) - before == Counter([*exits, "cloud"])


def test_the_service_learns_where_the_devices_of_sixteen_tasks_answered(
    service: RunningService, manifest: DeviceManifest
) -> None:
    before, exits = counted(service), list[str]()

    async def work(client: AsyncFallbackClient) -> None:
        device = Device(manifest, Scripted())
        for image in images():
            exits.append((await device.answer_async(image, client)).exit)

    async def everybody() -> None:
        async with AsyncFallbackClient(service.url, service.key, manifest=manifest, deadline_s=30) as client:
            await asyncio.gather(*(work(client) for _ in range(THREADS)))
            await client.ask(question(0))

    asyncio.run(everybody())
    assert len(exits) == THREADS * QUESTIONS
    assert counted(service) - before == Counter([*exits, "cloud"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_of_a_loop_that_ended_are_not_used(service: RunningService, manifest: DeviceManifest) -> None:
    client = AsyncFallbackClient(service.url, service.key, manifest=manifest, deadline_s=30)
    for place in range(3):
        assert asyncio.run(client.ask(question(place))).label == TOKENS - 1 - place
    asyncio.run(client.close())
    gc.collect()  # what the ended loops left open is complained about here


def test_a_task_that_is_cancelled_takes_its_connection_with_it(
    service: RunningService, manifest: DeviceManifest
) -> None:
    """The answer to a question that nobody waits for any more must not be taken for the answer to the next."""

    async def impatient() -> None:
        async with AsyncFallbackClient(service.url, service.key, manifest=manifest, deadline_s=30) as client:
            for place in range(50):
                task = asyncio.create_task(client.ask(question(place)))
                for _ in range(place % 12):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                other = (place + 100) % TOKENS
                assert (await client.ask(question(other))).label == TOKENS - 1 - other
            assert client.circuit == "closed"

    asyncio.run(impatient())
