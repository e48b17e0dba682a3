"""A long attack on whoever opens bundles: `python -m harmony.bench.bundle_attack [--cases 10000] [--bundle DIR]`.

Each case damages a copy of a good device bundle, as a folder or a .tar, unsigned or signed and trusted, and has it
verified and opened for ONNX Runtime. What was damaged after it was sealed has to end with a named error; what was
sealed again, as somebody would who wants to be believed, with a named error or with answers, but always with an error
if its key is asked for. All cases run in one process, which must not end: if it does, or hangs, or raises anything
else, the case is kept, a new process goes on, and the exit code is 1. The seed makes a run repeatable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from harmony.bench.bundle_attack_damage import DAMAGES, TAR_DAMAGES
from harmony.bench.bundle_attack_model import write_bundle
from harmony.bench.native_attack import Damage
from harmony.core.archive import pack
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import HarmonyError
from harmony.core.sealed import SIGNATURES, TAR, sign_sealed
from harmony.core.signing import Trust
from harmony.core.signing_keys import make_key, read_secret
from harmony.device import Device, verify

SECONDS = 60.0
FORMS = ("folder", "trusted folder", "tar", "trusted tar")
_KEY = "attack"


class Case(NamedTuple):
    """One of the cases of a seed; the same numbers give the same bytes."""

    number: int
    form: str
    damage: Damage

    @classmethod
    def of(cls, number: int) -> Case:
        """The forms take turns, and within each the damages."""
        form, turn = FORMS[number % len(FORMS)], number // len(FORMS)
        damages = TAR_DAMAGES if "tar" in form else DAMAGES
        return cls(number, form, damages[turn % len(damages)])

    @property
    def may_answer(self) -> bool:
        """Whether it may be whole, though other than it was."""
        return self.damage.sealed and "trusted" not in self.form


class Failure(NamedTuple):
    """A case that did not end as it has to."""

    case: int
    what: str
    problem: str


class Result(NamedTuple):
    """endings: how often each (form and damage, named error or "answers") was seen."""

    cases: int
    endings: Counter[tuple[str, str]]
    failures: list[Failure]


def prepare(work: Path, bundle: Path | None) -> None:
    """Put what is damaged into `work`: the bundle, or a small one made up here, in every form, and a key."""
    if bundle is not None:
        open_device_bundle(bundle)
    make_key(work / _KEY)
    for form in FORMS:
        folder = work / form.replace("tar", "folder")
        if not folder.exists():
            _ = write_bundle(folder) if bundle is None else shutil.copytree(bundle, folder)
            (folder / SIGNATURES).unlink(missing_ok=True)
            if "trusted" in form:
                sign_sealed(folder, DeviceManifest, [read_secret(work / f"{_KEY}.key")])
            open_device_bundle(folder)
        if "tar" in form:
            pack(folder, work / f"{form}{TAR}")


def attack(work: Path, cases: range, seed: int) -> Result:
    """Run cases in processes of their own, in a folder that `prepare` filled and where those that failed are kept."""
    endings: Counter[tuple[str, str]] = Counter()
    failures: list[Failure] = []
    waiting = list(cases)
    while waiting:
        with _process(work, seed, waiting) as process:
            for number in list(waiting):
                line = _line(process)
                case = Case.of(number)
                what = f"{case.form}: {case.damage.name}"
                waiting.pop(0)
                if line is None:
                    failures.append(Failure(number, what, _end(process)))
                    break
                ending, problem = json.loads(line)
                endings[what, ending] += 1
                failures += [Failure(number, what, problem)] if problem else []
    return Result(len(cases), endings, failures)


def run_case(work: Path, seed: int, number: int) -> tuple[str, str]:
    """What became of a case: (its ending, what is wrong with that, if anything is). In this process."""
    case, rng = Case.of(number), random.Random(f"{seed} {number}")  # noqa: S311  (repeatable noise)
    victim = work / f"case-{os.getpid()}" / ("bundle.tar" if "tar" in case.form else "bundle")
    shutil.rmtree(victim.parent, ignore_errors=True)
    victim.parent.mkdir()
    _copy(work / f"{case.form}{TAR if 'tar' in case.form else ''}", victim)
    case.damage.apply(rng, victim)
    trust = Trust.read([work / f"{_KEY}.pub"]) if "trusted" in case.form else None
    endings, problems = zip(
        *(_judge(act, case) for act in (lambda: verify(victim, "onnxruntime", trust), lambda: _answer(victim, trust))),
        strict=True,
    )
    problem = "; ".join(filter(None, problems))
    if problem:
        victim.parent.rename(work / f"failed-{number}")
    return " / ".join(dict.fromkeys(endings)), problem


def _copy(good: Path, victim: Path) -> None:
    """A folder's files as links to the same bytes: damage puts new files in their place, and touches none of them."""
    if good.is_file():
        shutil.copyfile(good, victim)
        return
    victim.mkdir()
    for path in good.iterdir():
        os.link(path, victim / path.name)


def _answer(bundle: Path, trust: Trust | None) -> None:
    device = Device.open(bundle, trust=trust)
    image = device.manifest.image
    device.answer(np.zeros((image.height, image.width, image.channels), image.dtype))


def _judge(act: Callable[[], object], case: Case) -> tuple[str, str]:
    try:
        act()
    except HarmonyError as error:
        text = str(error)
        return type(error).__name__, "" if text.isprintable() and 0 < len(text) <= 2000 else f"says {text!r}"
    except Exception as error:
        return type(error).__name__, f"raises {error!r}"
    return "answers", "" if case.may_answer else "is believed"


@contextmanager
def _process(work: Path, seed: int, numbers: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "harmony.bench.bundle_attack", "--work", str(work), "--seed", str(seed)]
    command += ["--worker", f"{numbers[0]}:{numbers[-1] + 1}"]
    # Unbuffered: a line that waits in a buffer would be missed by whoever watches the pipe.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[bytes]) -> bytes | None:
    """The next case's word; None if the process ends, or says nothing for too long."""
    out: IO[bytes] | None = process.stdout
    assert out is not None  # noqa: S101  # asked for
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        line = out.readline() if selector.select(SECONDS) else b""
    return line if line.endswith(b"\n") else None


def _end(process: subprocess.Popen[bytes]) -> str:
    try:
        return f"the process ended with {process.wait(1)}"
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS:g} s"


def _work(work: Path, seed: int, numbers: range) -> None:
    """The process that must not end: a line a case, at once, on an unbuffered pipe."""
    for number in numbers:
        os.write(1, json.dumps(run_case(work, seed, number)).encode() + b"\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 if a case failed, 2 for a named error."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.bundle_attack", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--bundle", type=Path, help="a device bundle with ONNX files; one is made up by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(options.work, options.seed, range(*map(int, options.worker.split(":"))))
        return 0
    work = Path(tempfile.mkdtemp(prefix="harmony-attack-"))
    try:
        prepare(work, options.bundle)
        result = attack(work, range(options.cases), options.seed)
    except HarmonyError as error:
        shutil.rmtree(work)
        sys.stderr.write(f"harmony.bench.bundle_attack: {type(error).__name__}: {error}\n")
        return error.exit_code
    _report(result, work)
    if not result.failures:
        shutil.rmtree(work)
    return 1 if result.failures else 0


def _report(result: Result, work: Path) -> None:
    for (what, ending), seen in sorted(result.endings.items()):
        sys.stdout.write(f"{what:44} {ending:36} {seen:6}\n")
    for failure in result.failures:
        sys.stdout.write(f"FAILED, kept in {work}/failed-{failure.case}: {failure.what}: {failure.problem}\n")
    digest = hashlib.sha256(repr(sorted(result.endings.items())).encode()).hexdigest()[:12]
    sys.stdout.write(f"{result.cases} cases, {len(result.failures)} failed, endings {digest}\n")


if __name__ == "__main__":
    sys.exit(main())
