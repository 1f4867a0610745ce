"""Streams on the wire: what leaves, that nothing is lost between the chunks, and how each way of breaking off ends."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, ToolCallDelta, deltas_of, parts_of
from app.llm.errors import LLMBadResponse, LLMProviderError, LLMRateLimited, LLMTimeout, LLMUnavailable
from app.llm.messages import TextPart, ThinkingPart
from app.llm.ports import ProviderReply
from app.llm.testing import Call, End, Failure, Gate, Reply, Thought
from app.llm.testing.content import Answer, Piece, Stream, Wire
from app.llm.wire.lines import Lines, ServerSentEvents
from app.llm.wire.telling import Telling
from tests.crash.faults import FAULTS, How
from tests.wire.conftest import Rig, in_both_lanes
from tests.wire.corpus import REPLIES, REQUESTS, asks
from tests.wire.pairs import LANES, MODELS, ended, pair_on
from tests.wire.test_lanes import ACOMPLETION, BOTH, DIALECT, alike

WEATHER = (
    Call(name="weather", arguments={"city": "Oslo"}),
    Call(name="weather", arguments={"city": "Bergen"}),
)


# -- what leaves


@pytest.mark.parametrize(("provider", "model"), [(each, model) for each in BOTH for model in MODELS[each]])
async def test_the_same_request_for_a_stream_leaves_through_both_lanes(provider: str, model: str):
    async with pair_on(provider, model) as pair:
        for name, request in REQUESTS.items():
            left = await pair.left(request, listened=True)
            assert left[DIALECT] == left[ACOMPLETION], name


# -- what arrives


@in_both_lanes
async def test_deltas_arrive_before_the_answer_has_ended(rig: Rig):
    """While the stub holds the rest back, the beginning is here."""
    gate = rig.stub.gate()
    rig.stub.script(Reply.stream(Thought("hm"), "Hel", gate, "lo", usage=(3, 4)))
    first, heard = asyncio.Event(), list[Delta]()

    async def on_delta(delta: Delta) -> None:
        heard.append(delta)
        if len(heard) == 2:
            first.set()

    sending = asyncio.ensure_future(rig.send(on_delta=on_delta))
    await asyncio.wait_for(first.wait(), 10)
    assert heard == [ThinkingDelta("hm"), TextDelta("Hel")]
    gate.release()
    reply = await sending
    assert reply.parts == (ThinkingPart(text="hm"), TextPart(text="Hello"))
    assert (reply.usage.input_tokens, heard[2:]) == (3, [TextDelta("lo")])


@in_both_lanes
async def test_parallel_calls_survive_whatever_their_indexes_and_ids(rig: Rig):
    """Ollama counts the calls of each chunk from 0, and LiteLLM gives each a random id."""
    pieces: tuple[Piece, ...] = (*WEATHER, WEATHER, Call(name="other", arguments={}, id="0"))
    rig.stub.script(Reply.stream("Hm. ", *pieces))
    heard = list[Delta]()
    reply = await rig.send(on_delta=_into(heard))
    names = [(part.name, dict(part.arguments)) for part in reply.parts[1:]]  # type: ignore[union-attr]
    both = [("weather", {"city": "Oslo"}), ("weather", {"city": "Bergen"})]
    assert names == [*both, *both, ("other", {})]
    assert parts_of(heard) == reply.parts
    assert [each.id for each in heard if isinstance(each, ToolCallDelta)] == [f"call_{i}" for i in range(5)]


async def test_tagged_thoughts_arrive_as_thoughts(on_ollama: Rig):
    on_ollama.stub.script(Reply.stream("<thi", "nk>hm</th", "ink>Hel", "lo"))
    heard = list[Delta]()
    reply = await on_ollama.send(on_delta=_into(heard))
    assert parts_of(heard) == reply.parts == (ThinkingPart(text="hm"), TextPart(text="Hello"))


@pytest.mark.parametrize("provider", BOTH)
async def test_a_stream_of_one_chunk_means_what_the_whole_answer_means(provider: str):
    """The corpus of whole answers, each as the only chunk of a stream."""
    async with pair_on(provider) as pair:
        rig = pair.rigs[DIALECT]
        for name, reply in REPLIES[provider].items():
            if (chunk := _as_chunk(provider, reply)) is not None:
                whole, streamed = await ended(rig, reply), await ended(rig, chunk, listened=True)
                assert streamed == _joined(whole), name


DIFFERENT = {
    "ollama": {name for name in REPLIES["ollama"] if "think>" in name or "thinking>" in name}
    - {"content '</think>b'", "content '<think></think>b'"}
    | {f"thinking {value!r}" for value in (None, "", "t")},
    "gemini": {"signed"},
}
"""LiteLLM takes `<think>` out of any chunk of Ollama's, wherever it stands, and knows no other tag; and in one chunk of
Gemini's it does not say whose a signature is."""


@pytest.mark.parametrize("provider", BOTH)
async def test_the_same_stream_means_the_same_in_both_lanes(provider: str):
    """LiteLLM's own reading of chunks is the measure; what it reads otherwise is listed."""
    differ = set()
    async with pair_on(provider) as pair:
        for name, reply in REPLIES[provider].items():
            chunk = reply if isinstance(reply.content, Answer) else _as_chunk(provider, reply)
            if chunk is not None:
                outcome = {lane: await ended(pair.rigs[lane], chunk, listened=True) for lane in LANES}
                differ |= set() if alike(outcome) else {name}
    assert differ == DIFFERENT[provider]


def _as_chunk(provider: str, reply: Reply) -> Reply | None:
    """Return a whole answer as the only chunk of a stream; None if it does not say that it is the last one."""
    if not isinstance(reply.content, Wire):
        return None
    body = reply.content.body
    if (
        not any(word in body for word in ENDS[provider])
        or b'"finishReason": null' in body
        or b'"finishReason": ""' in body
    ):
        return None
    if provider == "ollama":
        return reply
    return Reply.raw(b"data: " + body + b"\n\n", content_type="text/event-stream")


ENDS = {"ollama": (b'"done": true',), "gemini": (b'"finishReason": "', b'"blockReason": "')}


def _joined(whole: Any) -> Any:
    """Return an answer with thoughts that follow each other as one, as chunks make them."""
    if not isinstance(whole, ProviderReply):
        return whole
    return replace(whole, parts=parts_of(deltas_of(whole.parts)))


# -- the same bytes, cut anywhere


UNICODE = ("Grüße 🚂 ", "日本語\u2028", " und mehr")
CALLS = (Call(name="weather", arguments={"city": "Ålesund", "n": 10**30}), Call(name="weather", arguments={}))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_chunks_of_the_network_are_no_chunks_of_the_answer(rig: Rig, size: int):
    rig.stub.script(Reply.stream(Thought("hm 🤔"), *UNICODE, *CALLS, usage=(3, 4)))
    whole = await rig.send(on_delta=_into([]))
    wire = _bytes_of(rig, Thought("hm 🤔"), *UNICODE, *CALLS)
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
    rig.stub.script(Reply.stream(*pieces, end=End.UNFINISHED))
    heard = list[Delta]()
    cut = await rig.send(on_delta=_into(heard))
    assert cut == whole
    assert (
        parts_of(heard)
        == whole.parts
        == (ThinkingPart(text="hm 🤔"), TextPart(text="".join(UNICODE)), *whole.parts[2:])
    )


def test_lines_end_with_lf_or_crlf_and_blank_ones_are_none():
    assert Lines().cut(b'{"a"\r\n\r\n \n{}\n{"b"') == [b'{"a"', b"{}"]


def test_events_hold_their_data_and_nothing_else():
    events = ServerSentEvents()
    said = b": ping\r\n\r\nid: 1\nevent: x\ndata: {\ndata:}\n\n\ndata\n\n:\ndata: 2"
    assert events.cut(said) == [b"{\n}", b""]
    assert events.rest() == [b"2"]


@pytest.mark.parametrize("noise", [b"\r\n", b"\n\n\n", b" \r\n"])
async def test_blank_lines_keep_a_connection_alive_and_say_nothing(rig: Rig, noise: bytes):
    comments = noise if rig.stub.provider == "ollama" else noise.strip(b" ") + b": keep-alive\r\n\r\n"
    rig.stub.script(Reply.stream(comments, "Hel", comments, "lo", comments))
    assert (await rig.send(on_delta=_into([]))).parts == (TextPart(text="Hello"),)


def test_thoughts_in_front_of_a_text_are_told_as_they_come():
    for size in range(1, 9):
        text = "<think>a</thi nk><b</think>\n c<think>d</think>"
        telling = Telling()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        heard = [delta for piece in pieces for delta in telling.text(piece, tagged=True)] + telling.end()
        assert parts_of(heard) == (
            ThinkingPart(text="a</thi nk><b"),
            TextPart(text="\n c<think>d</think>"),
        )
    assert Telling().text("<x", tagged=True) == [TextDelta("<x")]


@pytest.mark.parametrize("text", ["<thin", "<", "<budget:"])
def test_what_only_looks_like_the_start_of_thoughts_is_text_in_the_end(text: str):
    telling = Telling()
    assert telling.text(text, tagged=True) == []
    assert telling.end() == [TextDelta(text)]


# -- streams that go wrong


class Wrong(NamedTuple):
    """A stream that says `Hel` before it goes wrong, or nothing, and the error that it ends with."""

    pieces: tuple[Piece, ...]
    error: type[LLMProviderError]
    says: str
    end: End = End.LAST
    only: str | None = None


BUSY = Failure(status=503, message="server busy, please try again")
WRONG = {
    "connection lost": Wrong((), LLMUnavailable, "broke off", End.BROKEN),
    "last chunk missing": Wrong((), LLMUnavailable, "broke off (the stream ended", End.UNFINISHED),
    "error": Wrong((BUSY,), LLMUnavailable, "server busy"),
    "rate limit": Wrong(
        (Failure(status=429, message="slow down"),), LLMRateLimited, "slow down", only="gemini"
    ),
    "error of another form": Wrong((b'{"error": 5}\n',), LLMUnavailable, "(500)", only="ollama"),
    "truncated line": Wrong(
        (b'{"message": {"content": "lo',), LLMBadResponse, "not JSON", End.UNFINISHED, "ollama"
    ),
    "truncated event": Wrong(
        (b'data: {"candidates": [',), LLMBadResponse, "not JSON", End.UNFINISHED, "gemini"
    ),
    "garbage": Wrong((b"<html>\n",), LLMBadResponse, "not JSON", only="ollama"),
    "no message": Wrong((b'{"done": true}\n',), LLMBadResponse, "no message", only="ollama"),
    "broken call": Wrong((Call(name="", arguments={}),), LLMBadResponse, "without a name"),
}


@in_both_lanes
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("begun", [True, False])
async def test_a_stream_that_goes_wrong_ends_with_its_error(rig: Rig, wrong: Wrong, begun: bool):  # noqa: FBT001
    if wrong.only not in {None, rig.stub.provider}:
        return
    heard = list[Delta]()
    rig.stub.script(Reply.stream(*(("Hel",) if begun else ()), *wrong.pieces, end=wrong.end))
    with pytest.raises(LLMProviderError) as caught:
        await rig.send(on_delta=_into(heard))
    if not begun and wrong.end is not End.LAST and not wrong.pieces:
        return  # an answer without a byte: `Reply.reset` and `Reply.empty` are told elsewhere
    assert (type(caught.value), wrong.says in caught.value.message) == (wrong.error, True), (
        caught.value.message
    )
    assert heard == ([TextDelta("Hel")] if begun else [])
    assert rig.stub.sends == 1


@pytest.mark.parametrize("provider", BOTH)
async def test_the_same_fault_of_a_stream_means_the_same_in_both_lanes(provider: str):
    """Faults of whole answers, met by a call that streams."""
    async with pair_on(provider) as pair:
        for fault in FAULTS:
            if provider in fault.providers and fault.how is How.REPLY:
                outcome = {
                    lane: await ended(
                        rig,
                        fault.replies[provider],
                        asks(max_output_tokens=50),
                        timeout_s=fault.attempt_timeout_s,
                        listened=True,
                    )
                    for lane, rig in pair.rigs.items()
                }
                assert alike(outcome, "usage"), (fault.title, outcome)


@in_both_lanes
async def test_an_answer_that_is_complete_survives_its_connection(rig: Rig):
    """The last chunk has come; that the connection hangs or breaks takes nothing away."""
    for end in (End.UNFINISHED, End.BROKEN):
        with rig.stub.gate() as gate:

            async def on_delta(_: Delta, end: End = end, gate: Gate = gate) -> None:
                if end is End.BROKEN:
                    gate.release()

            rig.stub.script(Reply.stream(_bytes_of(rig, "Hello"), gate, end=end))
            assert (await rig.send(on_delta=on_delta)).parts == (TextPart(text="Hello"),)


@in_both_lanes
async def test_a_silence_before_the_first_delta_is_the_attempts_time(rig: Rig):
    with rig.stub.gate() as gate:
        rig.stub.script(Reply.stream(b"\n", gate, "late"))
        with pytest.raises(LLMTimeout, match="no complete answer in time"):
            await rig.send(on_delta=_into([]), timeout_s=0.2)
        await asyncio.to_thread(rig.stub.wait_for_abandoned, 1)


@pytest.mark.parametrize("overrides", [{"stream_idle_timeout_s": 0.2}])
async def test_a_silence_between_two_chunks_is_a_stall(rig: Rig):
    """What keeps a connection alive does not end it."""
    with rig.stub.gate() as gate:
        rig.stub.script(Reply.stream("Hel", b"\n", gate, "lo"))
        heard = list[Delta]()
        with pytest.raises(LLMTimeout, match="LLM_STREAM_IDLE_TIMEOUT_S") as caught:
            await rig.send(on_delta=_into(heard), stream_s=10)
        await asyncio.to_thread(rig.stub.wait_for_abandoned, 1)
    assert (heard, caught.value.possibly_paid) == ([TextDelta("Hel")], True)


@pytest.mark.parametrize("overrides", [{"stream_idle_timeout_s": 0.2}])
async def test_a_slow_listener_is_no_stall_of_the_provider(rig: Rig):
    gate = rig.stub.gate()

    async def slow(_: Delta) -> None:
        gate.release()
        await asyncio.sleep(0.5)

    rig.stub.script(Reply.stream("Hel", gate, "lo"))
    assert (await rig.send(on_delta=slow)).parts == (TextPart(text="Hello"),)


async def test_the_whole_stream_has_the_time_of_the_call_and_not_of_the_attempt(rig: Rig):
    gate, heard = rig.stub.gate(), asyncio.Event()

    async def on_delta(_: Delta) -> None:
        heard.set()

    rig.stub.script(Reply.stream("Hel", gate, "lo"))
    sending = asyncio.ensure_future(rig.send(on_delta=on_delta, timeout_s=0.3, stream_s=30))
    await asyncio.wait_for(heard.wait(), 10)
    await asyncio.sleep(0.4)
    gate.release()
    assert (await sending).parts == (TextPart(text="Hello"),)


async def test_the_calls_time_ends_a_stream_that_goes_on(rig: Rig):
    with rig.stub.gate() as gate:
        rig.stub.script(Reply.stream("Hel", gate, "lo"))
        with pytest.raises(LLMTimeout, match="no complete answer in time"):
            await asyncio.wait_for(rig.send(on_delta=_into([]), timeout_s=5, stream_s=0.3), 10)


async def test_a_stream_larger_than_the_cap_is_refused(rig: Rig):
    rig.client._max_reply_bytes = 1000
    rig.stub.script(Reply.stream(*["Hello "] * 100))
    heard = list[Delta]()
    with pytest.raises(LLMBadResponse, match="larger than 1,000 bytes"):
        await rig.send(on_delta=_into(heard))
    assert len(heard) < 100


@in_both_lanes
async def test_a_listener_that_goes_closes_the_connection(rig: Rig):
    gate, heard = rig.stub.gate(), asyncio.Event()

    async def on_delta(_: Delta) -> None:
        heard.set()

    rig.stub.script(Reply.stream("Hel", gate, "lo"))
    sending = asyncio.ensure_future(rig.send(on_delta=on_delta))
    await asyncio.wait_for(heard.wait(), 10)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.to_thread(rig.stub.wait_for_abandoned, 1)
    assert len(asyncio.all_tasks()) == 1


@in_both_lanes
async def test_a_stream_leaves_its_connection_for_the_next(rig: Rig):
    """And no task."""
    for _ in range(3):
        await rig.send(on_delta=_into([]))
    assert (len(rig.stub._listener._web.connections), len(asyncio.all_tasks())) == (1, 1)


def _bytes_of(rig: Rig, *pieces: Piece) -> bytes:
    """Return what the stub writes for a stream."""
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    received = SimpleNamespace(body={"model": "llama3.2"}, raw=b"", ordinal=1, path=path)
    return bytes(rig.stub._streamed(Stream(pieces=pieces, usage=(3, 4)), received).body)


def _into(heard: list[Delta]) -> Any:
    async def on_delta(delta: Delta) -> None:
        heard.append(delta)

    return on_delta
