"""What a paid call cost, on its answer and on its row; and what it saved when it was not sent again."""

from decimal import Decimal

import pytest

from app.llm.errors import LLMTimeout
from app.llm.pricing import price_of
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import ServedFrom, TokenUsage
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
