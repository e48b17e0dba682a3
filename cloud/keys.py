"""API keys: only their SHA-256 is kept, and every comparison takes the same time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from harmony.core.errors import ConfigError, DataMissing

MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 256
_SEALED = "sha256:"
_MAX_FILE_BYTES = 1 << 20


def generate_key() -> str:
    """A new key of 256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def digest(key: str, *, where: str = "--key") -> str:
    """SHA-256 of a key, as hex. ConfigError if it cannot be sent in a header or is easily guessed."""
    if not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"a key has {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} printable ASCII characters without spaces",
            where=where,
            mend="leave it out, and one is made",
        )
    return hashlib.sha256(key.encode()).hexdigest()


def read_key_file(path: Path) -> list[str]:
    """Digests of a key file: one key a line, or `sha256:HEX` where the key itself shall not lie on the disk.

    Empty lines and lines that begin with # are skipped. ConfigError naming the line, DataMissing without a file.
    """
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        raise DataMissing("no key file of at most 1 MiB", where=path, mend="check --key-file")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    digests = [_entry(text, f"{path}:{number}") for number, text in entries if text and not text.startswith("#")]
    if not digests:
        raise ConfigError("holds no key", where=path, mend="write one key a line")
    return digests


def _entry(text: str, where: str) -> str:
    if not text.startswith(_SEALED):
        return digest(text, where=where)
    value = text.removeprefix(_SEALED).lower()
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ConfigError("sha256: is followed by 64 hexadecimal digits", where=where)
    return value


def environment_keys(environment: Mapping[str, str]) -> list[str]:
    """Keys in HARMONY_KEY, and in HARMONY_KEYS separated by commas."""
    found = [environment.get("HARMONY_KEY", ""), *environment.get("HARMONY_KEYS", "").split(",")]
    return [key.strip() for key in found if key.strip()]


class KeyRing:
    """Who may ask. A ring without keys lets everybody in."""

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = {value: bytes.fromhex(value) for value in digests}

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def identify(self, authorization: bytes | None) -> str | None:
        """Name of the caller (the first 8 digits of its key's digest, "anyone" on an open ring), None for a stranger.

        authorization: the header's value, `Bearer KEY`.
        """
        if not self._digests:
            return "anyone"
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return None
        asked = hashlib.sha256(authorization[7:].strip()).digest()
        caller = None
        for name, known in self._digests.items():  # all of them, so that time does not tell which one came close
            if hmac.compare_digest(asked, known):
                caller = name[:8]
        return caller
