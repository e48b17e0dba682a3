"""The gate: what grew is named and fails, what did not does not, and nothing passes for lack of anything to hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harmony.bench.arm.compare import compare, read_arm, read_share
from harmony.bench.arm.results import ArmResult
from harmony.cli.main import app
from harmony.core.errors import ArtifactCorrupt, ArtifactTooNew, ConfigError

Make = Callable[..., ArmResult]
Write = Callable[..., Path]


def gate(before: Path, after: Path, share: str = "1%") -> Result:
    return CliRunner().invoke(app, ["bench", "compare", str(before), str(after), "--fail-above", share])


def test_equal_counts_pass(written: Write) -> None:
    done = gate(written("a.json"), written("b.json"), "0%")
    assert (done.exit_code, done.stdout) == (0, "nothing changed in 5 counts\n")


def test_one_instruction_too_many_fails_a_gate_of_nothing(written: Write) -> None:
    done = gate(written("a.json"), written("b.json", hot=(1001, 2000)), "0%")
    assert done.exit_code == 1
    assert "grew by 0.10%, more than 0.00%: client-000 executorch fp32 a75, exit1" in done.stderr


@pytest.mark.parametrize(("after", "code"), [((1010, 2000), 0), ((1011, 2000), 1), ((1000, 1500), 0), ((900, 2021), 1)])
def test_the_limit_itself_passes_and_a_gain_does_not_pay_for_a_loss(
    after: tuple[int, int], code: int, written: Write
) -> None:
    assert gate(written("a.json"), written("b.json", hot=after), "1%").exit_code == code


def test_what_grew_most_comes_first(make: Make) -> None:
    found = compare(make((1000, 2000)), make((1100, 2400)))
    assert [(one.what, round(one.growth, 2)) for one in found.grown(0.01)] == [
        ("exit2", 0.2), ("first exit2", 0.2), ("exit1", 0.1), ("first exit1", 0.1),
    ]  # fmt: skip


def test_a_bundle_that_is_gone_fails_and_a_new_one_does_not(make: Make, tmp_path: Path) -> None:
    one, other = make(), make(name="client-001")
    both = one.model_copy(update={"bundles": (*one.bundles, *other.bundles)})
    for name, record in (("one", one), ("both", both)):
        (tmp_path / name).write_text(record.model_dump_json())
    gone = gate(tmp_path / "both", tmp_path / "one")
    assert (gone.exit_code, gone.stderr) == (1, "gone: client-001 executorch fp32 a75\n")
    new = gate(tmp_path / "one", tmp_path / "both")
    assert (new.exit_code, new.stdout.splitlines()[-1]) == (0, "new: client-001 executorch fp32 a75")


def test_nothing_in_common_is_an_error_and_no_pass(make: Make) -> None:
    with pytest.raises(ConfigError, match="no bundle on the same core and engine in common"):
        compare(make(core="a53"), make(core="a75"))


def test_another_emulator_is_said(written: Write) -> None:
    assert "also changed: qemu 7.2.22 → 9.0" in gate(written("a.json"), written("b.json", qemu="9.0")).stdout


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("12", 0.12), ("0", 0)])
def test_shares(text: str, share: float) -> None:
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "-1%", "1%%", "a", "inf", "nan", "1e3"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="is no share in percent"):
        read_share(text)


def test_records_of_another_version_or_kind_are_refused(written: Write) -> None:
    path = written("a.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"format_version": 3}))
    with pytest.raises(ArtifactTooNew, match="schema version 3"):
        read_arm(path)
    path.write_text(json.dumps(document | {"format": "harmony-bench"}))
    with pytest.raises(ArtifactCorrupt, match="is a 'harmony-bench', not a 'harmony-bench-arm'"):
        read_arm(path)
