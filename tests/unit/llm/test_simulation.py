"""Calls routed once more: who moves, who has nobody left, and what that costs as far as it is known."""

from typing import Any

import pytest

from app.llm.messages import ImagePart, Message, ToolSpec
from app.llm.pricing import price_of
from app.llm.settings import LLMSettings, isolated_settings
from app.llm.simulation import Moves, Recorded, Simulation, World, total
from app.llm.types import LLMRequest, TokenUsage

A, B, G = "ollama:a", "ollama:b", "gemini:g"
TOOLS = (ToolSpec(name="look", parameters={"type": "object", "properties": {}}),)


def settings(**values: Any) -> LLMSettings:
    return isolated_settings(**{"gemini_api_key": "k", "profile_balanced": f"{A},{G}", **values})


def call(
    served_by: str = A, *, kept: tuple[str, ...] = (A, G), stage: str | None = None, **fields: Any
) -> Recorded:
    known = {"input_tokens": 6, "output_tokens": 4, "cost_usd": 0.0, "latency_ms": 10.0}
    asked = LLMRequest(
        messages=(Message.user("?"),), **{k: v for k, v in fields.items() if k not in {*known, "request"}}
    )
    said = {name: fields.get(name, usual) for name, usual in known.items()}
    return Recorded(
        run_id="r", stage=stage, served_by=served_by, kept=kept, request=fields.get("request", asked), **said
    )


def simulated(calls: list[Recorded], now: LLMSettings, then: LLMSettings) -> Moves:
    simulation = Simulation(now=World.of(now), then=World.of(then))
    for each in calls:
        simulation.add(each)
    return simulation.outcome()


MIXED = [
    *[call(A)] * 5,
    *[call(G, latency_ms=40.0, cost_usd=0.02)] * 3,
    call(G, kept=(G,), tools=TOOLS, latency_ms=40.0, cost_usd=0.02),
    call(G, kept=(G,), model=G),
]
"""Answered by the first; by the second, because the first failed; because it turned out to lack tools; pinned."""


def test_the_settings_in_force_move_nothing():
    moves = simulated(MIXED, settings(), settings())
    assert (moves.runs, moves.moved, moves.homeless) == (10, {}, {})
    assert moves.after == moves.before
    assert moves.expected_ms(moves.after) == moves.expected_ms(moves.before) == (25.0, 0)


IMAGE = ImagePart(data=b"\x89PNG", media_type="image/png")


def shown(served_by: str = A, kept: tuple[str, ...] = (A, G), **fields: Any) -> Recorded:
    """Return a call with an image, which the settings do not know its candidate to see."""
    request = LLMRequest(messages=(Message.user("What is it?", IMAGE),))
    return call(served_by, kept=kept, request=request, **fields)


def test_what_only_a_provider_said_at_run_time_moves_nothing():
    """Its model can see, says Ollama; no table does, and no settings do."""
    moves = simulated([shown()], settings(), settings())
    assert (moves.runs, moves.moved, moves.homeless) == (1, {}, {})
    assert simulated([shown()], settings(), settings(profile_balanced=G)).moved == {(A, G): 1}
    assert simulated([shown()], settings(), settings(profile_balanced=f"{B},{A}")).moved == {}, (
        "of another one nobody said it"
    )


def test_what_other_settings_say_of_a_candidate_counts_more_than_what_it_did():
    blind = settings(model_overrides={A: {"supports_vision": False}, B: {"supports_vision": True}})
    assert simulated([shown()], settings(), settings()).moved == {}
    told = settings(model_overrides={A: {"supports_vision": True}})
    assert simulated([shown()], told, blind).moved == {(A, G): 1}
    small = settings(ollama_num_ctx=256)
    long = call(A, request=LLMRequest(messages=(Message.user("word " * 2000),)))
    assert simulated([long], settings(), small).moved == {(A, G): 1}


def test_a_call_that_the_present_settings_would_refuse_is_routed_under_the_others():
    strict = settings(schema_mismatch="error")
    schema = ToolSpec(
        name="look", parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    )
    moves = simulated([call(tools=(schema,))], strict, settings())
    assert (moves.moved, moves.homeless, moves.after[A].runs) == ({}, {}, 1)


def test_a_call_of_a_provider_that_is_gone_moves():
    moves = simulated([call("gone:x", kept=("gone:x",))], settings(), settings())
    assert moves.moved == {("gone:x", A): 1}


def test_without_the_primary_exactly_those_move_that_it_served():
    moves = simulated(MIXED, settings(), settings(profile_balanced=G))
    assert (moves.moved, moves.homeless) == ({(A, G): 5}, {})
    assert moves.after[G].runs == 10
    assert set(moves.before) == {A, G}


def test_whom_nobody_is_left_for_has_no_candidate():
    moves = simulated(MIXED, settings(), settings(providers_off="gemini"))
    assert moves.moved == {}
    assert moves.homeless == {(G, "only candidates that did not answer then"): 4, (G, "no candidate"): 1}
    assert total(moves.after.values()).runs == 5


def test_a_request_that_cannot_be_routed_has_no_candidate():
    strict = settings(schema_mismatch="error")
    schema = ToolSpec(
        name="look", parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    )
    assert simulated([call(tools=(schema,))], settings(), strict).homeless == {(A, "schema_mismatch"): 1}


def test_a_new_candidate_in_front_takes_what_it_can_serve():
    then = settings(profile_balanced=f"{B},{A},{G}", model_overrides={B: {"supports_tools": False}})
    moves = simulated([call(), call(), call(tools=TOOLS)], settings(), then)
    assert moves.moved == {(A, B): 2}
    assert moves.after[A].runs == 1


def test_stages_and_profiles_are_asked_again():
    then = settings(stage_profiles={"plan": "advanced"}, profile_advanced=G)
    calls = [call(stage="plan"), call(stage="other"), call(stage="plan", profile="balanced")]
    assert simulated(calls, settings(), then).moved == {(A, G): 1}


def test_what_moves_costs_what_its_new_candidate_took_before():
    paid = call(G, kept=(G,), model=G, input_tokens=50, output_tokens=50, cost_usd=1.0)
    moves = simulated([call(), call(), paid], settings(), settings(profile_balanced=G))
    assert moves.after[G].cost_usd == pytest.approx(1.0 + 2 * 10 * 0.01)
    assert moves.after[G].cost_unknown == 0


def test_what_moves_to_somebody_who_never_was_asked_costs_its_price():
    flash = "gemini:gemini-2.5-flash"
    price = price_of("gemini", "gemini-2.5-flash").cost_usd(TokenUsage(input_tokens=6, output_tokens=4))
    moves = simulated([call(), call(input_tokens=None)], settings(), settings(profile_balanced=flash))
    assert price is not None
    assert moves.after[flash].cost_usd == pytest.approx(float(price))
    assert (moves.after[flash].cost_unknown, moves.after[flash].tokens_unknown) == (1, 1)


@pytest.mark.parametrize("known", [{}, {"cost_usd": None}, {"input_tokens": None}])
def test_what_is_not_known_is_counted_and_no_zero(known: dict[str, Any]):
    moves = simulated([call(**known)], settings(), settings(profile_balanced=G))
    assert (moves.after[G].cost_usd, moves.after[G].cost_unknown) == (0.0, 1)
    assert moves.before[A].cost_unknown == ("cost_usd" in known)
    assert moves.after[G].tokens_unknown == ("input_tokens" in known)
    assert moves.expected_ms(moves.after) == (None, 1)


def test_a_local_candidate_costs_nothing():
    moves = simulated(
        [call(G, kept=(G,), cost_usd=None)], settings(profile_balanced=G), settings(profile_balanced=A)
    )
    assert (moves.moved, moves.after[A].cost_unknown) == ({(G, A): 1}, 0)


def test_a_call_whose_request_is_not_there_is_left_out():
    moves = simulated([call(), call(request=None)], settings(), settings())
    assert (moves.runs, moves.unread) == (1, 1)
