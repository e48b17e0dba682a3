"""Signatures: who signed is known, everybody else is refused by name, and key files have one form only."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUntrusted, ConfigError, StorageError
from harmony.core.sealed import (
    MANIFEST,
    SEAL,
    SIGNATURES,
    Manifest,
    read_manifest,
    read_signatures,
    seal,
    sealing,
    sign_sealed,
    unseal,
    write_signatures,
)
from harmony.core.signing import MAX_SIGNATURES, Trust
from harmony.core.signing_keys import PublicKey, SecretKey, make_key, read_public, read_secret


class Note(Manifest):
    FORMAT: ClassVar[str] = "note"
    VERSION: ClassVar[int] = 1

    format: Literal["note"] = "note"
    format_version: Literal[1] = 1
    text: str = "hello"


class Letter(Note):
    FORMAT: ClassVar[str] = "letter"

    format: Literal["letter"] = "letter"  # type: ignore[assignment]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release.key, release.pub, other.key, other.pub."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        make_key(folder / name)
    return folder


@pytest.fixture
def release(keys: Path) -> SecretKey:
    return read_secret(keys / "release.key")


@pytest.fixture
def trust(keys: Path) -> Trust:
    return Trust.read([keys / "release.pub"])


def sealed(folder: Path, *keys: SecretKey, kind: type[Note] = Note, text: str = "hello") -> Path:
    with sealing(folder) as draft:
        (draft / "a.bin").write_bytes(b"some bytes")
        seal(draft, kind(text=text), keys)
    return folder


@pytest.fixture
def folder(tmp_path: Path, release: SecretKey) -> Path:
    return sealed(tmp_path / "note", release)


def test_who_signed_is_trusted_and_nobody_else(folder: Path, keys: Path, release: SecretKey, trust: Trust) -> None:
    assert unseal(folder, Note, trust) == unseal(folder, Note) == read_manifest(folder, Note, trust)
    signatures = read_signatures(folder)
    assert signatures is not None
    assert list(signatures.by) == [release.public.id]
    everybody, others = Trust.read([keys]), Trust.read([keys / "other.pub"])
    assert {key.name for key in everybody.keys} == {"release", "other"}
    unseal(folder, Note, everybody)
    with pytest.raises(ArtifactUntrusted) as refused:
        unseal(folder, Note, others)
    for words in (f"signed by {release.public.id} alone", f"other ({others.keys[0].id})", SIGNATURES):
        assert words in str(refused.value)


def test_the_file_is_what_the_specification_says(folder: Path, release: SecretKey) -> None:
    """By the words of docs/bundle.md and another implementation, not by the code that wrote it."""
    first, second, end = (folder / SIGNATURES).read_text().split("\n")
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert first == f"harmony-signature-v1 note 1 {digest}"
    scheme, identity, text = second.split(" ")
    assert (scheme, end) == ("ed25519", "")
    assert identity == hashlib.sha256(release.public.raw).hexdigest()[:16]
    Ed25519PublicKey.from_public_bytes(release.public.raw).verify(base64.b64decode(text), f"{first}\n".encode())


def test_a_folder_without_a_signature(tmp_path: Path, trust: Trust) -> None:
    folder = sealed(tmp_path / "note")
    assert unseal(folder, Note).text == "hello"
    assert read_signatures(folder) is None
    with pytest.raises(ArtifactUntrusted, match=r"note: is not signed; trusted: release \([0-9a-f]{16}\)"):
        unseal(folder, Note, trust)


def test_every_changed_byte_of_a_trusted_folder_is_found(folder: Path, trust: Trust) -> None:
    for path in (folder / "a.bin", folder / MANIFEST, folder / SEAL, folder / SIGNATURES):
        content = path.read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            with pytest.raises((ArtifactCorrupt, ArtifactUntrusted), match=r"note/"):
                unseal(folder, Note, trust)
        path.write_bytes(content)
    unseal(folder, Note, trust)


def test_whoever_can_write_everything_but_has_no_key(folder: Path, tmp_path: Path, trust: Trust) -> None:
    """Another content with the right hashes everywhere, and the signature of what was there before."""
    other = sealed(tmp_path / "evil", text="evil")
    shutil.copy(folder / SIGNATURES, other / SIGNATURES)
    with pytest.raises(ArtifactCorrupt, match="signs another manifest"):
        unseal(other, Note)
    text = (folder / SIGNATURES).read_bytes()
    digest = hashlib.sha256((other / MANIFEST).read_bytes()).hexdigest().encode()
    (other / SIGNATURES).write_bytes(text[:28] + digest + text[28 + 64 :])
    unseal(other, Note)  # nobody asked who signed
    with pytest.raises(ArtifactUntrusted, match=r"signature by release \([0-9a-f]{16}\) is wrong"):
        unseal(other, Note, trust)


def test_a_signature_is_for_one_kind_of_folder(tmp_path: Path, release: SecretKey, trust: Trust) -> None:
    """Whoever gets a note signed has no signed letter, even of the same bytes."""
    folder = sealed(tmp_path / "letter", kind=Letter)
    signatures = read_signatures(sealed(tmp_path / "note", release))
    assert signatures is not None
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    (folder / SIGNATURES).write_bytes(signatures.text().replace(signatures.manifest.encode(), digest.encode()))
    with pytest.raises(ArtifactUntrusted, match="signatures of another bundle"):
        unseal(folder, Letter, trust)


def test_nothing_is_parsed_before_the_signature(tmp_path: Path, trust: Trust) -> None:
    folder = tmp_path / "note"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(b"not even JSON")
    (folder / SEAL).write_text(f"{hashlib.sha256(b'not even JSON').hexdigest()}  {MANIFEST}\n")
    with pytest.raises(ArtifactUntrusted):
        unseal(folder, Note, trust)
    with pytest.raises(ArtifactCorrupt, match="is not JSON"):
        unseal(folder, Note)


def test_several_keys_may_sign_and_one_is_enough(folder: Path, keys: Path, release: SecretKey, trust: Trust) -> None:
    other = read_secret(keys / "other.key")
    made = sign_sealed(folder, Note, [other, release])
    assert set(made.by) == {other.public.id, release.public.id}
    assert [path.name for path in folder.parent.iterdir() if path.name != "note"] == []
    unseal(folder, Note, trust)
    damaged = made.with_more({release.public.id: bytes(64)}, folder)
    write_signatures(folder, damaged)
    with pytest.raises(ArtifactUntrusted, match="is wrong"):
        unseal(folder, Note, trust)
    unseal(folder, Note, Trust.read([keys]))


def test_a_folder_that_is_not_whole_is_not_signed(folder: Path, release: SecretKey) -> None:
    (folder / "a.bin").write_bytes(b"some bites")
    with pytest.raises(ArtifactCorrupt, match=r"a\.bin"):
        sign_sealed(folder, Note, [release])


def test_too_many_signatures(folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"more than {MAX_SIGNATURES} signatures"):
        sign_sealed(folder, Note, [SecretKey(bytes([one] * 32), "k") for one in range(MAX_SIGNATURES)])


MANGLED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no signature": lambda text: text.split(b"\n")[0] + b"\n",
    "no line end": lambda text: text[:-1],
    "a line end too many": lambda text: text + b"\n",
    "twice the same": lambda text: text + text.split(b"\n")[1] + b"\n",
    "another version": lambda text: text.replace(b"-v1 ", b"-v2 "),
    "carriage returns": lambda text: text.replace(b"\n", b"\r\n"),
    "short": lambda text: text.replace(b"==", b"="),
    "not the one form of base64": lambda text: text[:-4] + bytes([text[-4] + 1]) + text[-3:],
    "too long": lambda text: text + b"ed25519 " * 1000,
    "not ASCII": lambda text: text.replace(b"ed25519", "ed２5519".encode()),
}


@pytest.mark.parametrize("how", MANGLED)
@pytest.mark.parametrize("checked", [True, False])
def test_a_list_of_signatures_has_one_form(how: str, checked: bool, folder: Path, trust: Trust) -> None:
    path = folder / SIGNATURES
    path.write_bytes(MANGLED[how](path.read_bytes()))
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.sig: (is no list of signatures|is larger than)"):
        unseal(folder, Note, trust if checked else None)


def test_signatures_are_a_plain_file(folder: Path, trust: Trust) -> None:
    (folder / SIGNATURES).rename(folder.parent / "elsewhere")
    (folder / SIGNATURES).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ArtifactMissing, match=r"manifest\.sig: no such plain file"):
        unseal(folder, Note, trust)


def test_keys_are_written_once_and_the_secret_is_secret(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = make_key(tmp_path / "new" / "release-2.x")
    finally:
        os.umask(before)
    secret = tmp_path / "new" / "release-2.x.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert read_secret(secret).public.raw == public.raw
    assert "seed" not in repr(read_secret(secret))
    assert read_public(tmp_path / "new" / "release-2.x.pub") == [public]
    content = secret.read_bytes()
    with pytest.raises(ConfigError, match=r"release-2\.x\.key: is there already"):
        make_key(tmp_path / "new" / "release-2.x")
    assert secret.read_bytes() == content
    secret.unlink()
    with pytest.raises(ConfigError, match=r"release-2\.x\.pub: is there already"):
        make_key(tmp_path / "new" / "release-2.x")
    assert not secret.exists()


@pytest.mark.parametrize("name", ["two words", "x" * 65, "schlüssel"])
def test_names_that_keys_cannot_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name of a key"):
        make_key(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_keeps_no_half_key(tmp_path: Path) -> None:
    program = f"""
import pathlib, resource, signal, sys
from harmony.core.errors import StorageError
from harmony.core.signing_keys import make_key
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
try:
    make_key(pathlib.Path({str(tmp_path)!r}) / "release")
except StorageError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert "release.key: cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_none(mode: int, keys: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(keys / "release.key", tmp_path))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"may be read by others .*chmod 600"):
        read_secret(path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\xff" * 70, b"harmony-ed25519-secret " + b"A" * 44 + b"\n", b"A" * 99999]
)
def test_secrets_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "k.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"k\.key: (is no secret key|is larger than)"):
        read_secret(path)


def test_a_public_key_does_not_sign(keys: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(keys / "release.pub", tmp_path / "release.key"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is no secret key"):
        read_secret(path)


def test_lists_of_keys(keys: Path, tmp_path: Path) -> None:
    release, other = ((keys / f"{name}.pub").read_text() for name in ("release", "other"))
    (tmp_path / "list").write_text(f"# who releases\n\n{release}  {other.strip()}\r\n{release}")
    trust = Trust.read([tmp_path / "list"])
    assert [key.name for key in trust.keys] == ["release", "other"]
    assert Trust.of_lines([key.line for key in trust.keys]) == trust


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "names 0 trusted keys"),
        ("# nobody\n", "names 0 trusted keys"),
        ("ssh-ed25519 AAAA me", "holds no public key"),
        ("harmony-ed25519-public AAAA me", "holds no public key"),
        (f"harmony-ed25519-public {'A' * 43}= two words", "holds no public key"),
        (f"harmony-ed25519-public {'A' * 42}B= me", "holds no public key"),
        (f"harmony-ed25519-secret {'A' * 43}=", "holds a secret key"),
        ("x" * 70000, "is larger than"),
    ],
)
def test_lists_that_trust_nobody_or_are_none(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(ConfigError, match=words) as refused:
        Trust.read([tmp_path / "list"])
    assert "AAAA" not in str(refused.value)


def test_places_without_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in (("gone", "cannot be read"), ("pipe", "not a plain file"), ("folder", "names 0 trusted keys")):
        with pytest.raises(ConfigError, match=words):
            Trust.read([tmp_path / name])
    with pytest.raises(ConfigError, match="names 257"):
        Trust.read([_many(tmp_path / "many", 257)])


def _many(path: Path, count: int) -> Path:
    path.write_text(
        "".join(
            f"{PublicKey(hashlib.sha256(bytes([one % 256, one // 256])).digest(), 'k').line}\n" for one in range(count)
        )
    )
    return path


def test_a_read_only_folder_is_not_signed(folder: Path, release: SecretKey, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    before = (folder / SIGNATURES).read_bytes()
    with pytest.raises(StorageError, match="cannot be written"):
        sign_sealed(folder, Note, [SecretKey(bytes(32), "k")])
    monkeypatch.undo()
    assert (folder / SIGNATURES).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["note"]


def test_without_trust_nothing_of_it_is_loaded(folder: Path) -> None:
    (folder / SIGNATURES).unlink()
    program = (
        "import pathlib, sys, tests_note as note; from harmony.core.sealed import unseal\n"
        f"unseal(pathlib.Path({str(folder)!r}), note.Note)\n"
        "sys.exit(str([name for name in sys.modules if 'cryptography' in name or 'signing' in name]))"
    )
    (folder.parent / "tests_note.py").write_text(
        "from typing import ClassVar, Literal\nfrom harmony.core.sealed import Manifest\n"
        "class Note(Manifest):\n    FORMAT: ClassVar[str] = 'note'\n    VERSION: ClassVar[int] = 1\n"
        "    format: Literal['note'] = 'note'\n    format_version: Literal[1] = 1\n    text: str = ''\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stderr.strip() == "[]"
