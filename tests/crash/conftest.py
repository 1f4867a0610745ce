"""Every test of this folder is run again for each round that SIGNALBOX_ROUNDS asks for."""

import pytest

from tests.support.rounds import ROUNDS


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest) -> int:
    """Which of the rounds this is, for whoever wants another chance in each."""
    return int(getattr(request, "param", 0))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat it, where there is more than one round."""
    if ROUNDS > 1:
        metafunc.parametrize(
            "turn", range(ROUNDS), indirect=True, ids=[f"round {n + 1}" for n in range(ROUNDS)]
        )
