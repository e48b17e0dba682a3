"""`harmony train` and `harmony evaluate`, as a user types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harmony.cli.main import main

SMALL = [
    *("--clients", "2", "--rounds", "2", "--batch", "4", "--arch", "resnet-w8-d1", "--arch", "mobilenet-w8-d1"),
    *("--set", "steps=1", "--set", "back_end_width=8", "--set", "harmony.personalize_epochs=0", "--threads", "1"),
]


@pytest.fixture
def harmony(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harmony", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_train_then_evaluate(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harmony("train", "--out", "run", "--json", *SMALL)
    assert code == 0, err
    told = json.loads(out)
    assert Path(told["checkpoint"]) == Path("run/checkpoint")
    assert [client["architecture"]["family"] for client in told["clients"]] == ["resnet", "mobilenet"]
    code, out, err = harmony("evaluate", "run", "--rho", "0", "--rho", "1", "--json", "--out", "evaluation.json")
    assert code == 0, err
    result = json.loads(out)
    assert [one["rho"] for one in result["mean"]] == [0.0, 1.0]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    code, out, _ = harmony("evaluate", "run", "--rho", "1")
    assert code == 0
    assert "oracle" in out
    assert "mobilenet-w8-d1" in out
    assert "exits.offload" in out


def test_a_printed_config_trains_the_same_run(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text, _ = harmony("train", "--print-config", *SMALL)
    assert code == 0
    (tmp_path / "mine.toml").write_text(text)
    assert harmony("train", "--out", "a/run", *SMALL)[0] == 0
    assert harmony("train", "--out", "b/run", "--config", "mine.toml")[0] == 0
    seals = {(tmp_path / name / "run/checkpoint/manifest.sha256").read_text() for name in "ab"}
    assert len(seals) == 1


def test_options_win_over_the_file(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.toml").write_text('seed = 7\nrounds = 9\n[partition]\nkind = "shards"\nclients = 5\n')
    code, text, _ = harmony("train", "--config", "mine.toml", "--rounds", "3", "--clients", "4", "--print-config")
    assert code == 0
    assert "seed = 7" in text
    assert "rounds = 3" in text
    assert 'kind = "shards"\nclients = 4' in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--arch", "transformer-w16-d1"], "unknown family 'transformer'"),
        (["train", "--arch", "resnet"], "is not an architecture"),
        (["train", "--set", "exits.offload=1.5"], "exits.offload"),
        (["train", "--set", "no.such.field=1"], "no"),
        (["train", "--set", "broken"], "--set"),
        (["train", "--config", "missing.toml"], "missing.toml: "),
        (["train", "--data", "missing-set"], "missing-set"),
        (["train", "--clients", "3", "--classes", "99"], "99"),
        (["train", "--resume"], "no run here to resume"),
        (["train", "--method", "splitgp", "--set", 'exits.score="own_mass"'], "gate"),
        (["evaluate", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(harmony, arguments: list[str], said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harmony(*arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_exists(harmony) -> None:  # type: ignore[no-untyped-def]
    assert harmony("train", "--out", "run", *SMALL)[0] == 0
    code, _, err = harmony("train", "--out", "run", *SMALL)
    assert code == 2
    assert "RunExists: run: " in err
    assert harmony("train", "--out", "run", "--resume")[0] == 0


def test_an_unfinished_run_is_named_by_evaluate(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert harmony("train", "--out", "run", *SMALL)[0] == 0
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "elsewhere")
    code, _, err = harmony("evaluate", "run")
    assert code == 2
    assert "--resume" in err
    checkpoint = tmp_path / "elsewhere"
    tensors = checkpoint / "client-001.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    code, _, err = harmony("evaluate", "elsewhere")
    assert code == 2
    assert "client-001.safetensors" in err
