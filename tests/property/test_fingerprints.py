"""Thousands of random requests: two of them have one fingerprint exactly when nothing that counts differs."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.llm.fingerprint import flight_slot, prompt_sha256, request_sha256
from app.llm.messages import Message
from app.llm.types import LLMConstraints, LLMRequest
from tests.support.rounds import ROUNDS, times

TEXTS = st.sampled_from(("", "a", "b", "ab", "é", "\x00"))
ROLES = st.sampled_from((Message.user, Message.system))
CONTENT = st.fixed_dictionaries(
    {"messages": st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=3)},
    optional={
        "temperature": st.sampled_from((None, 0.0, 0.5, 1.0)),
        "max_output_tokens": st.sampled_from((None, 1, 2)),
    },
)
"""Few values each: equal requests must turn up as often as different ones."""
INTENT = st.fixed_dictionaries(
    {}, optional={"constraints": st.sampled_from((LLMConstraints(), LLMConstraints(local_only=True)))}
)
ASIDE = st.fixed_dictionaries(
    {},
    optional={
        "idempotency_key": st.sampled_from(("k1", "k2")),
        "timeout_s": st.sampled_from((5.0, 60.0)),
        "metadata": st.sampled_from(({}, {"a": 1})),
    },
)
"""What no hash knows of."""

EXAMPLES = times(2_500, in_short=300)


def volume(test: Callable[..., None]) -> Callable[..., None]:
    """Try a property many times: the same examples in one round, new ones in more."""
    tried = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=ROUNDS == 1)(test)
    return pytest.mark.tried(EXAMPLES)(tried)


def _request(content: dict[str, Any], *more: dict[str, Any]) -> LLMRequest:
    fields = {**content, "messages": tuple(make(text) for make, text in content["messages"])}
    for each in more:
        fields |= each
    return LLMRequest(**fields)


def _said(content: dict[str, Any]) -> str:
    """Return what a request says, without the fields that say nothing."""
    said = {name: value for name, value in content.items() if value is not None}
    return json.dumps(
        {**said, "messages": [(make.__name__, text) for make, text in content["messages"]]}, sort_keys=True
    )


@volume
@given(one=CONTENT, other=CONTENT, asides=st.tuples(ASIDE, ASIDE))
def test_two_prompts_have_one_hash_exactly_when_they_say_the_same(
    one: dict[str, Any], other: dict[str, Any], asides: tuple[dict[str, Any], dict[str, Any]]
):
    """I15: keys, deadlines and metadata are not what is said."""
    hashes = {
        prompt_sha256(_request(content, aside)) for content, aside in zip((one, other), asides, strict=True)
    }
    assert len(hashes) == len({_said(one), _said(other)})


@volume
@given(content=CONTENT, intents=st.tuples(INTENT, INTENT), workspaces=st.tuples(TEXTS, TEXTS))
def test_intent_is_in_the_request_hash_only_and_workspaces_never_share_a_flight(
    content: dict[str, Any], intents: tuple[dict[str, Any], dict[str, Any]], workspaces: tuple[str, str]
):
    """I13, I15; an intent that is written out and one that is left out are the same intent."""
    requests = [_request(content, intent) for intent in intents]
    prompts = [prompt_sha256(request) for request in requests]
    assert prompts[0] == prompts[1]
    meant = {intent.get("constraints", LLMConstraints()).model_dump_json() for intent in intents}
    hashes = {request_sha256(request, prompt=prompts[0]) for request in requests}
    assert len(hashes) == len(meant)
    slots = {flight_slot(workspace, prompts[0], "0" * 64) for workspace in workspaces}
    assert len(slots) == len(set(workspaces))
