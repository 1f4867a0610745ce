"""What every case runs on: the stub's address, a directory, a PostgreSQL; and the same prompts for everybody."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

OLLAMA_MODEL = "llama3.2"
GEMINI_MODEL = "gemini-2.5-flash"
GEMINI_KEY = "bench-key"
WORKSPACE = "bench"
KILOBYTE = 1024

_SENTENCE = "The 06:52 to Bergen waits at the home signal until the points ahead are locked and proved. "


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where a child finds what the runner has started; crosses to it as JSON."""

    stub_url: str
    directory: str
    postgres_url: str | None = None
    """Of a server on which databases may be created."""
    postgres_pid: int | None = None
    """Parent of the server's processes, where the server is ours and its CPU can be read."""
    postgres_fault: str = "PostgreSQL was not started"

    def file(self, name: str) -> str:
        """Return the URL of a SQLite file of its own."""
        return f"sqlite+aiosqlite:///{Path(self.directory) / name}.db"

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Yield the URL of a new PostgreSQL database; it is dropped at the end.

        Raises:
            RuntimeError: There is no server, and why.
        """
        import asyncpg  # noqa: PLC0415  # a child that needs no PostgreSQL loads no driver
        from sqlalchemy.engine import make_url  # noqa: PLC0415

        if self.postgres_url is None:
            raise RuntimeError(self.postgres_fault)
        url = make_url(self.postgres_url)
        name = f"signalbox_bench_{uuid.uuid4().hex[:12]}"
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        server = await asyncpg.connect(dsn)
        try:
            await server.execute(f"CREATE DATABASE {name}")
            try:
                yield url.set(database=name).render_as_string(hide_password=False)
            finally:
                await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await server.close()


def prompt(number: int, size: int = KILOBYTE) -> str:
    """Return a text of `size` bytes that no other number has."""
    head = f"Call {number}. "
    body = _SENTENCE * (size // len(_SENTENCE) + 1)
    return (head + body)[:size]


def wire_messages(number: int, size: int = KILOBYTE) -> list[dict[str, str]]:
    """Return the same prompt as those who are asked without our types take it."""
    return [{"role": "user", "content": prompt(number, size)}]
