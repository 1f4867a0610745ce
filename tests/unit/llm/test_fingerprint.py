"""The fingerprints: what they see, what they do not, and that they never change by accident."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from app.llm import fingerprint, messages, types
from app.llm.errors import LLMInvalidRequest
from app.llm.fingerprint import FIELDS, Kind, candidate_sha256, flight_slot, prompt_sha256, request_sha256
from app.llm.messages import (
    FilePart,
    Frozen,
    ImagePart,
    Message,
    ResponseFormat,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.types import CacheMode, LLMConstraints, LLMProfile, LLMProvider, LLMRequest, RequestVariant
from tests.support.rounds import times

PIXEL = ImagePart(data=b"\x89PNG", media_type="image/png")
NO_SHAPES_OF_A_REQUEST = {"LLMResponse", "LLMCallContext", "TokenUsage", "Attempt"}

CHANGES = times(5_000, in_short=300)
many = settings(max_examples=times(250, in_short=100), deadline=None)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, min_size=0, max_size=3)
    ),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)
turns = st.one_of(
    st.builds(Message.system, st.text(max_size=20)),
    st.builds(
        Message.user,
        st.text(max_size=20),
        st.builds(
            ImagePart,
            data=st.binary(min_size=1, max_size=8),
            media_type=st.sampled_from(["image/png", "image/gif"]),
        )
        | st.builds(
            FilePart,
            data=st.binary(min_size=1, max_size=8),
            media_type=st.sampled_from(["application/pdf", "audio/wav"]),
        ),
    ),
    st.builds(
        lambda text, arguments: Message.assistant(
            ThinkingPart(text=text), ToolCallPart(id="1", name="look", arguments=arguments)
        ),
        st.text(max_size=5),
        json_objects,
    ),
    st.builds(
        lambda text: Message.tool(ToolResultPart(id="1", name="look", content=text)), st.text(max_size=9)
    ),
)
conversations = st.lists(turns, min_size=1, max_size=4).map(tuple)
tool_lists = st.builds(
    lambda parameters, text: (ToolSpec(name="look", description=text, parameters=parameters),),
    json_objects,
    st.text(max_size=5),
)
formats = st.one_of(
    st.none(),
    st.just(ResponseFormat(type="json_object")),
    st.builds(ResponseFormat.of_schema, json_objects, strict=st.none() | st.booleans()),
)
CONTENT_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "messages": conversations,
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0.01, 1),
    "max_output_tokens": st.none() | st.integers(1, 9999),
    "stop": st.none() | st.lists(st.text(max_size=4), max_size=3).map(tuple),
    "seed": st.none() | st.integers(-(2**31), 2**31 - 1),
    "thinking": st.sampled_from([None, True, False, "low", "high"]),
    "tools": tool_lists,
    "tool_choice": st.sampled_from([None, "auto", "none", "required", ToolChoiceTool(name="look")]),
    "response_format": formats,
    "variants": st.dictionaries(
        st.sampled_from(LLMProvider), st.builds(RequestVariant, messages=conversations), max_size=2
    ),
}
OTHER_VALUES: dict[str, Any] = {
    "idempotency_key": "k",
    "cache": CacheMode.BYPASS,
    "timeout_s": 3.0,
    "force_new_execution": True,
    "metadata": {"workspace_id": "a"},
}
INTENTS: dict[str, Any] = {
    "profile": LLMProfile.FAST,
    "model": "ollama:llama3.2",
    "constraints": LLMConstraints(local_only=True),
    "asked_sha256": "a" * 64,
}
requests = st.builds(LLMRequest, **CONTENT_VALUES)


def ask(*turns: Message, **fields: Any) -> LLMRequest:
    return LLMRequest(messages=turns or (Message.user("hi"),), **fields)


def test_every_field_of_every_shape_is_classified():
    shapes = {
        shape
        for module in (messages, types)
        for shape in vars(module).values()
        if isinstance(shape, type) and issubclass(shape, Frozen) and shape is not Frozen
    }
    assert set(FIELDS) == {shape for shape in shapes if shape.__name__ not in NO_SHAPES_OF_A_REQUEST}
    assert {shape: set(kinds) for shape, kinds in FIELDS.items()} == {
        shape: set(shape.model_fields) for shape in FIELDS
    }


def test_the_properties_below_cover_every_field_of_a_request():
    kinds = FIELDS[LLMRequest]
    assert {name for name in kinds if kinds[name] is Kind.CONTENT} == set(CONTENT_VALUES)
    assert {name for name in kinds if kinds[name] is Kind.INTENT} == set(INTENTS)
    assert {name for name in kinds if kinds[name] is Kind.EXCLUDED} == set(OTHER_VALUES)


@pytest.mark.tried(CHANGES)
@settings(max_examples=CHANGES, deadline=None)
@given(requests, st.data())
def test_a_change_of_any_content_field_changes_both_hashes(request: LLMRequest, data: st.DataObject):
    """I15."""
    name = data.draw(st.sampled_from(sorted(CONTENT_VALUES)))
    value = data.draw(CONTENT_VALUES[name])
    assume(value != getattr(request, name))
    changed = request.model_copy(update={name: value})
    assert prompt_sha256(changed) != prompt_sha256(request)
    assert request_sha256(changed) != request_sha256(request)


@many
@given(requests, st.sampled_from(sorted(OTHER_VALUES)))
def test_what_is_excluded_changes_neither_hash(request: LLMRequest, name: str):
    changed = request.model_copy(update={name: OTHER_VALUES[name]})
    assert prompt_sha256(changed) == prompt_sha256(request)
    assert request_sha256(changed) == request_sha256(request)


@many
@given(requests, st.sampled_from(sorted(INTENTS)))
def test_intent_changes_the_request_hash_only(request: LLMRequest, name: str):
    changed = request.model_copy(update={name: INTENTS[name]})
    assert prompt_sha256(changed) == prompt_sha256(request)
    assert request_sha256(changed) != request_sha256(request)


def test_what_a_caller_says_was_asked_decides_alone_whether_requests_under_a_key_are_the_same():
    said = ask(Message.user("hi"), asked_sha256="a" * 64)
    elsewhere = ask(Message.user("Hi!"), asked_sha256="a" * 64, model="ollama:other")
    assert request_sha256(said) == request_sha256(elsewhere)
    assert prompt_sha256(said) != prompt_sha256(elsewhere)


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@many
@given(json_objects)
def test_the_order_of_object_keys_does_not_count(parameters: dict[str, Any]):
    one, other = (
        ask(
            Message.assistant(ToolCallPart(id="1", name="look", arguments=shape)),
            tools=(ToolSpec(name="look", parameters=shape),),
            response_format=ResponseFormat.of_schema(shape),
        )
        for shape in (parameters, backwards(parameters))
    )
    assert request_sha256(one) == request_sha256(other)


def called(number: Any) -> LLMRequest:
    return ask(Message.assistant(ToolCallPart(id="1", name="look", arguments={"n": [number]})))


@many
@given(st.integers(-(2**200), 2**200).map(float))
def test_an_integral_float_equals_its_integer(number: float):
    assert prompt_sha256(called(number)) == prompt_sha256(called(int(number)))


@pytest.mark.parametrize("others", [(True, 1), ("1", 1), (None, 0), (0.1, 0), (2**64, 2**64 + 1)])
def test_values_that_json_tells_apart_differ(others: tuple[Any, Any]):
    assert prompt_sha256(called(others[0])) != prompt_sha256(called(others[1]))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_is_refused(number: float):
    with pytest.raises(LLMInvalidRequest, match="JSON has no word"):
        prompt_sha256(called(number))


def test_none_differs_from_the_value_that_would_apply():
    assert prompt_sha256(ask()) != prompt_sha256(ask(response_format=ResponseFormat()))
    assert prompt_sha256(ask()) != prompt_sha256(ask(stop=()))


def dialogue(first: str, second: str, *, signature: str | None = None) -> LLMRequest:
    calls = (ToolCallPart(id=name, name="look", signature=signature) for name in (first, second))
    results = (ToolResultPart(id=name, name="look", content="ok") for name in (second, first))
    return ask(
        Message.assistant(ThinkingPart(text="hm", signature=signature), *calls), Message.tool(*results)
    )


def test_tool_call_ids_count_only_as_links_between_call_and_result():
    assert prompt_sha256(dialogue("a", "b")) == prompt_sha256(dialogue("call_9", "call_1"))
    straight = ask(
        *dialogue("a", "b").messages[:1],
        Message.tool(*reversed(dialogue("a", "b").messages[1].content)),  # type: ignore[arg-type]
    )
    assert prompt_sha256(straight) != prompt_sha256(dialogue("a", "b"))


def test_ids_of_a_variant_are_numbered_on_their_own():
    def varied(own: str, shared: str) -> LLMRequest:
        turns = dialogue(shared, "x").messages
        return ask(
            *dialogue(own, "x").messages, variants={LLMProvider.GEMINI: RequestVariant(messages=turns)}
        )

    assert prompt_sha256(varied("a", "a")) == prompt_sha256(varied("a", "b"))


def test_signatures_of_a_provider_do_not_count():
    assert prompt_sha256(dialogue("a", "b", signature="opaque")) == prompt_sha256(dialogue("a", "b"))


def test_a_file_counts_by_its_bytes_and_its_type():
    def read(data: bytes, media_type: Any) -> str:
        return prompt_sha256(ask(Message.user(FilePart(data=data, media_type=media_type))))

    assert read(b"a", "audio/wav") == read(b"a", "audio/wav")
    assert len({read(b"a", "audio/wav"), read(b"b", "audio/wav"), read(b"a", "audio/mp3")}) == 3


def test_an_image_counts_by_its_bytes_and_its_type():
    base = prompt_sha256(ask(Message.user(PIXEL)))
    assert base == prompt_sha256(ask(Message.user(ImagePart.from_data_url("data:image/png;base64,iVBORw=="))))
    assert base != prompt_sha256(ask(Message.user(ImagePart(data=b"\x89PNG", media_type="image/gif"))))
    assert base != prompt_sha256(ask(Message.user(ImagePart(data=b"\x89PNH", media_type="image/png"))))


def test_the_order_of_messages_and_of_tools_counts():
    turns = (Message.user("a"), Message.user("b"))
    assert prompt_sha256(ask(*turns)) != prompt_sha256(ask(*reversed(turns)))
    tools = (ToolSpec(name="a"), ToolSpec(name="b"))
    assert prompt_sha256(ask(tools=tools)) != prompt_sha256(ask(tools=tools[::-1]))


def test_the_same_variant_for_another_provider_is_another_prompt():
    variant = RequestVariant(messages=(Message.user("hi"),))
    prompts = {prompt_sha256(ask(variants={provider: variant})) for provider in LLMProvider}
    assert len(prompts) == len(LLMProvider)


def test_allowed_providers_are_a_set():
    """A caller that builds them from a set would otherwise get a key conflict after a restart."""
    pair = (LLMProvider.OLLAMA, LLMProvider.GEMINI)
    hashes = {
        request_sha256(ask(constraints=LLMConstraints(providers=providers)))
        for providers in (pair, pair[::-1], (*pair, *pair))
    }
    assert len(hashes) == 1
    assert request_sha256(ask(constraints=LLMConstraints(providers=()))) != request_sha256(ask())


def test_a_prompt_hash_that_is_known_is_not_computed_again(monkeypatch: pytest.MonkeyPatch):
    request = ask(profile=LLMProfile.FAST)
    prompt, expected = prompt_sha256(request), request_sha256(request)
    monkeypatch.setattr(fingerprint, "prompt_sha256", None)
    assert request_sha256(request, prompt=prompt) == expected


class Careful(LLMRequest):
    """A request as an application may define it, with defaults of its own."""

    temperature: float | None = 0.5
    constraints: LLMConstraints = LLMConstraints(local_only=True)


@pytest.mark.parametrize("name", ["temperature", "constraints", "variants"])
def test_what_a_request_holds_counts_whoever_put_it_there(name: str):
    """I15: a default of a subclass, and what was added to a request in place, is sent, and so it is hashed."""
    asked: dict[str, LLMRequest] = {
        "temperature": Careful(messages=(Message.user("a"),), constraints=LLMConstraints()),
        "constraints": Careful(messages=(Message.user("a"),), temperature=None),
        "variants": LLMRequest(messages=(Message.user("a"),)),
    }
    asked["variants"].variants[LLMProvider.GEMINI] = RequestVariant(messages=(Message.user("b"),))  # type: ignore[index]  # a mapping to those who heed it
    said = LLMRequest(messages=(Message.user("a"),), **{name: getattr(asked[name], name)})
    plain = LLMRequest(messages=(Message.user("a"),))
    assert request_sha256(asked[name]) == request_sha256(said) != request_sha256(plain)
    assert (prompt_sha256(asked[name]) != prompt_sha256(plain)) is (name != "constraints")


def test_lone_surrogates_and_wide_integers_have_a_hash():
    texts = ("\ud800", "\ud801", "\\ud800", "?")
    requests = [ask().model_copy(update={"messages": (Message.user(text),)}) for text in texts]
    assert len(set(map(prompt_sha256, requests))) == len(texts)
    assert prompt_sha256(called(2**80)) == prompt_sha256(called(float(2**80)))


def read_field_by_field(value: Any, call_ids: dict[str, int]) -> Any:
    """Return the canonical form as FIELDS defines it: no shape is known by its class, nothing is taken as it is."""
    if isinstance(value, Frozen):
        kinds = fingerprint.FIELDS[type(value)]
        return {
            name: stand_in(kind, getattr(value, name), call_ids)
            for name, kind in kinds.items()
            if kind not in {Kind.INTENT, Kind.EXCLUDED}
        }
    if isinstance(value, dict):
        return {str(key): read_field_by_field(item, {}) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [read_field_by_field(item, call_ids) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def stand_in(kind: Kind, value: Any, call_ids: dict[str, int]) -> Any:
    if kind is Kind.CALL_ID:
        return call_ids.setdefault(value, len(call_ids))
    return hashlib.sha256(value).hexdigest() if kind is Kind.DIGEST else read_field_by_field(value, call_ids)


@many
@given(request=requests)
@example(called(1e16))
@example(called([-0.0, 1e-7, 1e22, 1.5, 2**53 + 1, 2**63, True, "é\x00\u2028"]))
@example(ask(tool_choice=ToolChoiceTool(name="look"), tools=(ToolSpec(name="look", strict=True),)))
def test_short_cuts_through_the_shapes_change_no_hash(request: LLMRequest):
    """I15: rows that were stored before there were short cuts are still found."""
    body = ["prompt", fingerprint.FINGERPRINT_VERSION, read_field_by_field(request, {})]
    assert prompt_sha256(request) == hashlib.sha256(fingerprint.json_bytes(body)).hexdigest()


def identity(
    base: str = "http://localhost:11434", *, model: str = "m", provider: str = "ollama", **options: Any
) -> str:
    return candidate_sha256(provider=LLMProvider(provider), model=model, api_base=base, options=options)


def test_the_spelling_of_a_base_does_not_change_the_candidate():
    assert identity("http://LocalHost:11434/") == identity()
    assert identity("https://a.example/v1beta") == identity("HTTPS://a.example:443/v1beta/")
    assert identity(num_ctx=8192, think=None) == identity(think=None, num_ctx=8192.0)


@pytest.mark.parametrize(
    "other",
    [
        {"base": "https://localhost:11434"},
        {"base": "http://localhost:11435"},
        {"base": "http://127.0.0.1:11434"},
        {"base": "http://localhost:11434/ollama"},
        {"model": "M"},
        {"provider": "gemini"},
        {"num_ctx": 8192},
    ],
)
def test_whatever_can_change_an_answer_changes_the_candidate(other: dict[str, Any]):
    assert identity(**other) != identity()


def test_a_flight_slot_belongs_to_workspace_prompt_and_candidate():
    slots = {
        flight_slot(*parts) for parts in (("w", "p", "c"), ("v", "p", "c"), ("w", "q", "c"), ("w", "p", "d"))
    }
    assert len(slots) == 4


GOLDEN = ask(
    Message.system("Be brief."),
    Message.user("What is this?", PIXEL),
    *dialogue("a", "b").messages,
    profile=LLMProfile.FAST,
    temperature=0.7,
    stop=("END",),
    tools=(ToolSpec(name="look", parameters={"type": "object", "properties": {"größe": {"minimum": 1.0}}}),),
    variants={LLMProvider.GEMINI: RequestVariant(messages=(Message.user("?"),))},
)


def test_the_canonical_form_is_sorted_json_without_what_is_excluded():
    turns = (Message.user("é"), Message.assistant(ToolCallPart(id="x", name="look", signature="s")))
    form = (
        '["prompt",1,{"max_output_tokens":null,"messages":['
        '{"content":[{"text":"é","type":"text"}],"role":"user"},'
        '{"content":[{"arguments":{},"id":0,"name":"look","type":"tool_call"}],"role":"assistant"}],'
        '"response_format":null,"seed":null,"stop":null,"temperature":1,"thinking":null,"tool_choice":null,'
        '"tools":[],"top_p":null,"variants":{}}]'
    )
    request = ask(*turns, temperature=1.0, profile=LLMProfile.FAST, timeout_s=3)
    assert prompt_sha256(request) == hashlib.sha256(form.encode()).hexdigest()


def test_the_canonical_form_has_not_changed():
    """Stored fingerprints outlive releases: whoever changes these raises FINGERPRINT_VERSION."""
    assert fingerprint.FINGERPRINT_VERSION == 1
    assert [
        prompt_sha256(GOLDEN),
        request_sha256(GOLDEN),
        identity(num_ctx=8192),
        flight_slot("w", "p", "c"),
        prompt_sha256(called(2**80)),
    ] == [
        "ef58192b6ab6459a91500c198c9c3a0dd3349994a91ab7a611a2630bfc6b12af",
        "d48d736fae7b5d39dbdb941a68b8835c3f1ad9fd90afb7796a905d2ad7182e1e",
        "ef8aeb5139d8921d024b4bcd961a8f530bff84831ba40d4ea47e3253d28cd094",
        "4f034b945595564b79c3780c736045f2dc52246d152f83fb80a913388499f4a4",
        "67ef4578b5d04bff33ebd523821c6c79420d910e8b86f4c5df5b97a585bd70dc",
    ]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_computes_the_same(hash_seed: str):
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    there = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest_of_many()


def digest_of_many() -> str:
    """Return one hash over requests whose objects are filled in the order of a set, which the hash seed decides."""
    words = [f"word{number}" for number in range(8)]
    seen = hashlib.sha256()
    for number in range(200):
        shape = {
            word: {"n": number, "of": dict.fromkeys(set(words[: number % 8]), 1.0)} for word in set(words)
        }
        request = ask(
            tools=(ToolSpec(name="look", parameters=shape),),
            variants={
                provider: RequestVariant(messages=(Message.user("?"),)) for provider in set(LLMProvider)
            },
            constraints=LLMConstraints(providers=tuple(set(LLMProvider))),
        )
        seen.update(request_sha256(request).encode())
    return seen.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(digest_of_many())
