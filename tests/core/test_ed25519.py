"""Signatures are checked as `cryptography` checks them, by an OpenSSL that is there already."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harmony.core import ed25519

# RFC 8032, section 7.1: public key, message, signature of its tests 1 to 3
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302a"
        "eeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed2"
        "8dc027beceea1ec40a",
    ),
]


@pytest.fixture(params=["OpenSSL of hashlib", "cryptography"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to check; the first only where that OpenSSL can be reached."""
    ed25519._openssl.cache_clear()
    if request.param == "cryptography":
        monkeypatch.setattr(ed25519, "_openssl", lambda: None)
    elif ed25519._openssl() is None:
        pytest.skip("this Python's OpenSSL cannot be reached from hashlib")
    yield request.param


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_standards_own_signatures(way: str, public: str, message: str, signature: str) -> None:
    assert ed25519.verifies(*map(bytes.fromhex, (public, signature, message)))


def test_whatever_was_changed_is_not_signed(way: str) -> None:
    public, message, signature = (bytes.fromhex(one) for one in VECTORS[2])
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = {"public": bytearray(public), "message": bytearray(message), "signature": bytearray(signature)}
        part = changed[str(random.choice([*changed]))]
        part[random.integers(len(part))] ^= 1 << random.integers(8)
        found = {name: bytes(value) for name, value in changed.items()}
        assert not ed25519.verifies(found["public"], found["signature"], found["message"])


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        (bytes.fromhex(VECTORS[0][0]), bytes.fromhex(VECTORS[0][2])[:-1]),
        (bytes.fromhex(VECTORS[0][0]), b""),
        (bytes.fromhex(VECTORS[0][0]), bytes(64)),
        (bytes.fromhex(VECTORS[0][0]), bytes.fromhex(VECTORS[0][2])[:32] + b"\xff" * 32),  # S beyond the group's order
        (b"\xff" * 32, bytes.fromhex(VECTORS[0][2])),  # no point
    ],
)
def test_what_is_no_signature_or_no_key(way: str, public: bytes, signature: bytes) -> None:
    assert not ed25519.verifies(public, signature, b"")


def test_what_is_signed_now(way: str) -> None:
    for seed in range(20):
        key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        message = bytes(range(seed * 10))
        assert ed25519.verifies(key.public_key().public_bytes_raw(), key.sign(message), message)


def test_a_check_leaves_nothing_for_pythons_ssl_and_brings_no_second_openssl() -> None:
    script = (
        "import ssl, sys\n"
        "from harmony.core import ed25519\n"
        "if ed25519._openssl() is None: sys.exit(77)\n"
        "for _ in range(3): assert not ed25519.verifies(b'\\xff' * 32 if _ else bytes(32), bytes(64), b'')\n"
        "context = ssl.create_default_context()\n"
        f"assert ed25519.verifies(*map(bytes.fromhex, {[VECTORS[0][0], VECTORS[0][2], VECTORS[0][1]]!r}))\n"
    )
    checks = script + "print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", checks], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this Python's OpenSSL cannot be reached from hashlib")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")
