"""Checks Ed25519 signatures (RFC 8032) by the OpenSSL that Python's hashlib has loaded already. No torch.

`cryptography` brings an OpenSSL of its own: 7 MB of a device's memory, for one signature. Where Python's cannot be
reached (it is built in, too old, or will not have this curve), `cryptography` checks.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from functools import lru_cache
from typing import Any

_ED25519 = 1087  # NID_ED25519 of OpenSSL's obj_mac.h, since 1.1.1
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "EVP_PKEY_new_raw_public_key": (c_void_p, (c_int, c_void_p, c_char_p, c_size_t)),
    "EVP_PKEY_free": (None, (c_void_p,)),
    "EVP_MD_CTX_new": (c_void_p, ()),
    "EVP_MD_CTX_free": (None, (c_void_p,)),
    "EVP_DigestVerifyInit": (c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "EVP_DigestVerify": (c_int, (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "ERR_clear_error": (None, ()),
}
"""Result and arguments of what is called (evp.h, err.h)."""


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the secret half of `public` (32 bytes) made the signature (64 bytes) of the message."""
    library = _openssl()
    found = None if library is None else _verifies(library, public, signature, message)
    return _verifies_elsewhere(public, signature, message) if found is None else found


@lru_cache(maxsize=1)
def _openssl() -> Any:
    """The library behind hashlib, its functions declared; None if it cannot be reached from there."""
    try:
        import _hashlib  # noqa: PLC0415  (not in every Python)

        library = ctypes.CDLL(_hashlib.__file__)  # names are looked up in what it is linked to, too
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, AttributeError, OSError):
        return None
    return library


def _verifies(library: Any, public: bytes, signature: bytes, message: bytes) -> bool | None:
    """None if this OpenSSL will not say."""
    key = library.EVP_PKEY_new_raw_public_key(_ED25519, None, public, len(public))
    context = library.EVP_MD_CTX_new()
    try:
        if not key or not context or library.EVP_DigestVerifyInit(context, None, None, None, key) != 1:
            return None
        return bool(library.EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1)
    finally:
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(key)
        library.ERR_clear_error()  # Python's own ssl module would take what is left in the queue for its own


def _verifies_elsewhere(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (see above)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
