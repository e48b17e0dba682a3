"""LitServe with the same ONNX file, run by an interpreter that has it: `serving_peer_litserve.py ONNX PORT`.

As lean as LitServe allows: the raw body reaches the batch (a FastAPI dependency instead of JSON), one compute thread,
batches of up to 32. With a batch_timeout of 0, its default, the compute process looks for requests without a pause,
which takes a core; a millisecond has it sleep between two looks.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Depends, Request

SHAPE = (64, 16, 16)


async def raw_body(request: Request) -> bytes:
    """The body as it came."""
    return await request.body()


class Api(litserve.LitAPI):  # type: ignore[misc]  # an untyped peer
    """decode → predict → encode."""

    def setup(self, device: str) -> None:
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Any) -> Any:
        """Bytes → (C, H, W)."""
        return np.frombuffer(request, "<f4").reshape(SHAPE)

    def batch(self, inputs: Any) -> Any:
        """Rows → batch."""
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        """(n, C, H, W) → (n, tokens)."""
        return self.session.run(["probabilities"], {"feature": batch})[0]

    def unbatch(self, output: Any) -> Any:
        """Batch → rows."""
        return list(output)

    def encode_response(self, output: Any) -> Any:
        """Ten numbers as JSON."""
        return {"probabilities": output.tolist()}


Api.decode_request.__annotations__["request"] = Annotated[bytes, Depends(raw_body)]

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error", num_api_servers=1
    )
