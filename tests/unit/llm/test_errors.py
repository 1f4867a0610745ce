"""The error tree: drawn as it is, safe to pickle, and clear about what may follow."""

import pickle
from collections.abc import Iterator

import pytest

from app.llm import errors
from app.llm.errors import LLMContractError, LLMError, LLMLedgerError, LLMProviderError, LLMUnavailable


def below(cls: type[LLMError]) -> Iterator[type[LLMError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from below(child)


TREE = [cls for cls in below(LLMError) if cls.__module__ == errors.__name__]


def drawn() -> list[tuple[int, str]]:
    """Return (depth, name) of each line of the tree in the module's docstring."""
    lines = (errors.__doc__ or "").splitlines()
    start = lines.index("LLMError")
    rows = lines[start : lines.index("", start)]
    bare = [row.replace("│", " ").replace("├──", "   ").replace("└──", "   ") for row in rows]
    return [((len(row) - len(row.lstrip())) // 4, row.split()[0]) for row in bare]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    depths = [(len(cls.__mro__) - len(LLMError.__mro__), cls.__name__) for cls in TREE]
    assert sorted(drawn()) == sorted(depths)
    parents: dict[int, str] = {}
    for depth, name in drawn():
        parents[depth] = name
        assert depth == 0 or getattr(errors, name).__base__.__name__ == parents[depth - 1]


def test_every_class_has_a_code_of_its_own():
    codes = [cls.code for cls in TREE]
    assert len(set(codes)) == len(codes)
    assert all(code.isascii() and code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize("cls", TREE)
def test_every_error_survives_pickling(cls: type[LLMError]):
    error = cls("it failed", run_id="r1", retry_after_s=1.5, attempts=("a",), possibly_paid=True)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(copy) is cls
    assert copy.message == "it failed"
    assert (copy.facts, copy.possibly_paid) == (error.facts, True)
    assert (copy.run_id, copy.retry_after_s, copy.attempts) == ("r1", 1.5, ("a",))


def test_whether_it_was_paid_survives_pickling_against_the_default_of_the_class():
    error = errors.LLMTimeout("late")
    error.possibly_paid = True
    assert pickle.loads(pickle.dumps(error)).possibly_paid  # noqa: S301  # our own bytes
    unpaid = errors.LLMBadResponse("html", possibly_paid=False)
    assert not pickle.loads(pickle.dumps(unpaid)).possibly_paid  # noqa: S301  # our own bytes


def test_facts_that_are_unknown_are_left_out():
    error = LLMUnavailable("down", provider="ollama", http_status=None)
    assert error.facts == {"provider": "ollama"}
    assert (error.run_id, error.retry_after_s, error.attempts) == (None, None, ())


def test_a_floor_above_can_add_facts_to_the_same_error():
    error = LLMUnavailable("down", provider="ollama")
    assert error.with_facts(run_id="r1", attempts=None) is error
    assert error.facts == {"provider": "ollama", "run_id": "r1"}


def test_only_provider_errors_may_be_repeated():
    assert {cls for cls in TREE if cls.retryable or cls.fallback} <= set(below(LLMProviderError))


def test_what_may_be_retried_may_also_fall_back():
    assert all(cls.fallback for cls in TREE if cls.retryable)


def test_nothing_was_paid_for_an_error_before_the_call():
    before = {*below(LLMContractError), *below(LLMLedgerError)} - {errors.LLMOutcomeUnknown}
    assert not any(cls.possibly_paid for cls in before)


def test_the_message_is_the_text_of_the_error():
    assert str(LLMUnavailable("down", provider="ollama")) == LLMUnavailable("down").message == "down"
