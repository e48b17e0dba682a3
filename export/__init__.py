"""Checkpoint to device and cloud bundles: ONNX, ExecuTorch, parity."""

from harmony.export.report import EngineReport, ExportReport, Format
from harmony.export.run import export_run

__all__ = ["EngineReport", "ExportReport", "Format", "export_run"]
