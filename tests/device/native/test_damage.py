"""Bundles that are not what was sealed, or were sealed as nonsense: a named error, and never the end of the process."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from harmony.bench.native_attack import DAMAGES, attack
from harmony.core.adaptive import HeldOut
from harmony.core.bundle import DeviceManifest, Exit, open_device_bundle
from harmony.core.errors import ArtifactCorrupt, ConfigError, ContractMismatch
from harmony.core.sealed import sign_sealed
from harmony.core.signing_keys import make_key, read_secret
from harmony.core.spec import FeatureSpec, ImageSpec
from harmony.core.training import Head, Personal, Training
from harmony.device.native_build import LIBRARY
from harmony.device.native_engine import NativeEngine, load_library

Run = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., Path]
Change = Callable[..., None]


HUGE = {f"image__{name}": 4096 for name in ("height", "width", "channels")} | {
    "image__mean": [0] * 4096,
    "image__std": [1] * 4096,
}
"""Images of 275 GB: whoever asks for the memory before the program was asked about them ends the process."""


@pytest.fixture
def tiny(make_tiny: Make, tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "tiny")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(bytes(4 * 6 * 3 * 4))
    return path


@pytest.fixture
def assert_refused(run: Run, image: Path) -> Callable[..., None]:
    def check(bundle: Path, error: str, *options: object) -> None:
        done = run(bundle, image, *options)
        assert done.returncode == 2, (done.returncode, done.stderr)
        assert re.match(f"harmony-run: {error}", done.stderr), done.stderr
        assert done.stderr.count("\n") == 1

    return check


def test_the_undamaged_one_answers(tiny: Path, run: Run, image: Path) -> None:
    assert run(tiny, image).returncode == 0


def test_damage_of_every_kind(tiny: Path, native_build: Path, tmp_path: Path) -> None:
    """As the 10,000 rounds of the command, but fewer."""
    work = tmp_path / "work"
    work.mkdir()
    result = attack(tiny, work, count=25 * len(DAMAGES), seed=7, program=native_build / "harmony-run")
    assert not result.failures
    seen = {damage: sum(n for (name, _), n in result.endings.items() if name == damage.name) for damage in DAMAGES}
    assert set(seen.values()) == {25}
    assert any(ending == "answers" for _, ending in result.endings), "some that were sealed again must still be whole"


def test_whatever_is_done_to_a_signed_bundle(tiny: Path, native_build: Path, tmp_path: Path) -> None:
    """There is no damage that a trusted signature does not show, resealed or not."""
    make_key(tmp_path / "ours")
    sign_sealed(tiny, DeviceManifest, [read_secret(tmp_path / "ours.key")])
    work = tmp_path / "work"
    work.mkdir()
    run, trust = native_build / "harmony-run", tmp_path / "ours.pub"
    with pytest.raises(ConfigError, match="--trust"):
        attack(tiny, work, count=1, seed=0, program=run)
    result = attack(tiny, work, count=15 * len(DAMAGES), seed=8, trust=trust, program=run)
    assert not result.failures
    endings = {ending for _, ending in result.endings}
    assert "ArtifactUntrusted" in endings
    assert "answers" not in endings


def test_the_attack_notices_what_must_not_happen(tiny: Path, tmp_path: Path) -> None:
    """A program that dies, one that believes everything, and one that says nothing of use."""
    for name, script in (("dies", "kill -SEGV $$"), ("believes", "echo '{\"image\": 0}'"), ("mumbles", "exit 2")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        work = tmp_path / f"work-{name}"
        work.mkdir()
        failures = attack(tiny, work, count=8, seed=0, program=program).failures
        assert len(failures) == 8
        assert (work / "failed-0").is_dir()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"format_version": 2}, r"ArtifactTooNew: .*manifest\.json: format_version"),
        ({"format_version": "2"}, "ArtifactCorrupt: .*format_version"),
        ({"format": "harmony-cloud-bundle"}, "ArtifactCorrupt: .*is not a 'harmony-device-bundle'"),
        ({"surprise": 1}, "ArtifactCorrupt: .*surprise: is not a field that this program knows"),
        ({"image__surprise": 1}, r"ArtifactCorrupt: .*image\.surprise: is not a field"),
        ({"image__std": [0.1, 0.1]}, r"ArtifactCorrupt: .*image\.std: needs one value for each of 3 channels"),
        ({"image__std__1": 0}, r"ArtifactCorrupt: .*image\.std\.1: is not above 0"),
        ({"image__std__1": 1e-31}, r"ArtifactCorrupt: .*image\.std\.1: is too small"),
        ({"image__height": 4.5}, r"ArtifactCorrupt: .*image\.height: is not a whole number"),
        ({"image__dtype": "int8"}, r"ArtifactCorrupt: .*image\.dtype"),
        ({"feature__dtype": "float16"}, r"ArtifactCorrupt: .*feature\.dtype"),
        ({"classes__own": [2, 1, 4]}, r"ArtifactCorrupt: .*classes\.own: is not in ascending order"),
        ({"classes__own": []}, r"ArtifactCorrupt: .*classes\.own"),
        ({"classes__own": [1, 2, 5]}, r"ArtifactCorrupt: .*classes\.own\.2: is not a whole number from 0 to 4"),
        ({"classes__tokens": [0, 1, 2, 3, 3]}, r"ArtifactCorrupt: .*classes\.tokens: is not a permutation"),
        ({"exits__0__name": "exit2"}, r"ArtifactCorrupt: .*exits\.0\.name: is not exit1"),
        ({"exits__1__score": "luck"}, r"ArtifactCorrupt: .*exits\.1\.score: is no exit score"),
        ({"exits__1__threshold": None}, r"ArtifactCorrupt: .*exits\.1\.threshold: is not a number"),
        ({"exits": []}, "ArtifactCorrupt: .*exits: needs exit1, then exit2"),
        ({"gate": False}, r"ArtifactCorrupt: .*exits\.0\.score: needs a gate head"),
        ({"fallback__codec": "zip"}, r"ArtifactCorrupt: .*fallback\.codec: is no wire codec"),
        ({"engines": {}}, "ArtifactCorrupt: .*engines: names no engine"),
        ({"engines": {"onnxruntime": {}}}, "EngineUnavailable: .*has no files for ExecuTorch"),
        ({"engines__executorch__program": "other.pte"}, "ArtifactCorrupt: .*names 'other.pte', which is not among"),
        (
            {"files": {"../front_end.pte": {"size": 1, "sha256": "0" * 64}}},
            "ArtifactCorrupt: .*no?t? a plain file name",
        ),
        ({"files__front_end.pte__sha256": "0" * 63}, "ArtifactCorrupt: .*is not a SHA-256"),
        ({"files__front_end.pte__size": -1}, "ArtifactCorrupt: .*size: is not a whole number"),
        (
            {"feature__channels": 2},
            r"ContractMismatch: .*exit2\.output 0: is \(1, 3, 4, 6\), the manifest needs \(1, 2,",
        ),
        ({"image__width": 7}, r"ContractMismatch: .*exit1\.input: is \(1, 3, 4, 6\), the manifest needs"),
        (HUGE, r"ContractMismatch: .*exit1\.input: is \(1, 3, 4, 6\), the manifest needs \(1, 4096, 4096, 4096\)"),
        ({"classes__own": [1, 2]}, r"ContractMismatch: .*exit1\.output 1: is \(1, 3\), the manifest needs \(1, 2\)"),
        ({"gate": False, "exits__0__score": "msp", "exits__1__score": "msp"}, "ContractMismatch: .*gives 3 tensors"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    fields: dict[str, Any], error: str, tiny: Path, changed: Change, assert_refused: Callable[..., None]
) -> None:
    changed(tiny, **fields)
    assert_refused(tiny, error)


@pytest.mark.parametrize(
    "field",
    ["format_version", "files", "client", "image", "feature", "classes", "exits", "gate", "fallback", "engines"],
)
def test_a_field_that_is_missing(
    field: str, tiny: Path, reseal: Callable[[Path, bytes], None], assert_refused: Callable[..., None]
) -> None:
    document = json.loads((tiny / "manifest.json").read_bytes())
    del document[field]
    reseal(tiny, json.dumps(document).encode())
    assert_refused(tiny, f"ArtifactCorrupt: .*{field}: is missing")


def test_every_field_that_there_can_be_is_known(
    tiny: Path, make_tiny: Make, run: Run, image: Path, tmp_path: Path
) -> None:
    """Whoever adds one to a model of the manifest has to teach it to manifest.cpp too."""
    whole = open_device_bundle(tiny)
    full = {name: getattr(whole, name) for name in DeviceManifest.model_fields if getattr(whole, name) is not None}
    full |= {"checkpoint": "0" * 64, "exits": tuple(one.model_copy(update={"budget": 0.5}) for one in whole.exits)}
    head, hashed = Head(weight="w", bias="b", gate_weight="g", gate_bias="h"), "0" * 64
    full |= {
        "held_out": HeldOut(images=2, scores=(0.0, 1.0)),
        "training": Training(head={"executorch": "front_end.pte"}, exit1=head, exit2=head, embedding=32),
        "personal": Personal(
            version=1, parent=hashed, origin=hashed, what="head", engine="executorch", train_images=4, holdout_images=1,
            before=0.5, after=0.75,
        ),
    }  # fmt: skip
    assert set(full) == set(DeviceManifest.model_fields), "give this test a value for the new field"
    assert set(Exit.model_fields) == {"name", "score", "threshold", "budget"}
    assert (set(ImageSpec.model_fields), set(FeatureSpec.model_fields)) == (
        {"height", "width", "channels", "dtype", "mean", "std"}, {"channels", "height", "width", "dtype"},
    )  # fmt: skip
    full.pop("files")
    done = run(make_tiny(tmp_path / "full", **full), image)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "front_end.pte", "vectors.safetensors"])
def test_files_that_are_none(name: str, tiny: Path, assert_refused: Callable[..., None], tmp_path: Path) -> None:
    shutil.move(tiny / name, tmp_path / "elsewhere")
    assert_refused(tiny, f"ArtifactMissing: .*{name}")
    (tiny / name).symlink_to(tmp_path / "elsewhere")
    assert_refused(tiny, f"ArtifactCorrupt: .*{name}: is not a plain file")
    (tiny / name).unlink()
    os.mkfifo(tiny / name)
    assert_refused(tiny, f"ArtifactCorrupt: .*{name}: is not a plain file")


def test_a_program_that_runs_on_other_shapes_than_it_is_given(
    make_tiny: Make, assert_refused: Callable[..., None], tmp_path: Path
) -> None:
    """Sealed by somebody who means well: the mark is there, the rest is not."""
    for number, content in enumerate((b"", b"\0" * 4 + b"ET12" + b"\0" * 200, b"\0" * 4096)):
        bundle = make_tiny(tmp_path / str(number), program=content)
        assert_refused(bundle, r"ArtifactCorrupt: .*front_end\.pte: (is not an|cannot be loaded by) ExecuTorch")


def test_what_executorch_says_is_passed_on(
    make_tiny: Make, tiny_program: bytes, assert_refused: Callable[..., None], tmp_path: Path
) -> None:
    """A program of an operator that nobody has: the reason is ExecuTorch's, in our line, and nothing beside it."""
    content = tiny_program.replace(b"aten::abs\0", b"aten::sba\0")
    assert content != tiny_program
    assert_refused(make_tiny(tmp_path / "b", program=content), "ArtifactCorrupt: .*exit2: cannot be loaded.*operator")


def test_signatures(tiny: Path, run: Run, image: Path, assert_refused: Callable[..., None], tmp_path: Path) -> None:
    for name in ("ours", "other"):
        make_key(tmp_path / name)
    ours, other = tmp_path / "ours.pub", tmp_path / "other.pub"
    assert_refused(tiny, "ArtifactUntrusted: .*is not signed", "--trust", ours)
    sign_sealed(tiny, DeviceManifest, [read_secret(tmp_path / "ours.key")])
    assert run(tiny, image).returncode == 0
    assert run(tiny, image, "--trust", other, "--trust", ours).returncode == 0
    assert_refused(tiny, r"ArtifactUntrusted: .*manifest\.sig: is signed by others alone", "--trust", other)
    signature = tiny / "manifest.sig"
    text = signature.read_text()
    start = text.index(text.split()[-1])
    signature.write_text(text[:start] + ("B" if text[start] == "A" else "A") + text[start + 1 :])
    assert_refused(tiny, "ArtifactUntrusted: .*the signature is wrong", "--trust", ours)
    signature.write_text(text[:-1])
    assert_refused(tiny, r"ArtifactCorrupt: .*manifest\.sig: is no list of signatures")
    signature.write_text(text.replace("bundle 1 ", "bundle 1 0"))
    assert_refused(tiny, r"ArtifactCorrupt: .*manifest\.sig: signs another manifest")
    assert_refused(tiny, "ConfigError: .*holds no public key", "--trust", tmp_path / "ours.key")
    (tmp_path / "empty.pub").write_text("# nobody\n\n")
    assert_refused(tiny, "ConfigError: .*names no trusted key", "--trust", tmp_path / "empty.pub")


class Library:
    """harmony_open_memory on any two byte strings."""

    def __init__(self, path: Path) -> None:
        self._library = load_library(path)

    def open(self, manifest: bytes, program: bytes) -> tuple[int, str]:
        device, error = ctypes.c_void_p(), (ctypes.c_char * 516)()
        status = self._library.harmony_open_memory(
            manifest, len(manifest), program, len(program), b"here", ctypes.byref(device), ctypes.byref(error)
        )
        self._library.harmony_close(device)
        return status, error.raw[4:].split(b"\0")[0].decode()


@pytest.fixture(scope="module")
def library(native_build: Path) -> Library:
    return Library(native_build / LIBRARY)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=JSON, indent=st.sampled_from([None, 2]), ascii_=st.booleans())
def test_any_json_is_read_as_json(document: object, indent: int | None, ascii_: bool, library: Library) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_)
    status, message = library.open(text.encode(errors="surrogatepass"), b"")
    assert status == 2
    assert ("is not JSON" in message) == bool(re.search("[\ud800-\udfff]", json.dumps(document, ensure_ascii=False)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-tfnrualse\\ \t\x00', max_size=40).map(str.encode))
@example(data=b'"\\ud800"')
def test_what_is_no_json_is_refused_as_python_refuses_it(data: bytes, library: Library) -> None:
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError:
        expected = True
    else:
        expected = False
    status, message = library.open(data, b"")
    assert status == 2
    stricter = any(reason in message for reason in ("names a field twice", "beyond all bounds", "too deep"))
    assert ("is not JSON" in message) == expected or stricter


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a":' * 17 + b"1" + b"}" * 17, "is nested too deep"),
        (b"[" * 1_000_000, "is nested too deep"),
        (b"[" + b"1," * 500_001 + b"1]", "has too many values"),
        (b" " * ((16 << 20) + 1), "is too large"),
        (json.dumps({str(n): n for n in range(300)}).encode(), "has too many fields"),
        (b'{"a": 1, "a": 2}', "names a field twice"),
        (b'"\xc0\x80"', "is not UTF-8"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b'"\xf4\x90\x80\x80"', "is not UTF-8"),
        (b'"\xe2\x82', "is not UTF-8"),
        (b'"\\ud800\\u0041"', "half a character"),
        (b'"\\ud83d\\ude00"', "is not a 'harmony-device-bundle'"),
    ],
)
def test_bounds_of_the_reader(text: bytes, problem: str, library: Library) -> None:
    status, message = library.open(text, b"")
    assert status == 2
    assert problem in message


def test_a_program_in_memory_is_hashed_too(tiny: Path, library: Library) -> None:
    manifest, program = (tiny / "manifest.json").read_bytes(), (tiny / "front_end.pte").read_bytes()
    assert library.open(manifest, program) == (0, "")
    for other in (program[:-1], program + b"\0", b"", program[:100] + b"x" + program[101:]):
        status, message = library.open(manifest, other)
        assert (status, "here/front_end.pte: is not what the manifest seals" in message) == (2, True)


def test_arguments_that_are_null(library: Library) -> None:
    error = (ctypes.c_char * 516)()
    raw = library._library
    assert raw.harmony_open_memory(None, 0, None, 0, None, None, ctypes.byref(error)) == 8
    assert b"manifest: is NULL" in error.raw
    assert raw.harmony_answer(None, None, 0, None, None) == 8
    assert raw.harmony_feature(None, None, ctypes.byref(error)) == 8
    assert b"device: is NULL" in error.raw


def test_python_names_the_same_errors(native: Path, tiny: Path) -> None:
    """Through the binding: what Python's own check lets through, the core still refuses by its own name."""
    manifest, program = open_device_bundle(tiny), (tiny / "front_end.pte").read_bytes()
    with pytest.raises(ArtifactCorrupt, match=r"front_end\.pte: is not what the manifest seals"):
        NativeEngine(program[:-1], manifest, tiny)
    other = manifest.model_copy(update={"feature": FeatureSpec(channels=9, height=4, width=6)})
    with pytest.raises(
        ContractMismatch, match=r"exit2\.output 0: is \(1, 3, 4, 6\), the manifest needs \(1, 9, 4, 6\)"
    ):
        NativeEngine(program, other, tiny)
    spec = ImageSpec(height=4096, width=4096, channels=4096, mean=(0,) * 4096, std=(1,) * 4096)
    with pytest.raises(ContractMismatch, match=r"needs \(1, 4096, 4096, 4096\)"):
        NativeEngine(program, manifest.model_copy(update={"image": spec}), tiny)
