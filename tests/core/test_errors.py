"""The error tree: as drawn, and one safe line a message."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.core import errors
from harmony.core.errors import LONGEST, HarmonyError


def drawn() -> Iterator[tuple[str, str]]:
    """(class, its parent) as the module's docstring draws them."""
    ancestors: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?:\s{2,}\S|$)", line)
        if match:
            depth = len(match[1]) // 4
            ancestors[depth] = match[2]
            yield match[2], ancestors[depth - 1] if depth else "Exception"


def test_the_drawing_is_the_tree() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HarmonyError)]
    assert dict(drawn()) == {kind.__name__: kind.__mro__[1].__name__ for kind in classes}
    assert all(kind.__doc__ and kind.exit_code == 2 for kind in classes)


def test_a_message_names_place_field_problem_and_mend() -> None:
    error = errors.ConfigError("is wrong", where="a.toml", field="data.name", mend="write another")
    assert str(error) == "a.toml: data.name: is wrong (write another)"
    assert (error.problem, error.where, error.field, error.mend) == ("is wrong", "a.toml", "data.name", "write another")
    assert str(errors.ConfigError("is wrong")) == "is wrong"
    assert str(errors.ConfigError("is wrong", field="x")) == "x: is wrong"
    twin = copy.copy(error)
    assert (type(twin), str(twin), twin.field) == (errors.ConfigError, str(error), "data.name")


@given(problem=st.text(), where=st.text(), field=st.text(), mend=st.text())
def test_whatever_is_put_in_the_message_is_one_line_that_prints(
    problem: str, where: str, field: str, mend: str
) -> None:
    text = str(HarmonyError(problem, where=where, field=field, mend=mend))
    assert len(text.splitlines()) <= 1
    assert text.isprintable()
    text.encode()


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        ("two\r\nlines\u2028and a third", "two lines and a third"),
        ("\x1b[2Jcleared", r"\x1b[2Jcleared"),
        ("half a character \udce9", r"half a character \udce9"),
    ],
)
def test_terminal_codes_and_bytes_of_file_names_are_spelt_out(problem: str, shown: str) -> None:
    assert str(HarmonyError(problem)) == shown


@pytest.mark.parametrize("char", ["x", "\x1b", " ", "x "])
def test_a_message_has_bounds(char: str) -> None:
    assert len(str(HarmonyError(char * 1_000_000))) <= LONGEST
