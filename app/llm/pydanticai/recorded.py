"""Tools that run once: what they return is kept under the key of the agent's run, so that a repeated run does nothing twice."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed, UserError
from pydantic_ai.messages import ModelResponse, ToolCallPart, ToolReturn, ToolReturnContent
from pydantic_ai.tools import AgentDepsT
from pydantic_ai.toolsets import CombinedToolset, ToolsetTool, WrapperToolset
from pydantic_core import PydanticSerializationError

from app.llm.effects import Unrecordable
from app.llm.errors import LLMInvalidRequest
from app.llm.fingerprint import json_bytes
from app.llm.pydanticai.steps import STEP, fitting, inside_tool, within_tool
from app.llm.types import LLMCallContext

_VALUE, _RETURN, _RETRY, _FAILED = "value", "tool_return", "retry", "failed"
"""How a tool can end, as it is recorded: with a value, with more than that, with a question, with its failure."""

_AS_PYDANTIC_AI = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_ANY: TypeAdapter[Any] = TypeAdapter(Any, config=_AS_PYDANTIC_AI)
_CONTENT: TypeAdapter[Any] = TypeAdapter(ToolReturnContent, config=_AS_PYDANTIC_AI)
_TOOL_RETURN: TypeAdapter[ToolReturn] = TypeAdapter(ToolReturn)

_ITERATORS = (GeneratorType, type(TypeAdapter(Iterable[Any]).validate_python(())))
"""What can be written down, but read only once: Pydantic makes the second of an `Iterable`."""


class OnceService(Protocol):
    """What recorded tools need of `LLMService`."""

    async def once(
        self,
        key: str,
        name: str,
        arguments: Mapping[str, JsonValue],
        work: Callable[[], Awaitable[JsonValue]],
        *,
        context: LLMCallContext | None = None,
        undone: tuple[type[Exception], ...] = (),
        force_new_execution: bool = False,
    ) -> JsonValue:
        """Return what `work` returns, which is run once under this key."""
        ...


@dataclass
class RecordedToolset(WrapperToolset[AgentDepsT]):
    """Tools whose results are recorded: `Agent(model, toolsets=[RecordedToolset(FunctionToolset([pay]), llm)])`.

    In a run with an idempotency key a call of a tool has a key of its own, `{key of its step}/tool/{tool call}` (with a
    hash at its end where that gets too long): it runs once, and a run that is repeated under the same key gets what it
    returned. A process that dies within a tool leaves it to LLM_ON_ABANDONED, as with calls. In a run without a key, or with
    a model that is none of ours, tools just run, and agents that they start keep the keys that they are given.

    What the agent gets is what the ledger keeps, live too: JSON, with files and `ToolReturn` as PydanticAI writes and
    reads them. `ModelRetry` (which a tool's own `timeout` raises, too) and `ToolFailed` are results. Any other exception is none and frees the key, so that a repeated
    run runs the tool again, whatever it had done before it raised; `llm_force_new_execution` does in any case: if the model
    then asks for something else, that is a conflict. A tool that is cancelled, or returns what cannot be recorded, may have
    done its work: its key is LLM_ON_ABANDONED's, too. Tools that wait for an approval, or are done elsewhere, are not
    recorded before they have run.
    """

    llm: OnceService

    def __post_init__(self) -> None:
        """Look for recorded tools within: they would wait for the key that this one holds.

        Raises:
            UserError: There are some.
        """
        within: list[Any] = [self.wrapped]
        for each in within:  # grows on the way, by what each toolset wraps
            if isinstance(each, RecordedToolset):
                raise UserError("the tools of a RecordedToolset are recorded already: wrap each toolset once")
            within += [each.wrapped] if isinstance(each, WrapperToolset) else []
            within += each.toolsets if isinstance(each, CombinedToolset) else []

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[AgentDepsT], tool: ToolsetTool[AgentDepsT]
    ) -> Any:
        """Run the tool, unless its call has a result already.

        Raises:
            LLMContractError: The key of the call cannot be had, or holds other arguments; the tool was not run.
                `LLMInvalidRequest`: its arguments (before), or what it returned (after, with `possibly_paid`), cannot be
                written as JSON.
            LLMLedgerError: The database is away; the tool was not run.
        """

        async def work() -> JsonValue:
            return await _ended(name, self.wrapped.call_tool(name, tool_args, ctx, tool))

        step = _step_of(ctx)
        if step is None and not within_tool():
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)
        with inside_tool(ctx.run_id, ctx.tool_call_id):
            if step is None:
                return await self.wrapped.call_tool(name, tool_args, ctx, tool)
            tool_args = _at_rest(tool_args)
            facts = dict(step)
            forced = bool(facts.pop("force_new_execution", False))
            context = LLMCallContext(**facts)
            kept = await self.llm.once(
                fitting(f"{context.idempotency_key}/tool/{ctx.tool_call_id}"),
                name,
                _in_order(_written(tool_args, f"the arguments of {name}"), tool_args),
                work,
                context=context.model_copy(update={"idempotency_key": None}),
                undone=(ApprovalRequired, CallDeferred),
                force_new_execution=forced,
            )
        return _told(kept)


def _step_of(ctx: RunContext[Any]) -> Mapping[str, Any] | None:
    """Return what the answer that asks for this call says of its step; None if there is none, or it has no key."""
    for message in reversed(ctx.messages):
        if isinstance(message, ModelResponse) and any(
            isinstance(part, ToolCallPart) and part.tool_call_id == ctx.tool_call_id for part in message.parts
        ):
            step: Mapping[str, Any] | None = (message.metadata or {}).get(STEP)
            return step
    return None


async def _ended(name: str, running: Awaitable[Any]) -> JsonValue:
    """Return how a tool ended, as it is recorded."""
    try:
        returned = await running
    except ModelRetry as retry:
        return {_RETRY: retry.message}
    except ToolFailed as failed:
        return {_FAILED: failed.message}
    except ValidationError as error:  # PydanticAI asks the model again, as with the other two
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return {_RETRY: "\n".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in faults)}
    how = _RETURN if isinstance(returned, ToolReturn) else _VALUE
    what = f"what {name} returned"
    try:
        kept = _written(returned, what)
    except LLMInvalidRequest as error:
        raise Unrecordable(error.message) from None
    try:
        _read(how, kept)
    except (PydanticSerializationError, ValueError) as error:
        raise Unrecordable(f"{what} cannot be read again once it is recorded: {error}") from None
    return {how: kept}


def _told(kept: Any) -> Any:
    """Return or raise what was recorded."""
    ((how, what),) = kept.items()
    if how == _RETRY:
        raise ModelRetry(what)
    if how == _FAILED:
        raise ToolFailed(what)
    return _read(how, what)


def _read(how: str, what: Any) -> Any:
    text = _ANY.dump_json(what)
    return _TOOL_RETURN.validate_json(text) if how == _RETURN else _CONTENT.validate_json(text)


def _at_rest(value: Any) -> Any:
    """Return arguments whose iterators are lists: they are written down, and what is read once is empty afterwards."""
    if isinstance(value, _ITERATORS):
        return [_at_rest(each) for each in value]
    if isinstance(value, dict | BaseModel):
        held = value if isinstance(value, dict) else value.__dict__
        held.update({name: _at_rest(each) for name, each in held.items()})
    elif isinstance(value, list):
        value[:] = map(_at_rest, value)
    return value


def _in_order(written: Any, value: Any) -> Any:
    """Return what was written of a value with its sets sorted: each process has another order for them."""
    try:
        plain = _ANY.dump_python(value, by_alias=True, warnings=False)
    except TypeError:  # a set of models, which no set can hold once they are written
        return written
    return _sorted(written, plain)


def _sorted(written: Any, plain: Any) -> Any:
    if isinstance(plain, set | frozenset) and isinstance(written, list):
        return sorted(written, key=json_bytes)
    if isinstance(plain, dict) and isinstance(written, dict) and len(plain) == len(written):
        pairs = zip(written.values(), plain.values(), strict=True)
        return dict(zip(written, (_sorted(*pair) for pair in pairs), strict=True))
    if isinstance(plain, list | tuple) and isinstance(written, list) and len(plain) == len(written):
        return [_sorted(*pair) for pair in zip(written, plain, strict=True)]
    return written


def _written(value: Any, what: str) -> Any:
    try:
        return _ANY.dump_python(value, mode="json", by_alias=True, warnings=False)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise LLMInvalidRequest(f"{what} cannot be recorded as JSON: {error}") from None
