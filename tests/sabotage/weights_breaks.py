"""Breaks of what a model's name stands for, of what its calls cost, and of what a simulation holds for moved."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
ANTHROPIC, STREAM = (f"{_HERE}wire/{name}.py" for name in ("anthropic", "acompletion_stream"))
PROVIDERS, PRICING, SETTLED, SIMULATED = (
    f"{_HERE}{name}.py" for name in ("providers/__init__", "pricing", "persistence/settlement", "simulation")
)
SAID, LEARNING = "tests/wire/test_further_replies.py::test_", "tests/wire/test_learning.py::test_"
PRICES, COSTS, MOVES = (
    f"tests/unit/llm/test_{name}.py::test_" for name in ("pricing", "costs", "simulation")
)

WEIGHTS_BREAKS = (
    Break(
        "old-weights-answer-for-new-ones",
        "learning",
        PROVIDERS,
        'of_weights = {"weights": weights[name]} if name in weights else {}',
        "of_weights: dict[str, str] = {}",
        (LEARNING + "answers_of_old_weights_are_not_served_for_a_model_that_was_pulled_anew",),
    ),
    Break(
        "what-is-written-to-a-cache-costs-as-much-as-other-input",
        "costs",
        PRICING,
        "((rates.written, kept - an_hour), (rates.written_1h, an_hour))",
        "((rates.input, kept - an_hour), (rates.input, an_hour))",
        (PRICES + "what_is_written_to_a_cache_is_dearer_and_dearest_for_an_hour",),
    ),
    Break(
        "counts-of-the-end-forget-those-of-the-start",
        "providers",
        ANTHROPIC,
        "{**_counts(exchange.usage), **later}",
        "later",
        (SAID + "counts_that_anthropic_tells_at_the_start_are_kept",),
    ),
    Break(
        "call-that-lost-its-arguments-is-one",
        "providers",
        STREAM,
        'call._replace(whole=call.arguments not in {"", "{}"})',
        "call",
        (SAID + "a_call_that_was_cut_off_is_none_and_is_not_asked_for_again",),
    ),
    Break(
        "hit-of-a-local-candidate-saves-the-price-of-another",
        "costs",
        SETTLED,
        "return price_for(candidate) if candidate else price_of(response.provider, response.model)",
        "return price_of(response.provider, response.model)",
        (COSTS + "a_hit_of_a_local_candidate_saved_nothing_and_nothing_is_unknown",),
    ),
    Break(
        "what-was-learned-moves-calls",
        "simulation",
        SIMULATED,
        "return now.caps == then.caps",
        "return False",
        (MOVES + "what_only_a_provider_said_at_run_time_moves_nothing",),
    ),
)
