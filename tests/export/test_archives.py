"""Bundles that are signed and packed as they are exported, and that the same checkpoint always gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmony.core.archive import pack
from harmony.core.bundle import open_bundle, open_device_bundle
from harmony.core.errors import ArtifactUntrusted, RunExists
from harmony.core.sealed import read_signatures
from harmony.core.signing import Trust
from harmony.core.signing_keys import SecretKey, make_key, read_secret
from harmony.device import verify
from harmony.export import ExportReport, export_run


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    make_key(tmp_path / "keys" / "release")
    return read_secret(tmp_path / "keys" / "release.key")


def trusting(key: SecretKey) -> Trust:
    return Trust((key.public,))


def test_two_exports_of_a_checkpoint_are_the_same_bytes(
    exported: tuple[Path, list[ExportReport]], tiny_run: Path, tmp_path: Path
) -> None:
    """Another process, another order of everything that may be ordered, and hashes that begin elsewhere."""
    program = f"""
import pathlib
from harmony.export import export_run
export_run(
    pathlib.Path({str(tiny_run)!r}), pathlib.Path({str(tmp_path)!r}), clients=[1], formats=["executorch", "onnx"],
    tar=True,
)
"""
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "7"}, check=True, timeout=300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client-001.tar", "cloud.tar"]
    for tar in sorted(tmp_path.glob("*.tar")):
        open_bundle(tar)
        pack(exported[0] / tar.stem, tmp_path / "again.tar")
        assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes(), tar.name
        (tmp_path / "again.tar").unlink()


def test_signed_archives_answer_as_folders_do(tiny_run: Path, tmp_path: Path, key: SecretKey) -> None:
    reports = export_run(tiny_run, tmp_path / "out", clients=[2], formats=["onnx"], keys=[key], tar=True)
    assert [report.bundle.name for report in reports] == ["client-002.tar", "cloud.tar"]
    for report in reports:
        found = verify(report.bundle, trust=trusting(key))
        assert (found.signed, found.trusted) == ((key.public.id,), True)
        assert verify(report.bundle).signature == f"signed by {key.public.id}, not checked"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["client-002.tar", "cloud.tar"]


def test_an_export_again_keeps_what_is_signed_by_the_same_keys(tiny_run: Path, tmp_path: Path, key: SecretKey) -> None:
    out = tmp_path / "out"
    export_run(tiny_run, out, clients=[2], formats=["onnx"], keys=[key])
    open_device_bundle(out / "client-002", trusting(key))
    reports = export_run(tiny_run, out, clients=[2], formats=["onnx"], keys=[key])
    assert [report.kept for report in reports] == [True, True]
    other = SecretKey(bytes(32), "other")
    with pytest.raises(ArtifactUntrusted):
        open_device_bundle(out / "client-002", trusting(other))
    with pytest.raises(RunExists, match=r"client-002: is not signed by other \([0-9a-f]{16}\) \(sign it with"):
        export_run(tiny_run, out, clients=[2], formats=["onnx"], keys=[key, other])
    signatures = read_signatures(out / "client-002")
    assert signatures is not None
    assert list(signatures.by) == [key.public.id]
