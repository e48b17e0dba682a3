"""A device process is asked and replies; whatever goes wrong over there is one named line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harmony.bench.child import ask, run_module
from harmony.bench.results import Bar, Ratio
from harmony.core.errors import EngineError
from harmony.core.spec import Frozen

CHILD = """
import sys
from harmony.bench.child import reply
from harmony.bench.results import Bar
from harmony.core.errors import ConfigError

def doubled(bar):
    if bar.value < 0:
        raise ConfigError("is below 0", where="here", field="value")
    return bar.model_copy(update={"value": 2 * bar.value})

sys.exit(reply(Bar, doubled))
"""
Asked = Callable[[str, Bar, type[Frozen]], Frozen]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Asks a module of the given text."""

    def run(text: str, question: Bar, answer: type[Frozen]) -> Frozen:
        (tmp_path / "a_child.py").write_text(text)
        return ask("a_child", question, answer, where="client-000", environment={"PYTHONPATH": str(tmp_path)})

    return run


def _bar(value: float) -> Bar:
    return Bar(name="work", value=value, limit=9, unit="s")


def test_a_question_is_answered(asked: Asked) -> None:
    assert asked(CHILD, _bar(2.5), Bar) == _bar(5)


def test_a_named_error_of_the_child_is_passed_on_in_one_line(asked: Asked) -> None:
    with pytest.raises(EngineError) as error:
        asked(CHILD, _bar(-1), Bar)
    says = "client-000: the device process ended with code 2: ConfigError: here: value: is below 0"
    assert str(error.value) == says


@pytest.mark.parametrize(("text", "answer"), [(CHILD, Ratio), ("", Bar)])
def test_an_answer_of_another_type_or_none_at_all(asked: Asked, text: str, answer: type[Frozen]) -> None:
    with pytest.raises(EngineError, match=f"client-000: the device process left no {answer.__name__}$"):
        asked(text, _bar(1), answer)


def test_a_child_that_says_nothing() -> None:
    with pytest.raises(EngineError, match=r"here: the device process ended with code 1: .*No module named"):
        run_module("harmony.no_such_module", [], where="here")
