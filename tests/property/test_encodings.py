"""Texts are addressed by their bytes: what is written by hand is what pydantic would write, byte for byte."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.llm.messages import FilePart, ImagePart, Message, TextPart, ThinkingPart, ToolCallPart, ToolSpec
from app.llm.persistence.codec import VERSION, encode_request, encode_response
from app.llm.types import (
    CacheMode,
    FinishReason,
    LLMConstraints,
    LLMProfile,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    RequestVariant,
    ServedFrom,
    TokenUsage,
)
from tests.support.rounds import ROUNDS, times

EXAMPLES = times(300, in_short=100)
OFTEN = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=ROUNDS == 1)
TEXT = st.text(max_size=12) | st.text('a"\\/\b\n\x00\x1f\x7f\x80\u2028', max_size=4)
NUMBERS = st.floats(-1e300, 1e300) | st.sampled_from(
    (0.0, -0.0, 0.1, 1e-4, 9e-5, 1e-300, 1e15, 1e16, 2**63, 2**64, -(2**80))
)
TEXTS = st.builds(TextPart, text=TEXT)
SAID = st.builds(TextPart, text=TEXT | st.just("half of \ud83d"))
"""Answers may hold what no request can."""
IMAGES = st.builds(ImagePart, data=st.binary(min_size=1), media_type=st.just("image/png"))
FILES = st.builds(FilePart, data=st.binary(min_size=1), media_type=st.just("application/pdf"))
JSON = st.dictionaries(TEXT, st.none() | st.booleans() | NUMBERS | TEXT | st.lists(TEXT))
CALLS = st.builds(ToolCallPart, id=TEXT, name=TEXT, arguments=JSON, signature=st.none() | TEXT)
THOUGHTS = st.builds(ThinkingPart, text=TEXT, signature=st.none() | TEXT)


def _turns(role: str, parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Message]:
    contents = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return st.builds(Message, role=st.just(role), content=contents)


TALK = _turns("system", TEXTS) | _turns("user", TEXTS)
TURNS = TALK | _turns("user", TEXTS | IMAGES | FILES) | _turns("assistant", TEXTS | CALLS | THOUGHTS)
PLAIN = {
    "profile": st.sampled_from(LLMProfile),
    "model": st.just("ollama:m"),
    "temperature": st.floats(0, 2) | st.integers(0, 2),
    "top_p": st.floats(0.001, 1),
    "max_output_tokens": st.integers(1),
    "stop": st.lists(TEXT).map(tuple),
    "seed": st.integers(-(2**31), 2**31 - 1),
    "thinking": st.booleans() | st.sampled_from(("low", "medium", "high")),
    "idempotency_key": st.sampled_from(("k1", "K-\u00e9")),
    "cache": st.sampled_from(CacheMode),
    "timeout_s": st.floats(0.001, 86_400),
    "force_new_execution": st.booleans(),
    "metadata": st.dictionaries(st.text(max_size=9), NUMBERS | st.text(max_size=9), max_size=4),
}
SHAPES = {
    "tools": st.builds(ToolSpec, name=st.just("look"), parameters=JSON).map(lambda tool: (tool,)),
    "constraints": st.builds(LLMConstraints, local_only=st.booleans()),
    "variants": st.lists(TURNS, min_size=1, max_size=3).map(
        lambda turns: {LLMProvider.GEMINI: RequestVariant(messages=tuple(turns))}
    ),
}
"""What only pydantic can write."""
REQUESTS = st.one_of(
    st.fixed_dictionaries({"messages": st.lists(turns, min_size=1, max_size=3).map(tuple)}, optional=others)
    for turns, others in ((TALK, PLAIN), (TURNS, {**PLAIN, **SHAPES}))
).map(lambda fields: LLMRequest(**fields))
USUAL = [
    (name, field.get_default(call_default_factory=True)) for name, field in LLMRequest.model_fields.items()
]
TOKENS = st.none() | st.integers(0) | st.just(2**70)


def _json(body: Any) -> bytes:
    return json.dumps({"v": VERSION, **body}, separators=(",", ":")).encode()


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(asked=REQUESTS)
@example(asked=LLMRequest(messages=(Message.user("a"),), temperature=9e-05))
def test_a_request_is_written_as_pydantic_writes_what_was_said(asked: LLMRequest):
    unsaid = {name for name, value in USUAL if getattr(asked, name) == value}
    assert encode_request(asked) == _json({"request": asked.model_dump(mode="json", exclude=unsaid)})


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(
    parts=st.lists(SAID | CALLS | THOUGHTS).map(tuple),
    usage=st.builds(TokenUsage, **dict.fromkeys(TokenUsage.model_fields, TOKENS)),
)
@example(parts=(TextPart(text="\x7f"),), usage=TokenUsage())
def test_an_answer_is_written_as_pydantic_writes_its_parts(parts: Any, usage: TokenUsage):
    said = LLMResponse(
        parts=parts, finish_reason=FinishReason.STOP, usage=usage, original_usage=usage, provider=LLMProvider.OLLAMA,
        model="m", run_id="r", served_from=ServedFrom.LIVE,
    )  # fmt: skip
    dumped = said.model_dump(mode="json")
    kept = {name: dumped[name] for name in ("parts", "finish_reason")}
    whose = {name: dumped[name] for name in ("provider", "model")}
    assert encode_response(said) == _json({**kept, "usage": dumped["original_usage"], **whose})
