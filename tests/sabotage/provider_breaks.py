"""Breaks of what the further providers need: pieces put together, keys and signatures kept apart, prompts kept at home."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
STREAM, MENDING, POSTED, ANTHROPIC, LANES = (
    f"{_HERE}wire/{name}.py"
    for name in ("acompletion_stream", "mending", "acompletion", "anthropic", "lanes")
)
RENDERED, OPENAI = (f"{_HERE}providers/{name}.py" for name in ("openai_messages", "openai"))
SAID, LEFT = (f"tests/wire/test_further_{name}.py::test_" for name in ("replies", "requests"))
GUARDED, OWN = "tests/security/test_local_only.py::test_", "tests/house/test_own_provider.py::test_"

PROVIDER_BREAKS = (
    Break(
        "pieces-of-a-call-are-calls",
        "providers",
        STREAM,
        'return piece.index == self._index and piece.id in {None, "", self._id}',
        "return False",
        (SAID + "a_stream_tells_what_it_comes_to[openai]",),
    ),
    Break(
        "calls-of-one-index-are-one-call",
        "providers",
        STREAM,
        'return piece.index == self._index and piece.id in {None, "", self._id}',
        "return bool(piece.index == self._index)",
        (SAID + "calls_that_share_an_index_are_told_apart_by_their_ids",),
    ),
    Break(
        "a-text-ends-the-stream",
        "providers",
        MENDING,
        r'json.dumps(payload).replace("[DONE]", "\\u005bDONE]").encode()',
        "json.dumps(payload).encode()",
        (SAID + "a_stream_tells_what_it_comes_to[openai]",),
    ),
    Break(
        "a-stream-is-expected-that-nobody-asked-for",
        "providers",
        POSTED,
        'json.loads(body).get("stream") is True',
        "bool(body)",
        (SAID + "groq_streams_no_answer_that_is_held_to_a_schema",),
    ),
    Break(
        "tokens-of-the-cache-are-not-counted",
        "providers",
        ANTHROPIC,
        "fresh + (read or 0) + (written or 0)",
        "fresh",
        (LEFT + "tokens_that_were_read_from_anthropics_cache_are_among_those_of_the_prompt",),
    ),
    Break(
        "a-signature-goes-to-everybody",
        "providers",
        RENDERED,
        "if sealed_by and _sealer(part) is sealed_by",
        "if part.signature",
        (LEFT + "a_signature_goes_back_to_its_maker_only",),
    ),
    Break(
        "a-provider-without-a-key-is-a-candidate",
        "providers",
        OPENAI,
        "return settings.openai_api_key is not None and bool(settings.openai_api_key.get_secret_value())",
        "return True",
        ("tests/unit/llm/test_catalog.py::test_a_provider_that_wants_a_key_is_usable_only_with_it",),
    ),
    Break(
        "prompts-stay-local-but-for-the-proxy",
        "providers",
        LANES,
        "trust_env=not settings.local_only and _has_proxy(base)",
        "trust_env=_has_proxy(base)",
        (GUARDED + "no_socket_leaves_the_named_hosts_and_the_route_says_why[gpu.house]",),
    ),
    Break(
        "the-name-of-a-provider-may-be-taken-twice",
        "providers",
        _HERE + "fields/own.py",
        "if point.name in found or point.name in _TAKEN",
        "if point.name in found",
        (OWN + "a_package_that_registers_nonsense_is_refused_by_its_name",),
    ),
)
