"""The lanes are one: the same request leaves through both, the same reply and the same fault mean the same."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.llm.errors import LLMBadResponse, LLMTimeout, LLMUnavailable
from app.llm.messages import ToolSpec
from app.llm.ports import ProviderReply
from app.llm.settings import LiteLLMLane
from app.llm.testing import Reply
from tests.crash.faults import FAULTS, How
from tests.support.rounds import ROUNDS, times
from tests.wire.corpus import (
    FILES,
    REPLIES,
    REQUESTS,
    STRICT,
    asks,
    called,
    candidate,
    gemini,
    ollama,
    said,
)
from tests.wire.pairs import MODELS, Pair, pair_on, without
from tests.wire.test_requests import EVERYTHING, WANTS_CITY, WEATHER

DIALECT, ACOMPLETION = LiteLLMLane.DIALECT, LiteLLMLane.ACOMPLETION
BOTH = ("ollama", "gemini")
PROXY = {
    "ollama_num_ctx": 4096,
    "ollama_keep_alive": "10m",
    "ollama_api_key": "proxy-key",
    "ollama_headers": "X-Team: blue; X-Other: a:b",
}


@pytest.fixture(params=BOTH)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Each provider in turn."""
    async with pair_on(request.param) as pair:
        yield pair


@pytest.mark.parametrize(
    ("provider", "model"), [(provider, model) for provider in BOTH for model in MODELS[provider]]
)
async def test_the_same_request_leaves_through_both_lanes(provider: str, model: str):
    async with pair_on(provider, model, **PROXY) as pair:
        for name, request in (REQUESTS | (FILES if provider == "gemini" else {})).items():
            left = await pair.left(request)
            assert left[DIALECT] == left[ACOMPLETION], name


@pytest.mark.parametrize(
    "overrides",
    [
        {"ollama_headers": "authorization: Basic eA=="},
        {"ollama_headers": "Authorization: Basic eA==", "ollama_api_key": "key"},
        {"ollama_headers": "authorization: Basic eA==", "ollama_api_key": "key"},
        {"ollama_headers": "Content-Type: text/plain; User-Agent: us"},
    ],
)
async def test_the_headers_of_a_proxy_leave_alike(overrides: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OLLAMA_API_KEY", "a key for another server")
    async with pair_on("ollama", **overrides) as pair:
        left = await pair.left(asks())
    assert left[DIALECT] == left[ACOMPLETION]
    assert "another server" not in str(left)


async def test_a_request_that_is_remembered_leaves_as_it_left_first(pair: Pair):
    """What is read of parameters is kept by value: nothing that a call does to it may reach the next one."""
    for request in (EVERYTHING, WANTS_CITY, asks(tools=(WEATHER, STRICT), tool_choice="required")):
        bodies = [await pair.rigs[DIALECT].body(request) for _ in range(3)]
        assert bodies[0] == bodies[1] == bodies[2]


async def test_requests_that_differ_in_one_number_do_not_share_what_is_remembered(pair: Pair):
    schemas = [
        {"type": "object", "properties": {"x": {"type": "number", "minimum": value}}}
        for value in (1, True, 1.0)
    ]
    bodies = [
        json.dumps(await pair.rigs[DIALECT].body(asks(tools=(ToolSpec(name="f", parameters=schema),))))
        for schema in schemas
    ]
    assert len(set(bodies)) == len(bodies)


# -- replies


@pytest.mark.parametrize("provider", BOTH)
async def test_the_same_reply_means_the_same_in_both_lanes(provider: str):
    async with pair_on(provider) as pair:
        ended = {name: await pair.ended(reply) for name, reply in REPLIES[provider].items()}
    assert {name: each for name, each in ended.items() if not alike(each)} == {}


def alike(ended: dict[LiteLLMLane, Any], *besides: str) -> bool:
    """Whether both lanes end alike; an answer that neither can use may be called so in different words."""
    one, other = ended[DIALECT], ended[ACOMPLETION]
    if isinstance(one, ProviderReply) or isinstance(other, ProviderReply):
        return bool(one == other)
    words = ("message",) if one["error"] is LLMBadResponse else ()
    return bool(without(one, *words, *besides) == without(other, *words, *besides))


class Difference(NamedTuple):
    """A reply that the lanes read differently, on purpose."""

    provider: str
    reply: Reply
    why: str


DIFFERENCES = {
    "role": Difference(
        "ollama", ollama({"role": "robot", "content": "a"}),
        "Nobody reads the role of an answer; LiteLLM's shape of a message drops a paid answer for it.",
    ),
    "id that is no text": Difference(
        "ollama", called({"id": 5, "function": {"name": "weather", "arguments": {}}}),
        "Nobody reads the ids of calls: they are replaced by call_0, call_1 ...",
    ),
    "id like LiteLLM's": Difference(
        "ollama", called({"id": "a__thought__b", "function": {"name": "weather", "arguments": {}}}),
        "LiteLLM packs signatures into ids, so its lane unpacks them; Ollama has no signatures.",
    ),
    "OpenAI's fields": Difference(
        "ollama", said("a", function_call=5), "Ollama has no such field; LiteLLM takes a message for one of OpenAI's."
    ),
    "reason of another provider": Difference(
        "ollama", ollama({"content": "a"}, done_reason="max_tokens"),
        "LiteLLM has one table of reasons for all providers; Ollama says stop, length, load or unload.",
    ),
    "reason of another provider, Gemini": Difference(
        "gemini", gemini({"text": "a"}, finish="content_filter"), "As above; Gemini's reasons are in capitals."
    ),
    "audio": Difference(
        "gemini", gemini({"text": "data:audio/wav;base64,AAAA"}),
        "LiteLLM takes such a text for audio and away; no audio is asked for, so it is a text.",
    ),
    "file": Difference(
        "gemini", gemini({"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}, {"text": "a"}),
        "LiteLLM writes a file into the text, as a data URL; no file is asked for.",
    ),
    "fields that nobody reads": Difference(
        "gemini", candidate({"content": {"parts": [{"text": "a"}]}, "index": "first"}),
        "LiteLLM drops a paid answer for an odd value of a field that is not part of it.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES.keys())
async def test_a_difference_between_the_lanes_is_still_one(difference: Difference):
    """One that has gone is to be taken off the list."""
    async with pair_on(difference.provider) as pair:
        ended = await pair.ended(difference.reply)
    assert ended[DIALECT] != ended[ACOMPLETION], difference.why


# -- replies that nobody thought of

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ("<think>", "</think>", "<think>a</think>b", "<thinking>a</thinking>", " ", "data:x", "{}", "NaN")
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
OLLAMA_CALLS = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {}, optional={"name": TEXTS | st.none(), "arguments": ARGUMENTS | TEXTS | st.none()}
        )
    },
    optional={"id": TEXTS.filter(lambda text: "__thought__" not in text), "type": st.just("function")},
)
OLLAMA_REPLIES = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries(
            {},
            optional={
                "role": st.just("assistant"),
                "content": TEXTS | st.none(),
                "thinking": TEXTS | st.none(),
                "tool_calls": st.lists(OLLAMA_CALLS, max_size=2) | st.none(),
            },
        )
    },
    optional={
        "done_reason": st.sampled_from(("stop", "length", "load", "unload", None)),
        "prompt_eval_count": VALUES,
        "eval_count": VALUES,
    },
)
GEMINI_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS | st.none(),
        "thought": st.booleans() | st.none(),
        "thoughtSignature": st.text("AB", min_size=1, max_size=3),
        "functionCall": st.fixed_dictionaries({"name": TEXTS}, optional={"args": ARGUMENTS | VALUES}),
    },
)
GEMINI_CANDIDATES = st.fixed_dictionaries(
    {},
    optional={
        "content": st.fixed_dictionaries({}, optional={"parts": st.lists(GEMINI_PARTS, max_size=3)}),
        "finishReason": st.sampled_from(("STOP", "MAX_TOKENS", "SAFETY", "OTHER", "LANGUAGE", "new", None)),
    },
)
GEMINI_REPLIES = st.fixed_dictionaries(
    {"candidates": st.lists(GEMINI_CANDIDATES, max_size=2)},
    optional={
        "usageMetadata": st.dictionaries(
            st.sampled_from(("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")), VALUES
        ),
        "promptFeedback": st.fixed_dictionaries({}, optional={"blockReason": st.just("OTHER") | st.none()}),
    },
)
SEVERAL = settings(
    max_examples=times(150),
    deadline=None,
    database=None,
    derandomize=ROUNDS == 1,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_whatever_ollama_says_means_the_same_in_both_lanes(loop: asyncio.Runner):
    _any_reply_means_the_same("ollama", OLLAMA_REPLIES, loop)


def test_whatever_gemini_says_means_the_same_in_both_lanes(loop: asyncio.Runner):
    _any_reply_means_the_same("gemini", GEMINI_REPLIES, loop)


def _any_reply_means_the_same(provider: str, replies: st.SearchStrategy[Any], loop: asyncio.Runner) -> None:
    opened = pair_on(provider)
    pair = loop.run(opened.__aenter__())

    @SEVERAL
    @given(payload=replies)
    def same(payload: Any) -> None:
        ended = loop.run(pair.ended(Reply.raw(json.dumps(payload).encode())))
        assert alike(ended), ended

    try:
        same()
    finally:
        loop.run(opened.__aexit__(None, None, None))


# -- faults


@pytest.mark.parametrize("provider", BOTH)
async def test_the_same_fault_means_the_same_in_both_lanes(provider: str):
    async with pair_on(provider) as pair:
        for fault in FAULTS:
            if provider in fault.providers and fault.how is How.REPLY:
                ended = await pair.ended(
                    fault.replies[provider],
                    asks(max_output_tokens=50),
                    timeout_s=fault.attempt_timeout_s,
                )
                assert alike(ended, "usage"), fault.title  # a stub counts white space, if it says no number


async def test_silence_means_the_same_in_both_lanes(pair: Pair):
    with pair.stub.hold():
        ended = await pair.ended(timeout_s=0.2)
    assert ended[DIALECT] == ended[ACOMPLETION]
    assert (ended[DIALECT]["error"], ended[DIALECT]["possibly_paid"]) == (LLMTimeout, True)


async def test_a_closed_port_means_the_same_in_both_lanes(pair: Pair):
    await asyncio.to_thread(pair.stub.down)
    ended = await pair.ended()
    assert ended[DIALECT] == ended[ACOMPLETION]
    assert (ended[DIALECT]["error"], ended[DIALECT]["possibly_paid"]) == (LLMUnavailable, False)


@pytest.mark.parametrize("provider", BOTH)
async def test_a_host_without_an_address_means_the_same_in_both_lanes(
    provider: str, monkeypatch: pytest.MonkeyPatch
):
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with pair_on(provider, **{f"{provider}_api_base": "http://signalbox.invalid/v1beta"}) as pair:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        ended = await pair.ended()
    assert ended[DIALECT] == ended[ACOMPLETION]
    assert (ended[DIALECT]["error"], ended[DIALECT]["possibly_paid"]) == (LLMUnavailable, False)
