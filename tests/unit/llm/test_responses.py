"""Answers with their provenance: live, replayed, from the cache."""

from app.llm import responses
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.types import NO_USAGE, FinishReason, ServedFrom, TokenUsage
from tests.support.ledger import attempt, new_run, response

PARTS = (
    ThinkingPart(text="hm"),
    ToolCallPart(id="random-1", name="look", arguments={"a": 1}, signature="s"),
    TextPart(text="and"),
    ToolCallPart(id="random-2", name="look", arguments={"a": 2}),
)


def test_a_live_answer_tells_who_gave_it_and_what_it_took():
    run = new_run()
    first, second = run.route.kept
    usage = TokenUsage(input_tokens=3, output_tokens=5)
    reply = ProviderReply(parts=(TextPart(text="yes"),), finish_reason=FinishReason.STOP, usage=usage)
    for candidate, cost in ((first, 0.0), (second, None)):
        made = responses.live(
            run, candidate, reply, attempts=[attempt(usage=usage, cost_usd=cost)], latency_ms=7.0
        )
        assert (made.provider, made.model, made.cost_usd) == (candidate.provider, candidate.model, cost)
        assert (made.run_id, made.served_from, made.latency_ms) == (run.run_id, ServedFrom.LIVE, 7.0)
        assert made.usage == made.original_usage == usage
        assert len(made.attempts) == 1
        assert list(made.route) == run.route.summary()
        assert made.route[0] is not run.route.route.summaries[0], "a receiver may change its own"


def test_a_cost_is_unknown_as_soon_as_one_send_is():
    told, silent = attempt(1, cost_usd=0.0), attempt(2, status="FAILED", cost_usd=None)
    assert (responses.paid([told]), responses.paid([told, silent]), responses.paid([])) == (0.0, None, 0.0)


def test_a_hit_is_this_runs_answer_in_the_others_words():
    run, source = new_run(), new_run()
    stored = response(source, "theirs", usage=NO_USAGE)
    made = responses.hit(run, stored, latency_ms=1.0)
    assert (made.text, made.run_id, made.served_from) == ("theirs", run.run_id, ServedFrom.CACHE)
    assert (made.usage, made.original_usage) == (NO_USAGE, stored.original_usage)
    assert (made.attempts, list(made.route)) == ((), run.route.summary())


def test_tool_call_ids_depend_on_the_prompt_and_the_order_only():
    """Else a step that is executed again after a crash would have another fingerprint than before."""
    renamed = tuple(
        part.model_copy(update={"id": "other"}) if isinstance(part, ToolCallPart) else part for part in PARTS
    )
    made = responses.with_stable_ids(PARTS, "a" * 64)
    assert made == responses.with_stable_ids(renamed, "a" * 64)
    ids = [part.id for part in made if isinstance(part, ToolCallPart)]
    assert len(set(ids)) == 2
    other = [p.id for p in responses.with_stable_ids(PARTS, "b" * 64) if isinstance(p, ToolCallPart)]
    assert set(ids).isdisjoint(other)
    assert [
        part.model_copy(update={"id": ""}) if isinstance(part, ToolCallPart) else part for part in made
    ] == [part.model_copy(update={"id": ""}) if isinstance(part, ToolCallPart) else part for part in PARTS]
