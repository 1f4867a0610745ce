"""The competitors: LiteLLM's own entry points against the same stub, in processes of their own.

They get what we get: a warm-up, frozen garbage, the same prompt. The model is one that is not in LiteLLM's price list,
which is its cheaper way: with one that is, `acompletion` costs twice as much. Their defaults stay, except where a default would
stop them from doing what is measured: a Router that cools a failing deployment down would not fail over again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.measure import Call
from bench.stub import BUSY
from bench.world import GEMINI_KEY, GEMINI_MODEL, OLLAMA_MODEL, World, wire_messages

TIMEOUT_S = 60


@asynccontextmanager
async def acompletion(world: World) -> AsyncIterator[Call]:
    """Yield `litellm.acompletion` to Ollama."""
    import litellm  # noqa: PLC0415  # 3 s: only the child that measures it pays

    async def call(number: int) -> None:
        _check(
            await litellm.acompletion(
                model=f"ollama_chat/{OLLAMA_MODEL}",
                messages=wire_messages(number),
                api_base=world.stub_url,
                timeout=TIMEOUT_S,
            )
        )

    yield call


@asynccontextmanager
async def gemini(world: World) -> AsyncIterator[Call]:
    """Yield `litellm.acompletion` to Gemini."""
    import litellm  # noqa: PLC0415

    async def call(number: int) -> None:
        _check(
            await litellm.acompletion(
                model=f"gemini/{GEMINI_MODEL}",
                messages=wire_messages(number),
                api_base=f"{world.stub_url}/v1beta",
                api_key=GEMINI_KEY,
                timeout=TIMEOUT_S,
            )
        )

    yield call


@asynccontextmanager
async def router(world: World) -> AsyncIterator[Call]:
    """Yield a Router that is set up as our service is: Ollama first, Gemini if that fails."""
    second = _deployment("second", f"gemini/{GEMINI_MODEL}", f"{world.stub_url}/v1beta", api_key=GEMINI_KEY)
    deployments = [_deployment("first", f"ollama_chat/{OLLAMA_MODEL}", world.stub_url), second]
    yield _routed(deployments, fallbacks=[{"first": ["second"]}])


@asynccontextmanager
async def router_of_one_model(world: World) -> AsyncIterator[Call]:
    """Yield a Router over one model twice, with ids of their own: its cheapest way.

    Without ids, or with two models, LiteLLM goes through its whole price list a dozen times a call.
    """
    one = _deployment("first", f"ollama_chat/{OLLAMA_MODEL}", world.stub_url)
    yield _routed([{**one, "model_info": {"id": identity}} for identity in ("one", "two")])


@asynccontextmanager
async def router_failing_over(world: World) -> AsyncIterator[Call]:
    """Yield a Router whose first deployment refuses every call, so that each one falls back."""
    deployments = [
        _deployment("first", f"ollama_chat/{BUSY}", world.stub_url),
        _deployment("second", f"ollama_chat/{OLLAMA_MODEL}", world.stub_url),
    ]
    yield _routed(deployments, fallbacks=[{"first": ["second"]}], num_retries=0, disable_cooldowns=True)


def _routed(deployments: list[dict[str, Any]], **options: Any) -> Call:
    from litellm import Router  # noqa: PLC0415

    asked = Router(model_list=deployments, **options)

    async def call(number: int) -> None:
        _check(await asked.acompletion(model="first", messages=wire_messages(number), timeout=TIMEOUT_S))

    return call


def _deployment(name: str, model: str, api_base: str, **options: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model, "api_base": api_base, **options}}


def _check(answer: Any) -> None:
    if not answer.choices[0].message.content:
        raise RuntimeError(f"LiteLLM gave no text: {answer}")
