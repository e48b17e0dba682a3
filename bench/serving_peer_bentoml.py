"""BentoML with the same ONNX file, run by an interpreter that has it: `bentoml serve serving_peer_bentoml:Front`.

Its adaptive batching behind a raw ASGI route; HARMONY_PEER_ONNX names the file. It refuses what it expects to take
longer than max_latency_ms, and before it has measured anything it expects up to 2 s a sample and 1 s more: 65 s at 32
connections. A limit above that has it refuse nothing, as our own service refuses nothing here.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SHAPE = (1, 64, 16, 16)
CONNECTION = {"max_requests": 1_000_000_000, "max_age": 86_400.0}
"""How long the front keeps its connections to the model. After 100 requests, its default, it closes them under those
that are on their way, and answers these with 500."""


@bentoml.service(workers=1, traffic={"timeout": 60}, runner_connection=CONNECTION)  # type: ignore[untyped-decorator,unused-ignore]
class Model:
    """The model in a process of its own, batched."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["HARMONY_PEER_ONNX"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=120_000)  # type: ignore[untyped-decorator,unused-ignore]
    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, C, H, W) → (n, tokens)."""
        probabilities: np.ndarray = self.session.run(["probabilities"], {"feature": features})[0]
        return probabilities


async def infer(request: Request) -> JSONResponse:
    """Raw float32 in, ten numbers out."""
    feature = np.frombuffer(await request.body(), "<f4").reshape(SHAPE)
    front: Any = bentoml.get_current_service()
    probabilities = await front.model.to_async.predict(feature)
    return JSONResponse({"probabilities": probabilities[0].tolist()})


app = Starlette(routes=[Route("/predict", infer, methods=["POST"])])


@bentoml.service(workers=1, traffic={"timeout": 60})  # type: ignore[untyped-decorator,unused-ignore]
@bentoml.asgi_app(app, path="/raw")  # type: ignore[untyped-decorator,unused-ignore]
class Front:
    """The HTTP side."""

    model = bentoml.depends(Model)
