"""Checkpoint to device and cloud bundles: ONNX, ExecuTorch, parity."""
