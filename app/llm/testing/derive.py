"""Answer a request from the request itself, so that a stub without a script gives sensible answers, always the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.llm.testing.content import Answer, Call
from app.llm.testing.prompt import Prompt
from app.llm.testing.schema import value_for

_FINAL = "final_result"
_QUOTED_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that the request offers."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a model call wants, without its dialect."""

    text: str
    """The last text of the user."""
    tools: tuple[Tool, ...] = ()
    called: tuple[str, ...] = ()
    """Tools called since that text, oldest first."""
    results: tuple[str, ...] = ()
    """Their results since that text, oldest first."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of the answer; an empty one asks for any JSON object."""
    tool_required: bool = False


def derive(ask: Ask, answer: Answer | None = None) -> Answer:
    """Return `answer` (default: a plain one) with what `ask` makes it say.

    Function tools come first, once each turn; then an output tool (its name starts with `final_result`); then an
    object valid for the schema; then one sentence with words of the prompt.
    """
    said = answer or Answer()
    if tool := _tool_to_call(ask):
        arguments = value_for(tool.parameters or {"type": "object"}, _prompt(ask))
        return replace(said, calls=(Call(name=tool.name, arguments=arguments),))
    if ask.schema is not None:
        schema = ask.schema or {"type": "object", "required": ["answer"], "properties": {"answer": {}}}
        return replace(said, text=json.dumps(value_for(schema, _prompt(ask)), ensure_ascii=False))
    return replace(said, text=_sentence(ask))


def tokens_in(text: str) -> int:
    """Return a token count for `text`: a quarter of its characters, at least 1."""
    return max(1, len(text) // 4)


def _tool_to_call(ask: Ask) -> Tool | None:
    final = next((tool for tool in ask.tools if tool.name.startswith(_FINAL)), None)
    functions = [tool for tool in ask.tools if not tool.name.startswith(_FINAL)]
    untouched = not any(not name.startswith(_FINAL) for name in ask.called)
    if functions and untouched and not ask.results:
        return functions[0]
    if final is None and ask.tool_required and functions:
        return functions[0]
    return final


def _prompt(ask: Ask) -> Prompt:
    return Prompt(" ".join([ask.text, *ask.results]) if ask.results else ask.text)


def _sentence(ask: Ask) -> str:
    sentence = f"Stub answer about: {Prompt(ask.text).opening(12)}."
    if not ask.results:
        return sentence
    name = ask.called[-1] if ask.called else "tool"
    return f"{sentence} The result of {name} was: {ask.results[-1][:_QUOTED_CHARS]}"
