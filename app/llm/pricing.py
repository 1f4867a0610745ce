"""What a send cost, in exact dollars. Unknown is None, never zero: a sum over unknown prices must be able to say so.

Prices are those of the package `genai-prices`, which brings them along: nothing is fetched. Each model is looked up once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from app.llm.types import LLMProvider, TokenUsage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

    from app.llm.candidates import Candidate

FREE = Decimal(0)
LOCAL = "local"
"""What stands where others have the version of their prices."""
_SELLERS = {"gemini": "google", "openai": "openai", "anthropic": "anthropic", "groq": "groq"}
"""Our providers by the names that the package has for them; a price of somebody else's would be a guess."""
_CLOUD_SUFFIXES = ("-cloud", ":cloud")  # https://ollama.com/blog/cloud-models: paid by subscription
_TOKENS = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok"}
_BY_THE_CALL = "requests_kcount"
_NANO = Decimal("1e-9")
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_MODELS = 1_024
"""Models whose price is remembered."""


class _Rate(NamedTuple):
    """Dollars for a million tokens: `base`, or that of the highest tier whose start the input exceeds."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()
    """Highest first."""

    def at(self, input_tokens: int) -> Decimal:
        return next((price for start, price in self.tiers if input_tokens > start), self.base)


class _Rates(NamedTuple):
    input: _Rate
    cached: _Rate
    output: _Rate
    dear_sound: bool
    """Whether sound in a prompt has a price of its own; how many tokens were sound is not known."""
    written: _Rate | None = None
    """Of what the provider writes to its cache for five minutes; None where that has no price."""
    written_1h: _Rate | None = None
    """Likewise for an hour."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, as far as that is known."""

    version: str | None
    """Whose prices, and of which version; None while there is none."""
    _fixed: _Rates | None = None
    _model: "ModelInfo | None" = None
    """Of a model whose price changes with time."""

    def cost_usd(
        self, usage: TokenUsage, at: datetime | None = None, *, with_sound: bool = False
    ) -> Decimal | None:
        """Return dollars to the nano; None while the price or a count is unknown.

        Args:
            usage: What was consumed; tokens of a cache are part of the input, reasoning is part of the output.
            at: When; None is now.
            with_sound: Whether the prompt held sound.
        """
        if self.version == LOCAL:
            return FREE
        rates = (
            self._fixed if self._model is None else _rates(self._model.get_prices(at or datetime.now(UTC)))
        )
        read, said, cached = usage.input_tokens, usage.output_tokens, usage.cached_input_tokens or 0
        kept = usage.cache_write_tokens or 0
        if rates is None or read is None or said is None or cached + kept > read:
            return None
        if with_sound and rates.dear_sound:
            return None
        micros = _EXACT.multiply(rates.input.at(read), read - cached - kept)
        micros = _EXACT.fma(rates.output.at(read), said, micros)
        if cached:
            micros = _EXACT.fma(rates.cached.at(read), cached, micros)
        if kept:
            written = _written(rates, read, kept, usage.cache_write_1h_tokens or 0)
            if written is None:
                return None
            micros = _EXACT.add(micros, written)
        return micros.scaleb(-6, _EXACT).quantize(_NANO, context=_EXACT)


def _written(rates: _Rates, read: int, kept: int, an_hour: int) -> Decimal | None:
    """Return micro-dollars for what was written to a cache, `an_hour` of it for an hour; None without its price."""
    micros = FREE
    for rate, tokens in ((rates.written, kept - an_hour), (rates.written_1h, an_hour)):
        if tokens < 0 or (tokens and rate is None):
            return None
        if rate is not None:
            micros = _EXACT.fma(rate.at(read), tokens, micros)
    return micros


_NOTHING, _UNKNOWN = Price(LOCAL), Price(None)


def price_for(candidate: "Candidate") -> Price:
    """Return the price of a candidate: nothing for what runs on hosts that count as local."""
    return _NOTHING if candidate.local else price_of(candidate.provider, candidate.model)


@lru_cache(maxsize=_MODELS)
def price_of(provider: str, model: str) -> Price:
    """Return the price of a model by its names; of Ollama's only those of its cloud are not free.

    The first look-up in a process loads the prices, which takes a moment: see `preload`.
    """
    if provider == LLMProvider.OLLAMA and not model.endswith(_CLOUD_SUFFIXES):
        return _NOTHING
    seller = _SELLERS.get(provider)
    return _UNKNOWN if seller is None else _looked_up(seller, model)


def preload(candidates: Iterable["Candidate"]) -> None:
    """Look up what the candidates cost, so that no call has to wait for it."""
    for candidate in candidates:
        price_for(candidate)


def _looked_up(seller: str, model: str) -> Price:
    from genai_prices import __version__  # noqa: PLC0415  # as below
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415  # 1.6 MB of prices: only who pays loads them

    try:
        _, found = get_snapshot().find_provider_model(model, None, seller, None)
    except LookupError:
        return _UNKNOWN
    named = f"genai-prices {__version__}"
    if isinstance(found.prices, list):
        return Price(named, _model=found)
    rates = _rates(found.prices)
    return _UNKNOWN if rates is None else Price(named, rates)


def _rates(price: "ModelPrice") -> _Rates | None:
    """Return the prices of tokens; None where there are none, or where tokens are not all that is paid for."""
    said: dict[str, Any] = {name: value for name, value in vars(price).items() if value is not None}
    if "input_mtok" not in said or "output_mtok" not in said or _BY_THE_CALL in said:
        return None
    rates = {name: _rate(said[name]) for name in _TOKENS & said.keys()}
    return _Rates(
        input=rates["input_mtok"],
        cached=rates.get("cache_read_mtok", rates["input_mtok"]),
        output=rates["output_mtok"],
        dear_sound="input_audio_mtok" in said,
        written=rates.get("cache_write_mtok"),
        written_1h=rates.get("cache_write_1h_mtok"),
    )


def _rate(price: Any) -> _Rate:  # a Decimal, or one with tiers
    if isinstance(price, Decimal):
        return _Rate(price)
    return _Rate(price.base, tuple((tier.start, tier.price) for tier in reversed(price.tiers)))
