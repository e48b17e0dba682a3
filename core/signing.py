"""Who made a bundle: Ed25519 signatures beside the manifest, and the keys that are trusted. No torch.

    manifest.sig   harmony-signature-v1 FORMAT VERSION SHA256-OF-manifest.json
                   ed25519 KEYID BASE64                    one line a key, by key id

What is signed is the first line, with its line end: the manifest names every other file with its hash, so it stands
for all of them, and a signature for one kind of folder is none for another. The file has one form only: what differs
from it by a byte is refused.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from harmony.core.errors import ArtifactCorrupt, ArtifactUntrusted, ConfigError
from harmony.core.signing_keys import PublicKey, SecretKey, parse_public, read_public

SIGNATURES = "manifest.sig"
MAX_SIGNATURES = 16
MAX_SIGNATURES_BYTES = 4096
_MAX_KEYS = 256
_STATEMENT = re.compile(rb"harmony-signature-v1 ([a-z0-9-]{1,64}) ([1-9][0-9]{0,8}) ([0-9a-f]{64})")
_SIGNATURE = re.compile(rb"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)")


@dataclass(frozen=True)
class Signatures:
    """The content of manifest.sig. by: key id → 64 bytes."""

    format: str
    version: int
    manifest: str
    by: Mapping[str, bytes]

    @classmethod
    def parse(cls, text: bytes, where: Path) -> Self:
        """ArtifactCorrupt unless it is exactly what `text` writes. No signature is checked."""
        lines = text.split(b"\n")
        first, rest = _STATEMENT.fullmatch(lines[0]), [_SIGNATURE.fullmatch(line) for line in lines[1:-1]]
        if first is not None and 1 <= len(rest) <= MAX_SIGNATURES:
            by = {one[1].decode(): base64.b64decode(one[2]) for one in rest if one is not None}
            found = cls(first[1].decode(), int(first[2]), first[3].decode(), MappingProxyType(by))
            if found.text() == text:
                return found
        raise ArtifactCorrupt("is no list of signatures", where=where, mend="copy or sign the bundle again")

    @property
    def statement(self) -> bytes:
        """What is signed."""
        return f"harmony-signature-v1 {self.format} {self.version} {self.manifest}\n".encode()

    def text(self) -> bytes:
        """The file."""
        lines = [f"ed25519 {key} {base64.b64encode(value).decode()}\n" for key, value in sorted(self.by.items())]
        return self.statement + "".join(lines).encode()

    def with_more(self, by: Mapping[str, bytes], where: Path) -> Self:
        """With these signatures beside its own, in the place of those of the same keys. ConfigError: too many."""
        together = {**self.by, **by}
        if len(together) > MAX_SIGNATURES:
            raise ConfigError(f"would have more than {MAX_SIGNATURES} signatures", where=where, mend="use fewer keys")
        return type(self)(self.format, self.version, self.manifest, MappingProxyType(together))


def sign(
    manifest: bytes,
    format_: str,
    version: int,
    keys: Sequence[SecretKey],
    *,
    where: Path,
    before: Signatures | None = None,
) -> Signatures:
    """Signatures of a manifest's bytes by each key, beside those `before` that are of the same manifest."""
    blank = Signatures(format_, version, hashlib.sha256(manifest).hexdigest(), {})
    by = {} if before is None or before.statement != blank.statement else before.by
    return blank.with_more({**by, **{key.public.id: key.sign(blank.statement) for key in keys}}, where)


@dataclass(frozen=True)
class Trust:
    """The keys that are trusted, at least one."""

    keys: tuple[PublicKey, ...]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """The keys in files and folders (see `read_public`). ConfigError too if there is none: an empty list would look
        like trust, and check nothing."""
        found = {key.raw: key for path in paths for key in read_public(path)}
        if not 1 <= len(found) <= _MAX_KEYS:
            raise ConfigError(f"names {len(found)} trusted keys", where="--trust", mend=f"give 1 to {_MAX_KEYS}")
        return cls(tuple(found.values()))

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> Self:
        """From the lines of keys that were read before."""
        return cls(tuple(parse_public(line.encode(), Path("trusted keys")) for line in lines))

    def check(self, signatures: Signatures | None, manifest: bytes, format_: str, where: Path) -> PublicKey:
        """The first trusted key that signed this manifest as the manifest of a `format_`.

        ArtifactUntrusted, naming the keys that were tried: no signature, none by a trusted key, or not of this.
        """
        if signatures is None:
            raise self._refusal("is not signed", where)
        if (signatures.format, signatures.manifest) != (format_, hashlib.sha256(manifest).hexdigest()):
            raise self._refusal("holds signatures of another bundle", where / SIGNATURES)
        mine = [key for key in self.keys if key.id in signatures.by]
        for key in mine:
            if key.verifies(signatures.by[key.id], signatures.statement):
                return key
        if mine:
            raise self._refusal(f"the signature by {', '.join(map(str, mine))} is wrong", where / SIGNATURES)
        raise self._refusal(f"is signed by {', '.join(signatures.by)} alone", where / SIGNATURES)

    def _refusal(self, problem: str, where: Path) -> ArtifactUntrusted:
        known = ", ".join(map(str, self.keys[:8])) + (", …" if len(self.keys) > 8 else "")
        return ArtifactUntrusted(
            f"{problem}; trusted: {known}", where=where, mend="get the bundle from who may sign it"
        )
