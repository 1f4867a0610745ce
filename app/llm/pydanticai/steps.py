"""Whose request this is, and which step of which agent run: what keys, rows and sticky routes hang on."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import JsonValue, ValidationError
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, ValidatedToolArgs, WrapToolExecuteHandler
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.tools import ToolDefinition

from app.llm.candidates import Candidate
from app.llm.errors import LLMInvalidRequest, LLMKeyConflict, LLMKeyInProgress, LLMWorkspaceConflict
from app.llm.types import MAX_KEY_CHARS, LLMCallContext, LLMRequest

_MUST_AGREE = ("workspace_id", "pipeline_run_id", "stage")

STEP = "llm_step"
"""Where an answer's metadata says which step of which keyed run it ended: the key, whose it is, whether it was forced."""

_inside: ContextVar[tuple[tuple[str | None, str | None], ...]] = ContextVar("inside", default=())
"""The tool calls that this task works on, outermost first, each with the run that made it."""

_answered: ContextVar[tuple[tuple[str | None, int], int]] = ContextVar("answered", default=((None, 0), 0))
"""The run and the step that this task got an answer for last, and how many it got for it."""


class NestedRuns(AbstractCapability[Any]):
    """Gives each run that a tool starts keys of its own: `Agent(model, capabilities=[NestedRuns()])`.

    Needed where a tool starts another agent under the same idempotency key, possibly several times at once; tools of a
    `RecordedToolset` have it built in.
    PydanticAI does not tell a run which tool call started it, so without this the second such run is refused
    (`LLMKeyConflict`); it never gets the answer of the first.
    """

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,  # noqa: ARG002  # the base's signature
        args: ValidatedToolArgs,
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Run the tool while its call is known to the runs that it starts."""
        with inside_tool(ctx.run_id, call.tool_call_id):
            return await handler(args)


_REMEDY = (
    "One tool call that runs one agent several times under one key needs a key for each item (metadata="
    "{'idempotency_key': ...}), or agents of different names: nothing else tells its runs apart"
)


@contextmanager
def inside_tool(run_id: str | None, tool_call_id: str | None) -> Iterator[None]:
    """Let the runs that are started inside the block know the tool call that starts them."""
    path, call = _inside.get(), (run_id, tool_call_id)
    token = _inside.set(path if call in path else (*path, call))
    try:
        yield
    finally:
        _inside.reset(token)


def within_tool() -> bool:
    """Return whether this task works on a tool call that its keys must name."""
    return bool(_inside.get())


def named_by(source: str, facts: Mapping[str, Any] | None, *, prefix: str = "") -> LLMCallContext:
    """Return the correlation that a source names, each field under `prefix` + its name.

    Raises:
        LLMInvalidRequest: A value is not printable text.
    """
    fields = {name: (facts or {}).get(prefix + name) for name in LLMCallContext.model_fields}
    try:
        return LLMCallContext.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise LLMInvalidRequest(f"{source}: {prefix}{fault['loc'][0]}: {fault['msg']}") from None


def agreed(sources: Iterable[tuple[str, LLMCallContext]]) -> LLMCallContext:
    """Return what the sources say together; for the key, the first source that names one counts.

    Raises:
        LLMWorkspaceConflict: Two sources name different workspaces, pipeline runs or stages.
    """
    said: dict[str, tuple[str, str]] = {}
    for source, context in sources:
        for name, value in context:
            if value is None:
                continue
            first_source, first = said.setdefault(name, (source, value))
            if name in _MUST_AGREE and first != value:
                raise LLMWorkspaceConflict(
                    f"{first_source} names {name} {first!r}, {source} names {value!r}: let one of them name it",
                    **{name: [first, value]},
                )
    return LLMCallContext(**{name: value for name, (_, value) in said.items()})


def step_key(key: str, run: RunContext[Any] | None, *, name: str | None) -> str:
    """Return the key of one request of a run: `key/agent/step`, or `key/agent>tool_call/step` in a run of a tool.

    A run of a tool of such a run names both calls, and so on; what gets too long for a key ends in a hash. A further
    request of a step that has an answer (which a FallbackModel refused, say) is `key/agent/step.2`, and so on.

    Outside an agent run there is one request, so the key itself serves.

    Raises:
        UserError: Neither the agent nor the model has a name, so keys of two agents could collide.
    """
    if run is None:
        return key
    agent = (run.agent.name if run.agent else None) or name
    if not agent:
        raise UserError(
            "an idempotency key needs a named agent, so that two agents under one key stay apart: "
            "write Agent(..., name='extract') or PydanticAiLiteLLMModel(..., name='extract')"
        )
    path = ">".join([agent, *(str(call) for _, call in _inside.get())])
    known = _answers_of(run)
    return fitting(f"{key}/{path}/{run.run_step}{f'.{known + 1}' if known else ''}")


def note_answer(run: RunContext[Any] | None) -> None:
    """Note that this step of the run has an answer: if the agent asks again, in this task, it wants another one.

    What a tool asks by itself is no step (its number is 0): there an equal key means an equal answer, as everywhere.
    """
    if run is not None and run.run_step:
        _answered.set(((run.run_id, run.run_step), _answers_of(run) + 1))


def _answers_of(run: RunContext[Any]) -> int:
    whose, known = _answered.get()
    return known if whose == (run.run_id, run.run_step) else 0


def fitting(key: str) -> str:
    """Return a derived key; one that no column would hold keeps its beginning and ends in a hash of the whole."""
    if len(key) <= MAX_KEY_CHARS:
        return key
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return f"{key[: MAX_KEY_CHARS - 1 - len(digest)]}~{digest}"


@contextmanager
def remedy_named() -> Iterator[None]:
    """Let a refused key of a run that a tool started say what tells the runs of one tool call apart.

    Raises:
        LLMKeyConflict: As it was, and the remedy.
        LLMKeyInProgress: Likewise.
    """
    try:
        yield
    except (LLMKeyConflict, LLMKeyInProgress) as error:
        if not within_tool():
            raise
        raise type(error)(f"{error.message}. {_REMEDY}", **error.facts) from None


def step_facts(request: LLMRequest, context: LLMCallContext) -> dict[str, JsonValue]:
    """Return what the tools of a step must know of its request, for its answer's metadata; nothing without a key."""
    if request.idempotency_key is None:
        return {}
    whose = context.model_dump(exclude_none=True)
    forced = {"force_new_execution": True} if request.force_new_execution else {}
    return {STEP: {**whose, "idempotency_key": request.idempotency_key, **forced}}


def agent_facts(run: RunContext[Any] | None) -> dict[str, JsonValue]:
    """Return what the row of a request keeps of the agent run that made it."""
    if run is None:
        return {}
    name = run.agent.name if run.agent else None
    return {"agent": name, "agent_run_id": run.run_id, "agent_step": run.run_step}


def answered_before(
    messages: Sequence[ModelMessage], run: RunContext[Any] | None, candidates: Iterable[Candidate]
) -> str | None:
    """Return the candidate, as `provider:model`, that gave the latest answer of this run; None before the first."""
    names = {candidate.name for candidate in candidates}
    for message in reversed(messages):
        if isinstance(message, ModelResponse) and run is not None and message.run_id == run.run_id:
            name = f"{message.provider_name}:{message.model_name}"
            return name if name in names else None
    return None
