"""The competitors: LiteLLM's own entry points against the same stub, in a process of their own.

They get what we get: a warm-up, frozen garbage, the same prompt. Their defaults stay, except where a default would
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
    """Yield a Router that chooses between two deployments of one model."""
    from litellm import Router  # noqa: PLC0415

    asked = Router(model_list=[_deployment("fast", OLLAMA_MODEL, world, name) for name in ("one", "two")])

    async def call(number: int) -> None:
        _check(await asked.acompletion(model="fast", messages=wire_messages(number), timeout=TIMEOUT_S))

    yield call


@asynccontextmanager
async def router_failing_over(world: World) -> AsyncIterator[Call]:
    """Yield a Router whose first deployment refuses every call, so that each one falls back."""
    from litellm import Router  # noqa: PLC0415

    asked = Router(
        model_list=[
            _deployment("first", BUSY, world, "one"),
            _deployment("second", OLLAMA_MODEL, world, "two"),
        ],
        fallbacks=[{"first": ["second"]}],
        num_retries=0,
        disable_cooldowns=True,
    )

    async def call(number: int) -> None:
        _check(await asked.acompletion(model="first", messages=wire_messages(number), timeout=TIMEOUT_S))

    yield call


def _deployment(name: str, model: str, world: World, identity: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "model_info": {"id": identity},
        "litellm_params": {"model": f"ollama_chat/{model}", "api_base": world.stub_url},
    }


def _check(answer: Any) -> None:
    if not answer.choices[0].message.content:
        raise RuntimeError(f"LiteLLM gave no text: {answer}")
