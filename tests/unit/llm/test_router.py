"""Routing: who is asked, in which order, and the reason on everybody else."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from app.llm import router
from app.llm.candidates import Needs, Route, RouteDecision, RouteReason
from app.llm.errors import LLMInvalidRequest, LLMNoCandidate
from app.llm.fingerprint import json_bytes
from app.llm.messages import (
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.needs import DEFAULT_OUTPUT_TOKENS, MAX_DOCUMENT_TOKENS, TOKENS_PER_IMAGE, needs_of
from app.llm.providers import Catalog
from app.llm.router import LLMRouter, no_candidate, tightened
from app.llm.settings import LLMSettings, RouterPolicy
from app.llm.types import LLMConstraints, LLMProfile, LLMProvider, LLMRequest, RequestVariant

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI
LLAMA, FLASH = "ollama:llama3.2", "gemini:gemini-2.5-flash"
IMAGE = ImagePart(data=b"x", media_type="image/png")
TOOL = ToolSpec(name="look", parameters={"type": "object", "properties": {"where": {"type": "string"}}})


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LLM_", "GEMINI_"))]:
        monkeypatch.delenv(name)


def file(media_type: Any, size: int = 1) -> FilePart:
    return FilePart(data=b"x" * size, media_type=media_type)


class House:
    """A router and its catalog, both of the same settings."""

    def __init__(self, **values: Any) -> None:
        settings = LLMSettings(_env_file=None, **{"gemini_api_key": "key", **values})
        self.router = LLMRouter.from_settings(settings)
        self.caps = Catalog.from_settings(settings)

    def without(self, *skills: str, of: str = LLAMA) -> "House":
        lacking = dict.fromkeys((f"supports_{skill}" for skill in skills), False)
        self.caps = self.caps.with_caps(of, self.caps.pinned(of).caps.model_copy(update=lacking))
        return self

    def route(
        self, request: LLMRequest, constraints: LLMConstraints | None = None, **health: bool
    ) -> RouteDecision:
        names = {LLAMA if name == "llama" else FLASH: well for name, well in health.items()}
        return self.router.route(request, constraints, caps=self.caps, health=names)

    def reasons(
        self, request: LLMRequest, constraints: LLMConstraints | None = None, **health: bool
    ) -> dict[str, str]:
        route = self.route(request, constraints, **health)
        return {entry.candidate.name: entry.reason.value for entry in route.entries}


def ask(*parts: Any, **fields: Any) -> LLMRequest:
    return LLMRequest(messages=(Message.user(*(parts or ("hi",))),), **fields)


def kept(route: RouteDecision) -> list[str]:
    return [candidate.name for candidate in route.kept]


# -- order


def test_the_profile_of_the_request_or_else_the_default_one_is_the_list():
    house = House(profile_fast="gemini", profile_advanced="ollama,gemini", default_profile="advanced")
    assert kept(house.route(ask(profile="fast"))) == [FLASH]
    assert kept(house.route(ask())) == [LLAMA, FLASH]
    assert house.route(ask()).profile is LLMProfile.ADVANCED


@pytest.mark.parametrize(
    ("policy", "order", "reason"),
    [
        ("as_listed", ["gemini:a", "ollama:b", "gemini:c", "ollama:d"], "listed"),
        ("local_first", ["ollama:b", "ollama:d", "gemini:a", "gemini:c"], "local_first"),
        ("cloud_first", ["gemini:a", "gemini:c", "ollama:b", "ollama:d"], "cloud_first"),
    ],
)
def test_the_policy_is_a_stable_sort_of_the_list(policy: str, order: list[str], reason: str):
    house = House(profile_balanced="gemini:a,ollama:b,gemini:c,ollama:d", router_policy=policy)
    route = house.route(ask())
    assert kept(route) == order
    assert {entry.reason.value for entry in route.entries if entry.kept} == {reason}


def test_candidates_of_other_profiles_are_named_at_the_end():
    house = House(profile_balanced="ollama", profile_fast="gemini:x,ollama:y", profile_advanced="ollama")
    assert list(house.reasons(ask()).items()) == [
        (LLAMA, "listed"),
        ("gemini:x", "not_in_profile"),
        ("ollama:y", "not_in_profile"),
    ]


def test_kept_candidates_come_first_and_excluded_ones_keep_their_order():
    house = House(profile_balanced="ollama:a,gemini,ollama:b").without("vision", of=FLASH)
    house.without("tools", of="ollama:a").without("tools", of="ollama:b")
    assert list(house.reasons(ask(tools=(TOOL,))))[:3] == [FLASH, "ollama:a", "ollama:b"]


@pytest.mark.parametrize("policy", ["as_listed", "local_first", "cloud_first"])
@pytest.mark.parametrize("listed", ["gemini:a,ollama:b", "ollama:z,gemini:a,ollama:b", "ollama:z"])
def test_the_fallback_is_tried_last_whatever_the_list_and_the_policy(policy: str, listed: str):
    house = House(profile_balanced=listed, router_policy=policy, fallback="ollama:z")
    route = house.route(ask())
    assert kept(route)[-1] == "ollama:z"
    assert set(kept(route)) == {*listed.split(","), "ollama:z"}
    assert [entry.reason.value for entry in route.entries if entry.kept][-1] == "fallback"


def test_the_fallback_stays_behind_those_that_are_down():
    house = House(profile_balanced="ollama", fallback="gemini")
    assert kept(house.route(ask(), llama=False)) == [LLAMA, FLASH]


def test_limits_rule_the_fallback_too():
    house = House(profile_balanced="ollama", fallback="gemini", fallback_to_cloud=False)
    assert house.reasons(ask()) == {LLAMA: "listed", FLASH: "no_cloud_fallback"}
    house = House(profile_balanced="ollama", fallback="gemini")
    assert (
        house.reasons(ask(constraints=LLMConstraints(allow_fallback=False)))[FLASH] == "fallback_not_allowed"
    )
    assert house.reasons(ask(model=LLAMA)) == {LLAMA: "pinned", FLASH: "not_pinned"}


def test_a_provider_that_is_off_is_excluded_even_if_it_is_pinned():
    house = House(providers_off="ollama")
    assert house.reasons(ask()) == {FLASH: "listed", LLAMA: "provider_off"}
    with pytest.raises(LLMNoCandidate, match="switched off"):
        house.router.select_provider(ask(model=LLAMA), caps=house.caps)


def test_a_stage_has_its_profile_unless_the_request_names_one():
    house = House(
        profile_fast="gemini", profile_advanced="ollama", stage_profiles="routing=fast,calling=advanced"
    )

    def profile(stage: str | None, **fields: Any) -> str:
        return house.router.route(ask(**fields), caps=house.caps, stage=stage).profile

    assert (profile("routing"), profile("calling")) == ("fast", "advanced")
    assert (profile("other"), profile(None)) == ("balanced", "balanced")
    assert profile("routing", profile="advanced") == "advanced"


# -- a pinned model


def test_a_pinned_model_leaves_one_candidate():
    assert House().reasons(ask(model=FLASH)) == {FLASH: "pinned", LLAMA: "not_pinned"}


def test_a_pinned_model_need_not_be_listed():
    house = House(profile_fast="gemini:x")
    assert house.reasons(ask(model="ollama:tiny:1b")) == {
        "ollama:tiny:1b": "pinned",
        LLAMA: "not_pinned",
        FLASH: "not_pinned",
        "gemini:x": "not_in_profile",
    }


def test_a_pinned_model_heads_the_list_where_a_fallback_is_allowed():
    request = ask(model=FLASH, constraints=LLMConstraints(allow_fallback=True))
    route = House().route(request)
    assert kept(route) == [FLASH, LLAMA]
    assert [entry.reason for entry in route.entries] == [RouteReason.PINNED, RouteReason.LISTED]


def test_a_pinned_model_is_checked_like_any_other():
    assert House().without("tools").reasons(ask(model=LLAMA, tools=(TOOL,)))[LLAMA] == "no_tools"


def test_a_pinned_model_of_an_unknown_provider_is_refused():
    with pytest.raises(LLMInvalidRequest, match="ollama, gemini"):
        House().route(ask(model="mistral:gpt-5"))


# -- exclusion

SCHEMA = ResponseFormat.of_schema({"type": "object"})


@pytest.mark.parametrize(
    ("skill", "request_", "reason"),
    [
        ("tools", ask(tools=(TOOL,)), "no_tools"),
        ("forced_tool_choice", ask(tools=(TOOL,), tool_choice="required"), "no_forced_tool_choice"),
        (
            "forced_tool_choice",
            ask(tools=(TOOL,), tool_choice=ToolChoiceTool(name="look")),
            "no_forced_tool_choice",
        ),
        ("json", ask(response_format=ResponseFormat(type="json_object")), "no_json"),
        ("json_schema", ask(response_format=SCHEMA), "no_json_schema"),
        ("json_schema", ask(response_format=SCHEMA, tools=(TOOL,)), "no_json_schema"),
        ("vision", ask("see", IMAGE), "no_vision"),
        ("documents", ask("read", file("application/pdf")), "no_documents"),
        ("audio", ask("hear", file("audio/mp3")), "no_audio"),
        ("video", ask("watch", file("video/mp4")), "no_video"),
    ],
)
def test_a_candidate_without_a_needed_skill_is_excluded(skill: str, request_: LLMRequest, reason: str):
    assert House().without(skill, of=FLASH).reasons(request_)[FLASH] == reason
    assert House().reasons(request_)[FLASH] == "listed"


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_an_unforced_tool_choice_needs_no_forcing(choice: Any):
    request = ask(tools=(TOOL,), tool_choice=choice)
    assert House().without("forced_tool_choice").reasons(request)[LLAMA] == "listed"


def test_a_schema_together_with_tools_is_fine():
    assert House().reasons(ask(response_format=SCHEMA, tools=(TOOL,)))[LLAMA] == "listed"


def test_a_provider_without_credentials_is_excluded():
    assert House(gemini_api_key=None).reasons(ask()) == {LLAMA: "listed", FLASH: "no_credentials"}


def test_only_allowed_providers_are_asked():
    request = ask(constraints=LLMConstraints(providers=(GEMINI,)))
    assert House().reasons(request) == {FLASH: "listed", LLAMA: "provider_not_allowed"}


@pytest.mark.parametrize(
    ("setting", "asked", "reason"),
    [
        (False, None, "listed"),
        (False, False, "listed"),
        (False, True, "local_only"),
        (True, None, "local_only"),
        (True, False, "local_only"),
    ],
)
def test_a_request_can_tighten_local_only_but_never_lift_it(setting: Any, asked: Any, reason: str):
    request = ask(constraints=LLMConstraints(local_only=asked))
    assert House(local_only=setting).reasons(request) == {LLAMA: "listed", FLASH: reason}


def test_local_means_the_named_hosts_and_no_cloud_model():
    request = ask(constraints=LLMConstraints(local_only=True))
    house = House(
        ollama_api_base="http://10.0.0.7:11434",
        local_hosts="10.0.0.7",
        profile_balanced="ollama:big-cloud,ollama",
    )
    assert house.reasons(request)["ollama:big-cloud"] == "local_only"
    assert house.reasons(request)[LLAMA] == "listed"
    assert House(ollama_api_base="http://10.0.0.7:11434").reasons(request)[LLAMA] == "local_only"


def test_a_prompt_and_its_answer_must_fit_the_window():
    house = House(ollama_num_ctx=2048)
    fits = ask("x" * 3 * 1000, max_output_tokens=2048 - 1000 - 4)
    assert house.reasons(fits)[LLAMA] == "listed"
    too_long = fits.model_copy(update={"max_output_tokens": 2048 - 1000 - 3})
    entry = house.route(too_long).entries[-1]
    assert entry.reason is RouteReason.CONTEXT_TOO_SMALL
    assert entry.detail == {"estimate": 1004, "reserved": 1045, "limit": 2048}


def test_the_first_reason_in_the_fixed_order_is_given():
    wrong: dict[str, Any] = {"tools": (TOOL,), "tool_choice": "required", "response_format": SCHEMA}
    house = House(gemini_api_key=None, local_only=True).without("tools", "forced_tool_choice", of=FLASH)
    request = ask("x" * 9_000_000, IMAGE, constraints=LLMConstraints(providers=(OLLAMA,)), **wrong)
    assert house.reasons(request)[FLASH] == "provider_not_allowed"
    request = ask("x" * 9_000_000, IMAGE, **wrong)
    assert house.reasons(request)[FLASH] == "no_credentials"
    assert House(local_only=True).without("tools", of=FLASH).reasons(request)[FLASH] == "local_only"
    assert House().without("tools", "vision", of=FLASH).reasons(request)[FLASH] == "no_tools"
    assert House().without("json_schema", "vision", of=FLASH).reasons(request)[FLASH] == "no_json_schema"
    assert House().without("vision", of=FLASH).reasons(request)[FLASH] == "no_vision"
    assert House().reasons(request)[FLASH] == "context_too_small"


def test_needs_are_those_of_the_variant_of_each_provider():
    plain = RequestVariant(messages=(Message.user("hi"),))
    request = ask("see", IMAGE, tools=(TOOL,), variants={OLLAMA: plain})
    route = House().without("tools", "vision").route(request)
    assert kept(route) == [LLAMA, FLASH]
    assert [route.needs_of[entry.candidate.provider].tools for entry in route.entries] == [False, True]
    assert route.needs is route.needs_of[route.entries[0].candidate.provider]


# -- fallback


def test_a_forbidden_fallback_leaves_the_first_fit_candidate():
    request = ask(tools=(TOOL,), constraints=LLMConstraints(allow_fallback=False))
    assert House().reasons(request) == {LLAMA: "listed", FLASH: "fallback_not_allowed"}
    assert House().without("tools").reasons(request) == {FLASH: "listed", LLAMA: "no_tools"}


def test_without_cloud_fallback_a_local_candidate_is_the_last_resort():
    house = House(fallback_to_cloud=False, profile_balanced="gemini:a,ollama:b,gemini:c,ollama:d")
    assert house.reasons(ask()) == {
        "gemini:a": "listed",
        "ollama:b": "listed",
        "ollama:d": "listed",
        "gemini:c": "no_cloud_fallback",
        LLAMA: "not_in_profile",
        FLASH: "not_in_profile",
    }


def test_a_cloud_candidate_is_no_fallback_when_no_local_one_was_fit():
    house = House(fallback_to_cloud=False).without("tools")
    assert kept(house.route(ask(tools=(TOOL,)))) == [FLASH]


# -- health


def test_a_candidate_that_is_down_is_asked_last():
    route = House().route(ask(), llama=False)
    assert kept(route) == [FLASH, LLAMA]
    assert [entry.detail for entry in route.entries] == [{}, {"unhealthy": True}]
    assert kept(House().route(ask(), llama=False, flash=False)) == [LLAMA, FLASH]
    assert kept(House().route(ask(), llama=True)) == [LLAMA, FLASH]


def test_health_never_brings_back_an_excluded_candidate():
    request = ask(constraints=LLMConstraints(allow_fallback=False))
    assert kept(House().route(request, llama=False)) == [LLAMA]
    assert kept(House(fallback_to_cloud=False).route(ask(), llama=False)) == [LLAMA]


def test_health_never_puts_a_cloud_candidate_behind_a_local_one_that_forbids_it():
    house = House(fallback_to_cloud=False, profile_balanced="gemini,ollama")
    assert kept(house.route(ask(), flash=False)) == [FLASH, LLAMA]


# -- constraints beside the request


def test_constraints_can_only_be_tightened():
    both = (OLLAMA, GEMINI)
    one = LLMConstraints(local_only=False, allow_fallback=False, providers=both)
    other = LLMConstraints(local_only=True, allow_fallback=True, providers=(GEMINI,))
    tight = LLMConstraints(local_only=True, allow_fallback=False, providers=(GEMINI,))
    assert tightened(one, other) == tightened(other, one) == tight
    assert tightened(one, None) == tightened(one, LLMConstraints()) == one
    assert tightened(LLMConstraints(), other) == other


def test_the_argument_is_merged_with_the_constraints_of_the_request():
    request = ask(constraints=LLMConstraints(providers=(GEMINI,)))
    route = House().route(request, LLMConstraints(providers=(OLLAMA,)))
    assert {entry.reason for entry in route.entries} == {RouteReason.PROVIDER_NOT_ALLOWED}


# -- nobody left


def test_the_provider_of_the_first_kept_candidate_is_selected():
    house = House(router_policy=RouterPolicy.CLOUD_FIRST)
    assert house.router.select_provider(ask(), caps=house.caps) is GEMINI


def test_no_candidate_says_of_each_why_and_what_to_do():
    house = House(gemini_api_key=None).without("tools")
    with pytest.raises(LLMNoCandidate) as caught:
        house.router.select_provider(ask(tools=(TOOL,)), caps=house.caps)
    assert caught.value.message == (
        "no candidate of profile balanced can serve this request: "
        "ollama:llama3.2: cannot call tools (list a model that can); "
        "gemini:gemini-2.5-flash: no credentials (set LLM_GEMINI_API_KEY)"
    )
    assert caught.value.facts["route"] == house.route(ask(tools=(TOOL,))).summary()


@pytest.mark.parametrize(
    "reason",
    sorted(
        set(RouteReason)
        - {RouteReason.PINNED, RouteReason.LISTED, RouteReason.LOCAL_FIRST, RouteReason.CLOUD_FIRST}
        - {RouteReason.FALLBACK}
    ),
)
def test_every_reason_of_exclusion_has_words(reason: RouteReason):
    route = House().route(ask())
    detail = {
        "estimate": 5000, "reserved": 100, "limit": 4096,
        "keyword": "pattern", "path": "/properties/a", "schema": "response_format", "losses": 2,
        "needed": "$1", "left": "$0", "per": "day",
    }  # fmt: skip
    entries = tuple(
        entry.model_copy(update={"kept": False, "reason": reason, "detail": detail})
        for entry in route.entries
    )
    message = no_candidate(replace(route, route=Route(entries))).message
    assert "{" not in message
    assert message.count("ollama:llama3.2: ") == 1


# -- the estimate


def test_tokens_are_estimated_from_bytes_rounded_up():
    assert needs_of(ask("", "x", "xxx", "xxxx", "漢字")) == Needs(
        input_tokens_estimate=4 + 0 + 1 + 1 + 2 + 2, output_tokens_reserved=DEFAULT_OUTPUT_TOKENS
    )


def test_everything_that_is_sent_counts():
    def estimate(*turns: Message, **fields: Any) -> int:
        return needs_of(LLMRequest(messages=turns, **fields)).input_tokens_estimate

    assert estimate(Message.user(IMAGE)) == 4 + TOKENS_PER_IMAGE
    assert estimate(Message.user(file("audio/wav", 31))) == 4 + 2
    assert estimate(Message.user(file("video/mp4", 81))) == 4 + 3
    assert estimate(Message.user(file("application/pdf", 9))) == 4 + 2
    assert estimate(Message.user(file("application/pdf", 8_000_000))) == 4 + MAX_DOCUMENT_TOKENS
    call = ToolCallPart(id="1", name="look", arguments={"at": "x"})
    assert estimate(Message.assistant(ThinkingPart(text="hmm"), call)) == 4 + 1 + 2 + 4
    assert estimate(Message.tool(ToolResultPart(id="1", name="look", content="seen it"))) == 4 + 3
    hello = Message.user("hello!")
    as_json = json_bytes([TOOL.name, TOOL.description, TOOL.parameters])
    assert estimate(hello, tools=(TOOL,)) == estimate(hello) + -(-len(as_json) // 3)
    assert estimate(hello, response_format=SCHEMA) == estimate(hello) + 6


# -- determinism


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_ten_thousand_requests_are_routed_alike_in_every_process(hash_seed: str):
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    there = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest_of_decisions()


def test_a_remembered_route_is_the_one_that_would_be_worked_out(monkeypatch: pytest.MonkeyPatch):
    """Every reason is exact, whichever way it was found; lengths lie around the windows."""
    choose = random.Random(7)  # noqa: S311  # no secret is drawn
    house = House(ollama_num_ctx=2048, fallback_to_cloud=False, profile_balanced="ollama:a,gemini:b,ollama:c")
    window = 3 * (2048 - DEFAULT_OUTPUT_TOKENS)
    limits = (LLMConstraints(), LLMConstraints(allow_fallback=False), LLMConstraints(providers=(GEMINI,)))
    requests = [
        random_request(choose.choice).model_copy(
            update={
                "messages": (Message.user("x" * (window + choose.randint(-30, 30))),),
                "constraints": choose.choice(limits),
            }
        )
        for _ in range(2000)
    ]
    remembered = [house.route(asked) for asked in requests]
    monkeypatch.setattr(router, "_route_of_short_prompts", lambda *_: (None, -1))
    assert [house.route(asked) for asked in requests] == remembered
    assert {entry.reason for route in remembered for entry in route.entries} >= {
        RouteReason.CONTEXT_TOO_SMALL,
        RouteReason.FALLBACK_NOT_ALLOWED,
        RouteReason.NO_CLOUD_FALLBACK,
    }


def test_requests_that_share_a_route_cannot_change_each_others_summary():
    house = House()
    first, second = house.route(ask("one")), house.route(ask("two"))
    first.summary()[0]["kept"] = "changed"
    assert second.route is first.route
    assert second.summary() == house.route(ask("three")).summary()
    assert json.loads(second.route.as_json) == second.summary()
    assert second.summary()[0]["kept"] is True


@cache
def digest_of_decisions(count: int = 10_000) -> str:
    """Return one hash over `count` decisions; dicts are filled in an order that the hash seed decides."""
    choose = random.Random(2026)  # noqa: S311  # no secret is drawn
    policies = [
        House(
            router_policy=policy,
            fallback_to_cloud=cloud,
            profile_balanced="ollama:a,gemini:b,ollama:c,gemini:d",
        )
        for policy in RouterPolicy
        for cloud in (True, False)
    ]
    seen = hashlib.sha256()
    for _ in range(count):
        house = choose.choice(policies)
        decision = house.router.route(
            random_request(choose.choice),
            caps=house.caps,
            health=shuffled({candidate.name: choose.random() < 0.7 for candidate in house.caps.all}),
        )
        seen.update(json_bytes(decision.summary()))
    return seen.hexdigest()


def random_request(choice: Callable[[Any], Any]) -> LLMRequest:
    schema = shuffled({f"field{number}": {"type": "string"} for number in range(choice(range(4)))})
    tools = choice(
        [(), (ToolSpec(name="look", parameters=shuffled({"type": "object", "properties": schema})),)]
    )
    variant = RequestVariant(messages=(Message.user("short"),))
    return ask(
        choice(["hi", "x" * 30_000]),
        *choice([(), (IMAGE,)]),
        profile=choice([None, *LLMProfile]),
        model=choice([None, None, "ollama:a", "gemini:unlisted"]),
        tools=tools,
        tool_choice=choice([None, "required"]) if tools else None,
        response_format=choice([None, SCHEMA]),
        variants=shuffled(choice([{}, {OLLAMA: variant}, {OLLAMA: variant, GEMINI: variant}])),
        constraints=LLMConstraints(
            local_only=choice([None, True]),
            allow_fallback=choice([None, True, False]),
            providers=choice([None, (OLLAMA,), (GEMINI, OLLAMA)]),
        ),
    )


def shuffled(values: dict[Any, Any]) -> dict[Any, Any]:
    """Return the same dict, filled in the order of a set."""
    return {key: values[key] for key in set(values)}


if __name__ == "__main__":
    sys.stdout.write(digest_of_decisions())
