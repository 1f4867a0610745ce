"""A worker whose children send over HTTP: LiteLLM is loaded once, before the forks and before any event loop.

`python -m tests.support.http_worker`; otherwise as `tests.support.worker`.
"""

import os
from pathlib import Path
from typing import Any

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMError
from app.llm.limits import Limits
from app.llm.wire.loading import load_litellm
from tests.support.ledger import request, settings_for
from tests.support.service import rig
from tests.support.worker import JOBS, Fate, serve


async def ask(*, url: str, key: str, folder: str, base_url: str, at: str = "") -> Any:
    """Call once, with the key as question as well; be killed at a point of the ledger's protocol, if one is named."""
    place, fate = Path(folder), Fate(at)
    (place / "pid").write_text(str(os.getpid()))
    values: dict[str, Any] = {"ollama_api_base": base_url, "spool_dir": place / "spool"}
    settings = settings_for(url, **values)
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    async with rig(url, client, **values) as rigged:
        rigged.ledger.before = fate.at_transitions("before")
        try:
            answer = await rigged.llm.chat(request(key, idempotency_key=key))
        except LLMError as error:
            return {"error": error.code}
        return {"text": answer.text, "served_from": answer.served_from.value}


if __name__ == "__main__":
    load_litellm()
    JOBS[ask.__name__] = ask
    serve()
