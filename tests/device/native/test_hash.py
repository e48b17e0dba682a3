"""SHA-256 with and without the processor's instructions for it, against the standard library's."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from harmony.device.native_build import SOURCES

LENGTHS = (0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000, 70_000)
# Each message whole, then in pieces of 7 bytes and more.
PROGRAM = """
#include <cstdio>
#include "sha256.h"
int main() {
  for (const size_t size : {LENGTHS}) {
    std::string text;
    for (size_t i = 0; i < size; ++i) text += static_cast<char>(i * 7 + i / 256);
    harmony::Sha256 pieces;
    for (size_t at = 0, step = 7; at < size; at += step++) pieces.update(text.data() + at, std::min(step, size - at));
    std::printf("%s %s\\n", harmony::sha256_hex(text.data(), size).c_str(), pieces.hex().c_str());
  }
}
"""
WITHOUT = '#include "sha256_hardware.h"\nharmony::Sha256Blocks harmony::sha256_hardware() { return nullptr; }\n'


@pytest.mark.parametrize("hardware", [True, False])
def test_hashes(hardware: bool, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no c++ here")
    (tmp_path / "main.cpp").write_text("#include <algorithm>\n" + PROGRAM.replace("LENGTHS", str(LENGTHS)[1:-1]))
    (tmp_path / "without.cpp").write_text(WITHOUT)
    second = SOURCES / "sha256_hardware.cpp" if hardware else tmp_path / "without.cpp"
    sources = [tmp_path / "main.cpp", SOURCES / "sha256.cpp", second]
    subprocess.run(["c++", "-std=c++17", "-O1", "-I", SOURCES, *sources, "-o", tmp_path / "main"], check=True)
    lines = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    for size, line in zip(LENGTHS, lines, strict=True):
        expected = hashlib.sha256(bytes((i * 7 + i // 256) % 256 for i in range(size))).hexdigest()
        assert line == f"{expected} {expected}"
