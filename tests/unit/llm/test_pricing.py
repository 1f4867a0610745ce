"""Prices: exact dollars, cached tokens at their own price, unknown as None; and the same as genai-prices says."""

import decimal
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, StartDateConstraint

from app.llm import pricing
from app.llm.pricing import LOCAL, Price, _rates, price_for, price_of
from app.llm.types import TokenUsage
from tests.support.ledger import request, route_of

AT = datetime(2026, 6, 1, tzinfo=UTC)
FLASH = "gemini-2.5-flash"


def used(
    read: int | None, written: int | None, cached: int | None = None, kept: int = 0, an_hour: int = 0
) -> TokenUsage:
    return TokenUsage(
        input_tokens=read, output_tokens=written, cached_input_tokens=cached,
        cache_write_tokens=kept or None, cache_write_1h_tokens=an_hour or None,
    )  # fmt: skip


def price(**dollars: str) -> Price:
    return Price("test", _rates(ModelPrice(**{name: Decimal(value) for name, value in dollars.items()})))


def test_a_local_model_costs_nothing_whatever_it_counts():
    local = price_of("ollama", "llama3.2:3b")
    assert (local.version, local.cost_usd(used(None, None))) == (LOCAL, 0)
    (first, *_) = route_of(request()).kept
    assert first.local
    assert price_for(first.model_copy(update={"provider": "gemini"})) is local


def test_a_model_of_ollamas_cloud_is_not_known_to_be_free():
    assert price_of("ollama", "gpt-oss:120b-cloud").cost_usd(used(1, 1)) is None


@pytest.mark.parametrize(("provider", "model"), [("gemini", "no-such-model"), ("somebody", FLASH)])
def test_a_model_without_a_price_costs_nobody_knows_what(provider: str, model: str):
    unknown = price_of(provider, model)
    assert (unknown.version, unknown.cost_usd(used(1, 1))) == (None, None)


def test_a_known_model_has_the_version_of_its_prices():
    known = price_of("gemini", FLASH)
    assert known.version is not None
    assert known.version.startswith("genai-prices ")
    assert known is price_of("gemini", FLASH), "it is looked up once"
    assert known.cost_usd(used(1_000_000, 0), AT) == Decimal("0.3")


@pytest.mark.parametrize("usage", [used(None, 1), used(1, None), used(1, 1, 2)])
def test_counts_that_are_unknown_or_impossible_make_no_cost(usage: TokenUsage):
    assert price(input_mtok="1", output_mtok="2").cost_usd(usage) is None


def test_cached_tokens_are_part_of_the_input_and_have_their_own_price():
    dear = price(input_mtok="1", cache_read_mtok="0.25", output_mtok="2")
    assert dear.cost_usd(used(1000, 100, 400)) == Decimal("0.000900")
    assert price(input_mtok="1", output_mtok="2").cost_usd(used(1000, 100, 400)) == Decimal("0.001200")


def test_what_is_written_to_a_cache_is_dearer_and_dearest_for_an_hour():
    haiku = price_of("anthropic", "claude-haiku-4-5")
    assert haiku.cost_usd(used(1000, 0, 0)) == Decimal("0.001")
    assert haiku.cost_usd(used(1000, 0, 0, 400)) == Decimal("0.001100")
    assert haiku.cost_usd(used(1000, 0, 0, 400, 400)) == Decimal("0.001400")
    assert haiku.cost_usd(used(1000, 100, 200, 400, 100)) == Decimal("0.001495")


@pytest.mark.parametrize("usage", [used(1000, 1, 700, 400), used(1000, 1, 0, 400, 500)])
def test_more_written_than_there_is_makes_no_cost(usage: TokenUsage):
    dear = price(input_mtok="1", cache_write_mtok="2", cache_write_1h_mtok="3", output_mtok="2")
    assert dear.cost_usd(usage) is None


def test_what_is_written_without_a_price_for_it_makes_no_cost():
    five_minutes = price(input_mtok="1", cache_write_mtok="2", output_mtok="2")
    assert five_minutes.cost_usd(used(1000, 0, 0, 400)) == Decimal("0.001400")
    assert five_minutes.cost_usd(used(1000, 0, 0, 400, 100)) is None
    assert price(input_mtok="1", output_mtok="2").cost_usd(used(1000, 0, 0, 400)) is None


def test_a_cost_has_nine_places_however_programs_use_decimals():
    with decimal.localcontext(prec=3):
        cost = price(input_mtok="0.0375", output_mtok="123.456789").cost_usd(used(1, 1_000_001))
    assert cost == Decimal("123.456912494")  # 123.456912493 289 and half a nano's rounding of the input


def test_sound_of_unknown_length_makes_the_cost_unknown_where_it_has_its_own_price():
    dear = price(input_mtok="1", output_mtok="2", input_audio_mtok="5")
    assert dear.cost_usd(used(1, 1), with_sound=True) is None
    assert dear.cost_usd(used(1, 1)) is not None
    assert price(input_mtok="1", output_mtok="2").cost_usd(used(1, 1), with_sound=True) is not None


@pytest.mark.parametrize("also", [{"requests_kcount": "1"}, {}])
def test_what_is_not_paid_by_the_token_alone_is_unknown(also: dict[str, str]):
    dollars = {"input_mtok": "1", "output_mtok": "2", **also} if also else {"output_mtok": "2"}
    assert price(**dollars).cost_usd(used(1, 1)) is None


def test_a_price_that_changed_is_the_one_of_the_day():
    prices = [
        ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1))),
        ConditionalPrice(
            StartDateConstraint(datetime(2026, 3, 1, tzinfo=UTC).date()),
            prices=ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(2)),
        ),
    ]
    model: Any = ModelInfo(id="m", match=None, prices=prices)  # type: ignore[arg-type]
    changing = Price("test", _model=model)
    told = [changing.cost_usd(used(1_000_000, 0), datetime(2026, month, 28, tzinfo=UTC)) for month in (2, 3)]
    assert told == [1, 2]


def test_every_price_of_tokens_gives_what_the_package_calculates():
    """Tiers, cached tokens, free models; a model that is also paid otherwise has no price here."""
    nano, compared = Decimal("1e-9"), 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            ours = Price("test", _model=model)
            for read, written, cached, kept, an_hour in (
                (10, 5, 0, 0, 0),
                (1_000, 333, 1_000, 0, 0),
                (250_001, 7, 999, 0, 0),
                (2_000_003, 0, 1, 0, 0),
                (250_001, 7, 999, 777, 0),
                (10_001, 7, 999, 777, 333),
            ):
                cost = ours.cost_usd(used(read, written, cached, kept, an_hour), AT)
                if cost is None:
                    continue
                usage = Usage(
                    input_tokens=read, output_tokens=written, cache_read_tokens=cached,
                    cache_write_tokens=kept, cache_write_1h_tokens=an_hour,
                )  # fmt: skip
                theirs = model.calc_price(usage, provider, genai_request_timestamp=AT)
                assert cost == theirs.total_price.quantize(nano), (provider.id, model.id)
                compared += 1
    assert compared > 1_000


def test_nothing_is_looked_up_before_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pricing, "_looked_up", refuse)
    price_of.cache_clear()
    pricing.preload(route_of(request()).kept[:1])
    assert price_of("somebody", "m").version is None
