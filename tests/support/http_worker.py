"""A worker whose children send over HTTP: LiteLLM is loaded once, before the forks and before any event loop.

`python -m tests.support.http_worker`; otherwise as `tests.support.worker`.
"""

import os
from pathlib import Path
from typing import Any

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMError
from app.llm.limits import Limits
from app.llm.service import LLMService
from app.llm.types import LLMRequest, LLMResponse
from app.llm.wire.loading import load_litellm
from tests.support.ledger import request, settings_for
from tests.support.service import rig
from tests.support.worker import JOBS, Fate, serve


async def ask(*, url: str, key: str, folder: str, base_url: str, at: str = "", streams: bool = False) -> Any:
    """Call once, with the key as question as well; be killed at a point of the ledger's protocol, if one is named.

    One that `streams` is killed `at` its first delta, if so.
    """
    place, fate = Path(folder), Fate(at)
    (place / "pid").write_text(str(os.getpid()))
    values: dict[str, Any] = {"ollama_api_base": base_url, "spool_dir": place / "spool"}
    settings = settings_for(url, **values)
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    async with rig(url, client, **values) as rigged:
        rigged.ledger.before = fate.at_transitions("before")
        try:
            asked = request(key, idempotency_key=key)
            answer = await (_streamed(rigged.llm, asked, fate) if streams else rigged.llm.chat(asked))
        except LLMError as error:
            return {"error": error.code}
        return {"text": answer.text, "served_from": answer.served_from.value}


async def _streamed(llm: LLMService, asked: LLMRequest, fate: Fate) -> LLMResponse:
    async with llm.stream(asked) as stream:
        async for _ in stream:
            fate("first delta")
    return stream.response


if __name__ == "__main__":
    load_litellm()
    JOBS[ask.__name__] = ask
    serve()
