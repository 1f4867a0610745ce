"""The PostgreSQL of a run: LLM_BENCH_DATABASE_URL, else a server of our own that flushes like one in production."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from bench.machine import pin, two_cores
from tools.postgres import Postgres

VARIABLE = "LLM_BENCH_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where databases may be created; or why nowhere."""

    url: str | None = None
    pid: int | None = None
    version: str = "none"
    fault: str = ""


@contextmanager
def server(say: Callable[[str], None]) -> Iterator[Server]:
    """Yield a server; one of our own is gone at the end. Without any, the cells that need one say why."""
    if given := os.environ.get(VARIABLE):
        yield Server(url=given, version=_version_of_given(given))
        return
    with ExitStack() as stack:
        try:
            own = Postgres(durable=True)
            stack.callback(own.close)
            own.start()
            pin(own.pid, two_cores()[1])
            found = Server(url=own.url(), pid=own.pid, version=_version(own.url()))
        except (OSError, RuntimeError, KeyError) as error:  # not installed, no such user, no room
            found = Server(fault=f"PostgreSQL could not be started: {error}")
            say(found.fault)
        yield found


def _version_of_given(url: str) -> str:
    try:
        return _version(url)
    except (OSError, asyncpg.PostgresError, ArgumentError) as error:
        advice = "write postgresql+asyncpg://USER:PASSWORD@HOST/NAME, of a role that may create databases"
        raise SystemExit(f"{VARIABLE}: cannot connect ({type(error).__name__}): {advice}") from None


def _version(url: str) -> str:
    async def ask() -> str:
        dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn)
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    return asyncio.run(ask())
