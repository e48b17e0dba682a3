"""Tokens: fixed vectors, uniform permutations, and answers whose chance is the one that was promised."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harmony.core.errors import ConfigError
from harmony.core.key_file import write_secret
from harmony.core.tokens import (
    keep_probability,
    key_digest,
    make_token_key,
    randomised_response,
    read_token_key,
    simulated_key,
    token_permutation,
)

KEY = bytes(range(32))


def keys(count: int) -> list[bytes]:
    return [number.to_bytes(32) for number in range(count)]


@pytest.mark.parametrize(
    ("key", "tokens"),
    [
        (bytes(32), (1, 0, 4, 6, 8, 9, 5, 3, 7, 2)),
        (KEY, (1, 2, 9, 7, 5, 4, 6, 3, 8, 0)),
        (simulated_key(0), (7, 8, 5, 4, 2, 6, 9, 1, 0, 3)),
    ],
)
def test_vectors(key: bytes, tokens: tuple[int, ...]) -> None:
    """Fixed for ever: a device that joins later must come to the same tokens."""
    assert token_permutation(key, 10) == tokens


def test_a_key_of_another_size_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        token_permutation(bytes(16), 10)


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000])
def test_a_permutation_that_depends_on_key_and_number_of_classes(classes: int) -> None:
    tokens = token_permutation(KEY, classes)
    assert sorted(tokens) == list(range(classes))
    assert token_permutation(KEY, classes) == tokens
    if classes > 9:
        assert token_permutation(bytes(32), classes) != tokens
        assert token_permutation(KEY, classes + 1)[:classes] != tokens


def test_every_permutation_is_equally_likely() -> None:
    """Chi-square with 23 degrees of freedom: 49.7 is exceeded once in a thousand times; the keys are fixed."""
    drawn = Counter(token_permutation(key, 4) for key in keys(4800))
    expected = 4800 / 24
    assert set(drawn) == set(itertools.permutations(range(4)))
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 49.7


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.1), (10, 1.0), (10, 3.0), (100, 2.0)])
def test_tokens_are_told_with_the_promised_chances(classes: int, epsilon: float) -> None:
    """Every column of the mechanism, within five standard deviations of a binomial."""
    count = 200_000
    told = randomised_response(np.zeros(count, np.int64), KEY, classes, epsilon)
    found = np.bincount(told, minlength=classes)
    stays = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    for chance, hits in zip([stays, *[(1 - stays) / (classes - 1)] * (classes - 1)], found, strict=True):
        assert abs(hits - count * chance) < 5 * math.sqrt(count * chance * (1 - chance))


def test_no_answer_tells_a_token_from_another_by_more_than_epsilon() -> None:
    """The guarantee itself: of any two tokens, none makes an answer more than e^ε times as likely."""
    for classes, epsilon in itertools.product((2, 3, 10, 1000), (0.01, 1.0, 8.0, 700.0)):
        stays = keep_probability(epsilon, classes)
        changes = (1 - stays) / (classes - 1)
        assert 0 < stays <= 1
        if changes > 0:
            assert math.log(stays / changes) <= epsilon * (1 + 1e-9) + 1e-6


def test_the_answer_for_an_image_never_changes_and_follows_its_place_alone() -> None:
    """Were it drawn anew, the mean over a run would tell the token."""
    tokens = np.arange(1000) % 10
    told = randomised_response(tokens, KEY, 10, 1.0)
    assert np.array_equal(told, randomised_response(tokens, KEY, 10, 1.0))
    assert not np.array_equal(told, randomised_response(tokens, bytes(32), 10, 1.0))
    # which images lie does not depend on what they show
    shifted = randomised_response((tokens + 3) % 10, KEY, 10, 1.0)
    assert np.array_equal(shifted, (told + 3) % 10)


def test_a_large_epsilon_tells_the_truth() -> None:
    tokens = np.arange(1000) % 10
    assert np.array_equal(randomised_response(tokens, KEY, 10, 700.0), tokens)


def test_one_class_has_nothing_to_hide() -> None:
    assert np.array_equal(randomised_response(np.zeros(3, np.int64), KEY, 1, 1.0), [0, 0, 0])


def test_a_key_file_goes_and_comes(tmp_path: Path) -> None:
    first, second = (make_token_key(tmp_path / name) for name in ("a.key", "b.key"))
    assert first != second
    assert read_token_key(tmp_path / "a.key") == first
    with pytest.raises(ConfigError, match="is there already"):
        make_token_key(tmp_path / "a.key")


@pytest.mark.parametrize(
    "content", [b"", b"harmony-token-key " + b"0" * 63 + b"\n", b"harmony-token-key " + b"G" * 64 + b"\n", b"\xff" * 99]
)
def test_what_is_no_token_key_is_named(content: bytes, tmp_path: Path) -> None:
    write_secret(tmp_path / "x.key", content)
    with pytest.raises(ConfigError, match=r"x\.key: holds no token key"):
        read_token_key(tmp_path / "x.key")


def test_the_digest_recognises_a_key_and_shares_nothing_with_its_other_uses() -> None:
    assert key_digest(KEY) == key_digest(KEY) != key_digest(bytes(32))
    assert len(bytes.fromhex(key_digest(KEY))) == 32
    assert KEY.hex() not in key_digest(KEY)
