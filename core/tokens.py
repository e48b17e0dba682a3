"""Class tokens: under which number the cloud knows a class, and how truly it is told. No torch.

Clients share a key of 32 bytes that the cloud never gets. From it come a permutation π of the classes and, where
randomised response is on, the chance that decides which token is sent in place of π(label).

    token key file    harmony-token-key HEX        32 bytes in 64 lower-case hex digits; mode 0600
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import ConfigError
from harmony.core.key_file import read_secret, write_secret

KEY_BYTES = 32
_WORD = 1 << 64
_FILE = re.compile(rb"harmony-token-key ([0-9a-f]{64})\n")


def token_permutation(key: bytes, classes: int) -> tuple[int, ...]:
    """tokens[label]: the permutation π of 0 … classes − 1 that belongs to a key of 32 bytes.

    Fisher–Yates (Durstenfeld 1964) on the words of HMAC-SHA256(key, …): to whoever lacks the key, every permutation is
    equally likely. The same key gives unrelated permutations for different numbers of classes.
    """
    words = _words(key, b"permutation", classes)
    tokens = list(range(classes))
    for last in range(classes - 1, 0, -1):
        chosen = _below(last + 1, words)
        tokens[last], tokens[chosen] = tokens[chosen], tokens[last]
    return tuple(tokens)


def randomised_response(
    tokens: NDArray[np.integer[Any]], key: bytes, classes: int, epsilon: float
) -> NDArray[np.int64]:
    """Tokens (n,) as they are told under k-ary randomised response (Kairouz, Oh, Viswanath 2014, eq. 11; Warner 1965).

    Token i stays with probability e^ε / (e^ε + k − 1), k = classes, and becomes each other one with 1 / (e^ε + k − 1).
    The draw of place i depends on the key and on i alone: call this once for all images of a client, or always with
    the same order. Drawing anew each time an image is sent would let the cloud average the noise away.
    """
    if classes < 2:
        return np.asarray(tokens, dtype=np.int64)
    lie, other = _uniform(_derived(key, b"response", classes), (len(tokens), 2)).T
    steps = 1 + np.floor(other * (classes - 1)).astype(np.int64)
    return np.where(lie < keep_probability(epsilon, classes), tokens, (tokens + steps) % classes).astype(np.int64)


def keep_probability(epsilon: float, classes: int) -> float:
    """e^ε / (e^ε + k − 1), for any ε > 0 without overflow."""
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def simulated_key(seed: int) -> bytes:
    """A key for simulations, from the run's seed: whoever knows the seed knows it."""
    return hashlib.sha256(f"harmony simulated token key {seed}".encode()).digest()


def key_digest(key: bytes) -> str:
    """SHA-256 by which a run recognises its key without keeping it."""
    return _derived(key, b"digest", 0).hex()


def make_token_key(path: Path) -> bytes:
    """Write a new key file (mode 0600) and return the key. ConfigError if it is there, StorageError if it cannot be."""
    key = os.urandom(KEY_BYTES)
    write_secret(path, b"harmony-token-key " + key.hex().encode() + b"\n")
    return key


def read_token_key(path: Path) -> bytes:
    """The key of a file that `make_token_key` wrote. ConfigError for anything else, and if others may read it."""
    match = _FILE.fullmatch(read_secret(path))
    if match is None:
        raise ConfigError("holds no token key", where=path, mend="one line: harmony-token-key and 64 hex digits")
    return bytes.fromhex(match[1].decode())


def _derived(key: bytes, purpose: bytes, *numbers: int) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a token key has {KEY_BYTES} bytes, not {len(key)}")
    message = b"harmony tokens 1 " + purpose + b"".join(b" %d" % number for number in numbers)
    return hmac.digest(key, message, "sha256")


def _uniform(seed: bytes, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2⁻⁵³, out of SHAKE-256: to whoever lacks the seed they look drawn by chance."""
    words = np.frombuffer(hashlib.shake_256(seed).digest(8 * math.prod(shape)), ">u8")
    return (words >> 11).astype(np.float64).reshape(shape) * 2.0**-53


def _words(key: bytes, purpose: bytes, classes: int) -> Iterator[int]:
    """Numbers of 64 bits without end, four a counter."""
    counter = 0
    while True:
        block = _derived(key, purpose, classes, counter)
        yield from (int.from_bytes(block[at : at + 8]) for at in range(0, 32, 8))
        counter += 1


def _below(bound: int, words: Iterator[int]) -> int:
    """A number in 0 … bound − 1, all equally likely: words of the last, incomplete run of `bound` are passed over."""
    limit = _WORD - _WORD % bound
    return next(word for word in words if word < limit) % bound
