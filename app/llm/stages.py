"""What a workflow asks of the service beside single calls: whose its stages are, and many requests at once, in order."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sized
from contextlib import aclosing
from typing import Literal, overload

from app.llm.context import scope
from app.llm.errors import LLMError
from app.llm.types import LLMRequest, LLMResponse

CONCURRENCY = 8
"""Calls of one `map` under way at once: as many sends as Ollama gets by default, so that none waits for a slot."""

Requests = Iterable[LLMRequest] | AsyncIterable[LLMRequest]
Outcome = LLMResponse | LLMError
Ask = Callable[[LLMRequest], Awaitable[LLMResponse]]
Progress = Callable[[int, int, int | None], None]
"""Told of every call that ends: calls that ended, those of them that failed, and all; None if nobody knows how many."""


class Stages(ABC):
    """Scopes and many calls, for who answers one."""

    scope = staticmethod(scope)

    @abstractmethod
    async def chat(self, request: LLMRequest) -> LLMResponse:
        """Return the answer to one request."""

    @overload
    async def map(
        self,
        requests: Requests,
        *,
        concurrency: int = CONCURRENCY,
        on_error: Literal["raise"] = "raise",
        progress: Progress | None = None,
    ) -> list[LLMResponse]: ...

    @overload
    async def map(
        self,
        requests: Requests,
        *,
        concurrency: int = CONCURRENCY,
        on_error: Literal["return"],
        progress: Progress | None = None,
    ) -> list[Outcome]: ...

    async def map(
        self,
        requests: Requests,
        *,
        concurrency: int = CONCURRENCY,
        on_error: Literal["raise", "return"] = "raise",
        progress: Progress | None = None,
    ) -> list[LLMResponse] | list[Outcome]:
        """Return the answers to many requests, in their order.

        Each request is a call of its own, with its own deadline, which runs while it waits for a slot of a provider.
        Requests are taken one by one as calls end, at most `concurrency` ahead of the answers, so that they may be read
        from a file or made on the way. Whoever cancels this cancels what is under way.

        Args:
            requests: Any iterable or asynchronous iterable.
            concurrency: Calls under way at once, 1 or more.
            on_error: `raise` cancels what is under way after the first failure and raises its error; answers that were
                there already stay in the ledger. `return` puts the error where the answer would have been.
            progress: Called on the event loop whenever a call has ended, with (ended, failed, total); the total is None
                for requests without a length.

        Raises:
            LLMError: The first failure, with `raise`.
            ValueError: `concurrency` is less than 1, or `on_error` is another word.
        """
        if on_error not in {"raise", "return"}:
            raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        total = len(requests) if isinstance(requests, Sized) else None
        outcomes: dict[int, Outcome] = {}
        failed = 0

        def ended(number: int, outcome: Outcome) -> None:
            nonlocal failed
            if isinstance(outcome, LLMError):
                if on_error == "raise":
                    raise outcome
                failed += 1
            outcomes[number] = outcome
            if progress is not None:
                progress(len(outcomes), failed, total)

        count = await each_answered(self.chat, requests, ended, concurrency=concurrency)
        return [outcomes[number] for number in range(count)]


async def each_answered(
    ask: Ask, requests: Requests, ended: Callable[[int, Outcome], None], *, concurrency: int
) -> int:
    """Ask for every request and hand each outcome, as it comes, to `ended`; return how many there were.

    Nothing is kept of what was handed over. An exception of `ended`, of the requests or of `ask`, other than an
    `LLMError`, ends the rest.

    Args:
        ask: Answers one request.
        requests: Taken one by one, never more than `concurrency` ahead.
        ended: Gets the number of a request, from 0, and its answer or error.
        concurrency: Requests under way at once, 1 or more.

    Raises:
        ValueError: `concurrency` is less than 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; at least one call must be under way")
    slots, number = asyncio.Semaphore(concurrency), 0

    async def answer(number: int, request: LLMRequest) -> None:
        try:
            outcome: Outcome = await ask(request)
        except LLMError as error:
            outcome = error
        ended(number, outcome)
        slots.release()

    try:
        async with asyncio.TaskGroup() as group, aclosing(_one_by_one(requests)) as taken:
            await slots.acquire()
            async for request in taken:
                group.create_task(answer(number, request))
                number += 1
                await slots.acquire()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return number


async def _one_by_one(requests: Requests) -> AsyncGenerator[LLMRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
