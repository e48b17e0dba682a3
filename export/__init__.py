"""Checkpoint to device and cloud bundles: ONNX, ExecuTorch, parity."""

from harmony.export.int8 import MIN_AGREEMENT
from harmony.export.own_bundles import OwnModule, export_own, own_module
from harmony.export.report import EngineReport, ExportReport, Format
from harmony.export.run import export_run

__all__ = [
    "MIN_AGREEMENT",
    "EngineReport",
    "ExportReport",
    "Format",
    "OwnModule",
    "export_own",
    "export_run",
    "own_module",
]
