"""A view of the ledger from outside, and services on stubs over real sockets."""

from collections.abc import AsyncIterator, Iterator

import pytest

from app.llm.testing import StubGemini, StubOllama
from tests.security.services import Stubs
from tests.support.ledger import GEMINI_KEY, Outside


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    ollama = StubOllama(models=("first", "library/x", "hf.co/org/model:tag"))
    with ollama, StubGemini(models=("second",), api_key=GEMINI_KEY) as gemini:
        yield Stubs(ollama, gemini)
