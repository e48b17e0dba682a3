"""A long attack on the native core: `python -m harmony.bench.native_attack BUNDLE [--count 10000] [--trust PUB]`.

Each round damages a copy of a good device bundle and gives it to harmony-run, in a process of its own. What was damaged
after it was sealed has to end with a named error; what was sealed again, as somebody would who wants to be believed,
with a named error or with answers; but if the bundle is signed, and the key trusted, always with an error. A signal,
another exit code, a hang, or anything but one line on stderr is a failure: the bundle is kept, and the exit code is 1.
The seed makes a run repeatable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError, HarmonyError
from harmony.core.sealed import MANIFEST, SEAL, SIGNATURES
from harmony.device.native_build import PROGRAM, ensure_native

_SECONDS = 30
_NAMED = re.compile(
    r"harmony-run: (Artifact(?:Missing|Corrupt|TooNew|Untrusted)|ContractMismatch|EngineUnavailable|EngineError): .+\n"
)
_JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.5, 1e308, -1e308, 1 << 63, 1 << 200, 4097, "", ".", "..", "../front_end.pte", "/etc/passwd",
    "a/b", "x" * 300, "executorch", "own_mass", "entropy", "fp16", "é\x00\n", [], {}, [[]], [0] * 300, {"a": {"b": 1}},
)  # fmt: skip
_TOKENS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-",
    b"01",
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\xff\xfe",
    b'"\\ud800"',
    b"\0",
    b",",
    b'"',
)


class Damage(NamedTuple):
    """How a copy of the bundle is damaged. sealed: it may be whole, though other than it was."""

    name: str
    apply: Callable[[random.Random, Path], None]
    sealed: bool = False


class Failure(NamedTuple):
    """A round that did not end as it has to."""

    round: int
    damage: str
    exit_code: int
    stderr: str


class Result(NamedTuple):
    """endings: how often each (damage, named error or "answers") was seen."""

    rounds: int
    endings: Counter[tuple[str, str]]
    failures: list[Failure]


def attack(
    bundle: Path, work: Path, *, count: int, seed: int, trust: Path | None = None, program: Path | None = None
) -> Result:
    """`count` rounds on copies of a sealed device bundle in the folder `work`, where those that failed are kept.

    trust: the public key of a signed bundle, without which nobody could see damage to its signature: ConfigError.
    """
    manifest = open_device_bundle(bundle)
    if (bundle / SIGNATURES).exists() and trust is None:
        raise ConfigError("is signed", where=bundle, mend="give the key with --trust")
    command = [program or ensure_native() / PROGRAM, *(("--trust", trust) if trust else ())]
    spec, images = manifest.image, work / "images.bin"
    images.write_bytes(bytes(spec.height * spec.width * spec.channels * (1 if spec.dtype == "uint8" else 4)))
    good = work / "good"  # beside its copies, which are links to its files
    shutil.copytree(bundle, good)
    endings: Counter[tuple[str, str]] = Counter()
    failures = []
    for number in range(count):
        rng, damage = random.Random(f"{seed} {number}"), DAMAGES[number % len(DAMAGES)]  # noqa: S311  (no secret)
        copy = work / "bundle"
        _copy(good, copy)
        damage.apply(rng, copy)
        believed = damage.sealed and trust is None
        ending, failure = _judge([*command, copy, images], damage.name, number, believed=believed)
        endings[damage.name, ending] += 1
        if failure is not None:
            failures.append(failure)
            copy.rename(work / f"failed-{number}")
        shutil.rmtree(copy, ignore_errors=True)
    return Result(count, endings, failures)


def _copy(bundle: Path, copy: Path) -> None:
    """Files as links to the same bytes: damage puts new files in their place, and touches none of them."""
    copy.mkdir()
    for path in bundle.iterdir():
        os.link(path, copy / path.name)


def _judge(command: list[Any], damage: str, number: int, *, believed: bool) -> tuple[str, Failure | None]:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "hangs", Failure(number, damage, 0, "no end")
    error = done.stderr.decode(errors="replace")
    named = _NAMED.fullmatch(error)
    if done.returncode == 2 and named is not None:
        return named[1], None
    if done.returncode == 0 and believed and not error and _answers(done.stdout):
        return "answers", None
    return "fails", Failure(number, damage, done.returncode, error[:500])


def _answers(output: bytes) -> bool:
    try:
        return bool(json.loads(output)["image"] == 0)
    except (ValueError, KeyError, TypeError):
        return False


def _pick(rng: random.Random, bundle: Path) -> Path:
    return rng.choice(sorted(bundle.iterdir()))


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _flip(rng: random.Random, bundle: Path) -> None:
    path = _pick(rng, bundle)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 16))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    # Two flips of the same bit are none.
    _replace(path, bytes(content) if content != path.read_bytes() else bytes(content[:-1]))


def _truncate(rng: random.Random, bundle: Path) -> None:
    path = _pick(rng, bundle)
    content = path.read_bytes()
    _replace(path, content[: rng.choice((0, 1, len(content) // 2, len(content) - 1, rng.randrange(len(content))))])


def _grow(rng: random.Random, bundle: Path) -> None:
    path = _pick(rng, bundle)
    _replace(path, path.read_bytes() + rng.choice((b"\0", b"\n", b" ", rng.randbytes(1 + rng.randrange(5000)))))


def _swap(rng: random.Random, bundle: Path) -> None:
    one, other = rng.sample(sorted(bundle.iterdir()), 2)
    between = bundle.parent / "between"
    one.rename(between)
    other.rename(one)
    between.rename(other)


def _remove(rng: random.Random, bundle: Path) -> None:
    _pick(rng, bundle).unlink()


def _add(rng: random.Random, bundle: Path) -> None:
    (bundle / rng.choice(("notes.txt", ".hidden", "front_end.pte.part", "é", "-rf", "a b"))).write_bytes(b"x")


def _link(rng: random.Random, bundle: Path) -> None:
    """The same bytes, but elsewhere; or a file of the system; or a loop, or nothing."""
    path = _pick(rng, bundle)
    outside = bundle.parent / "outside"
    shutil.copyfile(path, outside)
    path.unlink()
    path.symlink_to(
        rng.choice((outside, Path("../outside"), Path("/etc/passwd"), Path("/dev/zero"), path, Path("gone")))
    )


def _other_kind(rng: random.Random, bundle: Path) -> None:
    """A folder or a pipe in a file's place; the pipe is one that nobody writes to."""
    path = _pick(rng, bundle)
    path.unlink()
    rng.choice((Path.mkdir, os.mkfifo))(path)


def _resealed(bundle: Path, text: bytes) -> None:
    _replace(bundle / MANIFEST, text)
    _replace(bundle / SEAL, f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode())


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    inside = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, one in inside for place in ((value, key), *_places(one))]


def _field(rng: random.Random, bundle: Path) -> None:
    """A value of the manifest becomes another, goes, or gets company."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = _places(document)
        if not places:
            break
        container, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[rng.choice(("surprise", "", "..", "size", key + "2"))] = deepcopy(rng.choice(_JUNK))
        else:
            container[key] = deepcopy(rng.choice(_JUNK))
    _resealed(bundle, json.dumps(document).encode())


def _path(rng: random.Random, bundle: Path) -> None:
    """The program is said to lie outside, where the same bytes do lie."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    name = document["engines"]["executorch"]["program"]
    outside = rng.choice(
        (f"../{name}", str(bundle.parent / name), f"./{name}", f"a/../{name}", f"..\\{name}", f"{name}\0")
    )
    shutil.copyfile(bundle / name, bundle.parent / name)
    document["files"][outside] = document["files"].pop(name) if rng.random() < 0.5 else document["files"][name]
    document["engines"]["executorch"]["program"] = outside
    _resealed(bundle, json.dumps(document).encode())


def _text(rng: random.Random, bundle: Path) -> None:
    """The manifest's text is cut, repeated, or has bytes in it that do not belong there."""
    before = (bundle / MANIFEST).read_bytes()
    text = bytearray(before)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(4)
        if what == 0:
            text[at:at] = rng.choice(_TOKENS)
        elif what == 1:
            del text[at : at + rng.choice((1, 5, 500, len(text)))]
        elif what == 2 and at < len(text):
            text[at] = rng.randrange(256)
        else:
            end = rng.randrange(at, len(text) + 1)
            text[at:at] = text[at:end]
    # What was replaced by itself, or taken from behind the end, is no damage.
    _resealed(bundle, bytes(text) if text != before else before[:-2])


def _no_program(rng: random.Random, bundle: Path) -> None:
    """Something that is no program is sealed as the program."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    name = document["engines"]["executorch"]["program"]
    whole = (bundle / name).read_bytes()
    content = rng.choice(
        (
            b"",
            b"ET12",
            b"\0" * 4 + b"ET12",
            whole[:63],
            rng.randbytes(100_000),
            whole[4:],
            whole[:4] + b"ET13" + whole[8:],
        )
    )
    _replace(bundle / name, content)
    document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _resealed(bundle, json.dumps(document).encode())


DAMAGES = (
    Damage("bytes flipped", _flip),
    Damage("truncated", _truncate),
    Damage("grown", _grow),
    Damage("swapped", _swap),
    Damage("removed", _remove),
    Damage("added", _add),
    Damage("link", _link),
    Damage("folder or pipe", _other_kind),
    Damage("path outside, resealed", _path),
    Damage("no program, resealed", _no_program),
    Damage("field, resealed", _field, sealed=True),
    Damage("text, resealed", _text, sealed=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 if a round failed, 2 for a named error."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.native_attack", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, help="a device bundle with an ExecuTorch program")
    parser.add_argument("--count", type=int, default=10_000, help="rounds (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust", type=Path, metavar="PUB", help="the key that signed it, if it is signed")
    options = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="harmony-attack-"))
    try:
        result = attack(options.bundle, work, count=options.count, seed=options.seed, trust=options.trust)
    except HarmonyError as error:
        sys.stderr.write(f"harmony.bench.native_attack: {type(error).__name__}: {error}\n")
        return error.exit_code
    for (damage, ending), seen in sorted(result.endings.items()):
        sys.stdout.write(f"{damage:24} {ending:20} {seen:6}\n")
    for failure in result.failures:
        sys.stdout.write(f"FAILED, kept in {work}/failed-{failure.round}: {failure}\n")
    sys.stdout.write(f"{result.rounds} rounds, {len(result.failures)} failed\n")
    if not result.failures:
        shutil.rmtree(work)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
