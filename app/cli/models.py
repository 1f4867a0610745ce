"""`signalbox models`: which models there are, and what they can do."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.config import Config
from app.cli.faults import UsageFault
from app.cli.options import AsJson
from app.cli.output import emit_json, emit_table, note, status_line

if TYPE_CHECKING:
    from app.diagnosis.inventory import Inventory, Listed, Stock

_ABLE = {
    "tools": "supports_tools",
    "JSON": "supports_json",
    "schema": "supports_json_schema",
    "images": "supports_vision",
    "documents": "supports_documents",
    "audio": "supports_audio",
    "video": "supports_video",
}
"""Words for capabilities, by the field of the caps."""


def models(
    *,
    config: Config = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For each provider.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """List the candidates with what they can do, then the models that each provider has.

    Providers are asked for their lists, which costs nothing; one that cannot be asked is told on stderr. With
    LLM_LOCAL_ONLY only local ones are.

    Example: signalbox models --json
    """
    if not timeout > 0:  # NaN neither
        raise UsageFault("--timeout: more than 0 seconds")
    with status_line("asking the providers"):
        there = asyncio.run(_inventory(config, timeout))
    if as_json:
        emit_json(
            {"candidates": [*map(_candidate, there.candidates)], "providers": [*map(_stock, there.stocks)]}
        )
        return
    for stock in there.stocks:
        if stock.unknown is not None:
            note(f"{stock.provider}: {stock.unknown}")
    emit_table(("candidate", "there", "window", "can", "local", "profiles"), map(_row, there.candidates))
    rows = [
        (stock.provider, each.names[0], _count(each.context_tokens), _size(each.size_bytes))
        for stock in there.stocks
        for each in stock.models
    ]
    if rows:
        emit_table(("provider", "model", "window", "size"), rows, title="What the providers have:")


async def _inventory(config: str | None, limit_s: float) -> "Inventory":
    from app.diagnosis.inventory import inventory  # noqa: PLC0415  # --help is fast
    from app.llm.settings import load_settings  # noqa: PLC0415

    given = {"config_file": config} if config else {}
    return await inventory(load_settings(**given), limit_s=limit_s)


def _row(listed: "Listed") -> tuple[object, ...]:
    candidate, caps = listed.candidate, listed.caps
    can = ", ".join(_can(listed)) + (" (assumed)" if caps.assumed else "")
    profiles = ", ".join(listed.profiles)
    local = "yes" if candidate.local else "no"
    return candidate.name, listed.there, _count(caps.max_context_tokens), can, local, profiles


def _can(listed: "Listed") -> list[str]:
    return [word for word, name in _ABLE.items() if getattr(listed.caps, name)]


def _candidate(listed: "Listed") -> dict[str, Any]:
    return {
        "name": listed.candidate.name,
        "there": {"yes": True, "no": False, "unknown": None}[listed.there],
        "local": listed.candidate.local,
        "usable": listed.candidate.usable,
        "enabled": listed.candidate.enabled,
        "profiles": listed.profiles,
        "caps": listed.caps.model_dump(mode="json", exclude={"schemas", "preferred_for_profiles"}),
    }


def _stock(stock: "Stock") -> dict[str, Any]:
    return {
        "provider": stock.provider,
        "api_base": stock.api_base,
        "unknown": stock.unknown,
        "models": [
            {"name": each.names[0], "context_tokens": each.context_tokens, "size_bytes": each.size_bytes}
            for each in stock.models
        ],
    }


def _count(tokens: int | None) -> str | None:
    return None if tokens is None else f"{tokens:,}"


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / 2**30:,.1f} GiB"
