"""Reads an age such as `24h`, one way for every command that asks for one."""

import re

from app.cli.faults import UsageFault

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MAX_DAYS = 36_500


def seconds(age: str, option: str) -> float:
    """Return an age in seconds: `90s`, `30m`, `24h`, `30d`, `2w`.

    Raises:
        UsageFault: It has another form, or is beyond a hundred years; the text names `option`.
    """
    said = re.fullmatch(r"(\d{1,9})([smhdw])", age.strip().lower(), re.ASCII)
    if said is None:
        raise UsageFault(f"{option}: {age!r} is no age; write 90s, 30m, 24h, 30d or 2w")
    total_s = float(said[1]) * _SECONDS[said[2]]
    if total_s > _MAX_DAYS * 86_400:
        raise UsageFault(f"{option}: {age!r} is more than a hundred years")
    return total_s
