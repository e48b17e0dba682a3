"""`harmony inspect` of a device bundle: what its owner wants to know, on a machine that has no runtime for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harmony.core.errors import ArtifactCorrupt
from harmony.core.inspection import inspect

Make = Callable[..., Path]


def test_classes_exits_and_graphs_are_shown_and_no_runtime_is_loaded(bundle: Path) -> None:
    program = (
        "import sys; from harmony.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'onnxruntime', 'torch', 'executorch', 'onnx'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, "inspect", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={"COLUMNS": "150"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "ant 0 3",
        "bee 1 0 own",
        "exit1 leaves if own_mass ≥ 1e+09",
        "onnxruntime exit2 exit2.onnx 5 – –",
        "onnxruntime exit2: 1 Concat, 2 MatMul, 1 Neg, 1 Reshape",
        "fallback model backend, int8-zstd on the wire",
    ):
        assert line in lines


def test_a_damaged_bundle_is_not_looked_into(bundle: Path) -> None:
    (bundle / "exit1.onnx").write_bytes(b"x" * (bundle / "exit1.onnx").stat().st_size)
    with pytest.raises(ArtifactCorrupt, match=r"exit1\.onnx: was changed"):
        inspect(bundle)


def test_a_sealed_file_that_is_no_program(make_bundle: Make, tmp_path: Path) -> None:
    engines = {"executorch": {"program": "front_end.pte"}}
    for content in (b"", b"text", b"1234ET12", b"\xff\xff\xff\xffET12" + bytes(100)):
        folder = make_bundle(tmp_path / str(len(content)), engines=engines, files={"front_end.pte": content})
        with pytest.raises(ArtifactCorrupt, match=r"front_end\.pte: is (not an|no whole) ExecuTorch program"):
            inspect(folder)
