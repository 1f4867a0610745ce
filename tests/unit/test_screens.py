"""The screens of the documentation are what the commands print."""

import os

from tools import screens


def test_the_committed_screens_are_current_and_always_the_same() -> None:
    text, before = screens.PAGE.read_text(encoding="utf-8"), dict(os.environ)
    assert screens.renewed(text) == text, "run `python -m tools.screens`"
    assert dict(os.environ) == before
