"""Some hundred damaged bundles, and that the attack would notice if one of them were believed or ended the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harmony.bench import bundle_attack
from harmony.bench.bundle_attack import FORMS, Case, attack, main, prepare, run_case
from harmony.device import Device

CASES = len(FORMS) * 90


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    prepare(folder, None)
    return folder


def test_every_damage_ends_with_its_name_and_none_ends_the_process(work: Path) -> None:
    result = attack(work, range(CASES), seed=1)
    assert result.failures == []
    assert (result.cases, result.endings.total()) == (CASES, CASES)
    seen = {what for what, _ in result.endings}
    assert seen == {f"{case.form}: {case.damage.name}" for case in map(Case.of, range(CASES))}
    believed = {what for what, ending in result.endings if "answers" in ending}
    assert "folder: threshold, signature pretended" in believed
    assert not [what for what in believed if "trusted" in what or "tar" in what]
    assert ("trusted folder: threshold, signature pretended", "ArtifactUntrusted") in result.endings


def test_a_case_is_the_same_again(work: Path) -> None:
    assert [run_case(work, 3, number) for number in range(24)] == [run_case(work, 3, number) for number in range(24)]


def test_what_is_believed_or_raises_is_a_failure_and_is_kept(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_attack, "_answer", lambda bundle, trust: None)
    ending, problem = run_case(work, 0, 2)
    assert ("answers" in ending, problem) == (True, "is believed")
    assert (work / "failed-2" / "bundle.tar").is_file()

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("of its own")

    monkeypatch.undo()
    monkeypatch.setattr(Device, "open", crash)
    assert run_case(work, 0, 3)[1] == "raises RuntimeError('of its own')"


def test_a_process_that_ends_is_a_failure_and_the_next_one_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bundle_attack._process

    @contextmanager
    def dying(work: Path, seed: int, numbers: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
        if numbers[0] != 100:
            with whole(work, seed, numbers) as process:
                yield process
            return
        with subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stdout=subprocess.PIPE) as process:
            yield process

    monkeypatch.setattr(bundle_attack, "_process", dying)
    result = attack(work, range(100, 104), seed=0)
    assert [(failure.case, failure.problem) for failure in result.failures] == [(100, "the process ended with -6")]
    assert result.endings.total() == 3


def test_the_command_says_what_it_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "8"]) == 0
    assert "8 cases, 0 failed" in capsys.readouterr().out
    assert main(["--cases", "8", "--bundle", str(tmp_path / "gone")]) == 2
