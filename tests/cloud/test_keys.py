"""Keys: what is accepted as one, where they come from, who is let in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harmony.cloud.keys import ORDINARY, KeyRing, digest, environment_keys, generate_key, granted, read_key_file
from harmony.cloud.refusal import Refusal
from harmony.core.errors import ConfigError, DataMissing

KEY, OTHER = "correct-horse-battery", "another-key-entirely"


def ring_of(*keys: str) -> KeyRing:
    return KeyRing(granted([digest(key) for key in keys], ORDINARY))


def name_of(ring: KeyRing, authorization: bytes | None) -> str | None:
    caller = ring.find(authorization)
    return None if caller is None else caller.name


def test_a_ring_knows_its_keys_by_digest_alone() -> None:
    ring = ring_of(KEY, OTHER)
    name = hashlib.sha256(KEY.encode()).hexdigest()[:8]
    assert name_of(ring, f"Bearer {KEY}".encode()) == name
    assert name_of(ring, f"bearer  {KEY} ".encode()) == name
    assert name_of(ring, f"Bearer {OTHER}".encode()) not in (None, name)
    for stranger in (None, b"", b"Bearer", b"Bearer ", f"Bearer {KEY}x".encode(), KEY.encode(), b"Bearer \xff\xfe"):
        assert ring.find(stranger) is None
    assert not ring.is_open
    assert KEY not in repr(vars(ring))


def test_an_open_ring_lets_everybody_ask_but_nobody_administer() -> None:
    ring = KeyRing(is_open=True)
    assert ring.is_open
    caller = ring.find(None)
    assert caller is not None
    assert caller.name == "anyone"
    caller.require("infer")
    with pytest.raises(Refusal, match="lacks the scope 'admin'"):
        caller.require("admin")


def test_a_ring_that_lost_its_last_key_is_not_open() -> None:
    ring = ring_of(KEY)
    ring.update([])
    assert ring.find(None) is None
    assert ring.find(f"Bearer {KEY}".encode()) is None


def test_generated_keys_are_keys_and_differ() -> None:
    assert digest(generate_key()) != digest(generate_key())


@pytest.mark.parametrize(
    "key", ["", "short", "with space in the middle", "tab\tinside-the-key-", "k" * 257, "schlüssel-schlüssel"]
)
def test_what_cannot_be_a_key(key: str) -> None:
    with pytest.raises(ConfigError, match="16 to 256 printable ASCII"):
        digest(key)


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# devices\n\n{KEY}\nsha256:{digest(OTHER)}\n")
    assert read_key_file(path) == [digest(KEY), digest(OTHER)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# only this\n", "holds no key"),
        (f"{KEY}\nshort\n", "keys:2"),
        ("sha256:12\n", "keys:1"),
        ("sha256:" + "z" * 64, "64 hexadecimal"),
    ],
)
def test_wrong_key_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_key_file(tmp_path / "keys")


def test_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no key file"):
        read_key_file(tmp_path / "keys")


def test_environment() -> None:
    assert environment_keys({"HARMONY_KEY": " a ", "HARMONY_KEYS": "b,, c"}) == ["a", "b", "c"]
    assert environment_keys({}) == []
