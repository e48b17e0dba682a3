"""Ed25519 keys (RFC 8032) as files: made, and read with bounds. No torch.

    NAME.key    harmony-ed25519-secret BASE64          32 bytes of seed; mode 0600
    NAME.pub    harmony-ed25519-public BASE64 NAME     32 bytes; several such lines are a list of trusted keys

A key's id is the first 16 hex digits of the SHA-256 of its 32 public bytes.
`cryptography` is imported where a signature is made, never before: it is 8 MB of a device's memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harmony.core import ed25519, key_file
from harmony.core.errors import ConfigError
from harmony.core.storage import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PUBLIC = re.compile(rb"harmony-ed25519-public ([A-Za-z0-9+/]{43}=) ([A-Za-z0-9_.@-]{1,64})")
_SECRET = re.compile(rb"harmony-ed25519-secret ([A-Za-z0-9+/]{43}=)\n")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


@dataclass(frozen=True)
class PublicKey:
    """A key that checks signatures. raw: its 32 bytes; name: what its file calls it, for people."""

    raw: bytes
    name: str

    @property
    def id(self) -> str:
        """16 hex digits, as manifest.sig names it."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def line(self) -> str:
        """As it stands in a file, without the line end."""
        return f"harmony-ed25519-public {base64.b64encode(self.raw).decode()} {self.name}"

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key's secret half made the signature of the message."""
        return ed25519.verifies(self.raw, signature, message)


@dataclass(frozen=True, repr=False)
class SecretKey:
    """A key that signs: 32 bytes of seed. Its repr does not tell them."""

    seed: bytes
    name: str

    @property
    def public(self) -> PublicKey:
        """The half that others may know."""
        return PublicKey(self._key().public_key().public_bytes_raw(), self.name)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key().sign(message)

    def _key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  (see above)

        return Ed25519PrivateKey.from_private_bytes(self.seed)


def make_key(base: Path) -> PublicKey:
    """Write a new pair, BASE.key (0600) and BASE.pub. ConfigError if either is there, StorageError if it cannot be."""
    name = base.name
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name[:64]}' is no name of a key", mend="letters, digits, _ . @ -, at most 64")
    secret, public = base.with_name(f"{name}.key"), base.with_name(f"{name}.pub")
    for path in (secret, public):
        if os.path.lexists(path):
            raise ConfigError("is there already, and no key is overwritten", where=path, mend="choose another name")
    key = SecretKey(os.urandom(32), name)
    key_file.write_secret(secret, f"harmony-ed25519-secret {base64.b64encode(key.seed).decode()}\n".encode())
    write_atomically(public, f"{key.public.line}\n".encode())
    return key.public


def read_secret(path: Path) -> SecretKey:
    """A key that `make_key` wrote. ConfigError for anything else, and for a file that others may read."""
    content, mode = key_file.read_key_file(path)
    match = _SECRET.fullmatch(content)
    seed = _decoded(match[1]) if match else None
    if seed is None:
        raise ConfigError("is no secret key", where=path, mend="give the NAME.key of 'harmony keygen NAME'")
    if mode & 0o077:
        raise ConfigError("may be read by others", where=path, mend=f"chmod 600 {path}, or make a new key")
    return SecretKey(seed, path.stem)


def read_public(path: Path) -> list[PublicKey]:
    """Every key of a file, or of all `*.pub` of a folder. Blank lines, and lines that begin with #, count for nothing.

    ConfigError for what cannot be read, or holds something else.
    """
    try:
        files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from None
    lines = [(line.strip(), file) for file in files for line in key_file.read_key_file(file)[0].splitlines()]
    return [parse_public(line, file) for line, file in lines if line and not line.startswith(b"#")]


def parse_public(line: bytes, where: Path) -> PublicKey:
    """The key that a line holds; ConfigError."""
    match = _PUBLIC.fullmatch(line)
    raw = _decoded(match[1]) if match else None
    if match is None or raw is None:
        shown = (
            "a secret key: keep it away from here" if line.startswith(b"harmony-ed25519-secret") else "no public key"
        )
        mend = "one 'harmony-ed25519-public BASE64 NAME' a line, as in NAME.pub"
        raise ConfigError(f"holds {shown}", where=where, mend=mend)
    return PublicKey(raw, match[2].decode())


def _decoded(text: bytes) -> bytes | None:
    """32 bytes, if they are written in the one way that base64 has for them."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return raw if len(raw) == 32 and base64.b64encode(raw) == text else None
