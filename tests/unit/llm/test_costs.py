"""What a paid call cost, on its answer and on its row; and what it saved when it was not sent again."""

from dataclasses import replace
from decimal import Decimal

import pytest

from app.llm.errors import LLMTimeout
from app.llm.messages import FilePart, Message
from app.llm.pricing import LOCAL, price_of
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMRequest, ServedFrom, TokenUsage
from tests.support.ledger import Outside, request
from tests.support.service import limited, service, timed_out

MODEL = "gemini-2.5-flash"
FLASH = {"profile_balanced": f"gemini:{MODEL}"}
PRICE = price_of("gemini", MODEL)
COST = PRICE.cost_usd(TokenUsage(input_tokens=3, output_tokens=5))


async def test_a_call_costs_what_its_sends_cost_and_says_by_which_prices(db_url: str):
    client = ScriptedClient([limited(), text_reply("yes")])
    async with service(db_url, client, **FLASH) as llm:
        answer = await llm.chat(request())
    assert isinstance(COST, Decimal)
    assert COST > 0
    assert answer.cost_usd == COST
    assert [each.cost_usd for each in answer.attempts] == [0, COST], "a refused send was not paid"
    outside = Outside(db_url)
    row, sends = await outside.run(answer.run_id), await outside.attempts(answer.run_id)
    await outside.close()
    assert (row["cost_usd"], row["price_version"]) == (COST, PRICE.version)
    assert [each["cost_usd"] for each in sends] == [0, COST]
    assert answer.model_dump(mode="json")["cost_usd"] == float(COST)
    assert type(answer).model_validate_json(answer.model_dump_json()) == answer


async def test_a_send_that_may_have_been_paid_makes_the_call_s_cost_unknown(db_url: str):
    client = ScriptedClient([timed_out()])
    async with service(db_url, client, **FLASH) as llm:
        with pytest.raises(LLMTimeout) as caught:
            await llm.chat(request())
    outside = Outside(db_url)
    row = await outside.run(str(caught.value.run_id))
    await outside.close()
    assert (row["cost_usd"], row["possibly_paid"]) == (None, True)


async def test_a_hit_costs_nothing_and_its_row_says_what_was_saved(db_url: str):
    client = ScriptedClient([text_reply("yes")])
    async with service(db_url, client, cache_enabled=True, **FLASH) as llm:
        await llm.chat(request())
        hit = await llm.chat(request())
        await llm.drain()
    assert (hit.served_from, hit.cost_usd) == (ServedFrom.CACHE, 0)
    outside = Outside(db_url)
    row = await outside.run(hit.run_id)
    await outside.close()
    assert (row["cost_usd"], row["saved_cost_usd"], row["price_version"]) == (0, COST, PRICE.version)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_hit_of_a_local_candidate_saved_nothing_and_nothing_is_unknown(db_url: str, key: str | None):
    """Whatever its provider sells elsewhere, and whether that has a price or not."""
    for model in ("of-ones-own", "gpt-4.1"):
        client = ScriptedClient([text_reply("yes")])
        own = {"openai_api_base": "http://localhost:8000/v1", "openai_api_key": "k", "cache_enabled": True}
        async with service(db_url, client, profile_balanced=f"openai:{model}", **own) as llm:
            live = await llm.chat(request(model))
            hit = await llm.chat(request(model, idempotency_key=key and f"{key}-{model}"))
            await llm.drain()
        assert (live.cost_usd, hit.served_from) == (0, ServedFrom.CACHE)
        outside = Outside(db_url)
        row = await outside.run(hit.run_id)
        await outside.close()
        assert (row["saved_cost_usd"], row["price_version"]) == (0, LOCAL)


async def test_what_a_hit_saved_is_unknown_where_the_price_of_its_sound_is(db_url: str):
    sound = FilePart(data=b"RIFF", media_type="audio/wav")
    asked = LLMRequest(messages=(Message.user("What is it?", sound),))
    client = ScriptedClient([text_reply("a train")])
    async with service(db_url, client, cache_enabled=True, **FLASH) as llm:
        live, hit = await llm.chat(asked), await llm.chat(asked)
        await llm.drain()
    outside = Outside(db_url)
    row = await outside.run(hit.run_id)
    await outside.close()
    assert (live.cost_usd, hit.served_from, row["saved_cost_usd"]) == (None, ServedFrom.CACHE, None)


async def test_what_is_written_to_a_cache_of_the_provider_s_is_paid_for(db_url: str):
    used = TokenUsage(input_tokens=1000, output_tokens=10, cached_input_tokens=0, cache_write_tokens=800)
    reply = replace(text_reply("yes"), usage=used)
    model = "claude-haiku-4-5"
    own = {"profile_balanced": f"anthropic:{model}", "anthropic_api_key": "k"}
    async with service(db_url, ScriptedClient([reply]), **own) as llm:
        answer = await llm.chat(request(idempotency_key="k"))
        again = await llm.chat(request(idempotency_key="k"))
    assert answer.cost_usd == Decimal("0.00125")
    assert again.original_usage == used
