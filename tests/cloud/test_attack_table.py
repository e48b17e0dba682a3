"""The table of attacks names tests that there are, and each line of it at least one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "serving-attacks.md").read_text().splitlines()
ATTACKS = [line for line in LINES if line.startswith("| ") and not line.startswith("| attack ")]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_attack_has_tests_that_there_are() -> None:
    assert len(ATTACKS) > 30
    known: dict[str, set[str]] = {}
    for line in ATTACKS:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line)
        assert named, line
        for path, name in named:
            assert name in known.setdefault(path, names_in(ROOT / path)), f"{path}::{name}"


def test_every_test_of_attacks_is_in_the_table() -> None:
    text = "\n".join(LINES)
    for name in ("test_attacks.py", "test_no_code.py"):
        for test in names_in(ROOT / "tests" / "cloud" / name) - {"test_the_trap_works"}:
            assert f"`tests/cloud/{name}::{test}`" in text
