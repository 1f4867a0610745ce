from collections.abc import Iterator

import pytest

from tests.support.doctor import House, house


@pytest.fixture
def at_home(sqlite_url: str) -> Iterator[House]:
    """All works."""
    with house(sqlite_url) as made:
        yield made
