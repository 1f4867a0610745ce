"""Three stages inside the caller's unit of work, which fails the first time: what is paid again, and what is not.

`.venv/bin/python examples/pipeline.py`: the ledger commits on connections of its own (autonomous). The caller's rollback leaves
the answers alone; the second try replays all three.
`.venv/bin/python examples/pipeline.py --joined`: the ledger writes in the caller's transaction. The rollback takes the record of
three paid calls along; the second try pays for them again.
"""

import argparse

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.bootstrap import build_llm_service
from app.db.engine import build_engine
from app.db.unit_of_work import unit_of_work
from app.llm import LLMRequest, LLMService, Message, ResponseFormat

from provider import provider, run

LETTER = "Nordlys Rail AS writes: the track sensors arrived broken. We want our 1480.50 EUR back."
KIND = ResponseFormat.of_schema(
    {
        "type": "object",
        "properties": {"kind": {"enum": ["invoice", "complaint", "question"]}},
        "required": ["kind"],
    }
)
TABLES = sa.MetaData()
LETTERS = sa.Table(
    "letters",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("reply", sa.Text),
)
OWN_DATABASE = "sqlite+aiosqlite:///letters.db"
"""The caller's, where it is not the ledger's."""


class BadDay(Exception):
    """The caller's own code fails after the stages."""


async def ask(llm: LLMService, key: str, prompt: str, form: ResponseFormat | None = None) -> str:
    """Return the answer of one stage; its key keeps it from being paid twice."""
    stage = key.rpartition("/")[2]
    with llm.scope(stage=stage):
        reply = await llm.chat(
            LLMRequest(
                messages=(Message.user(prompt),), profile="fast", response_format=form, idempotency_key=key
            )
        )
    print(f"  {stage}: {reply.served_from}, {reply.text}")
    return reply.text


async def handle(llm: LLMService, own: AsyncEngine, *, joined: bool, fails: bool) -> None:
    """Read a letter in three stages and store what came of it, in one unit of work."""
    async with unit_of_work(own) as session:
        await session.execute(sa.delete(LETTERS).where(LETTERS.c.id == 1))
        stages = llm.joined(session) if joined else llm
        name = f"letter-1/{'joined' if joined else 'autonomous'}"
        with stages.scope(workspace_id="examples", pipeline_run_id=name):
            kind = await ask(stages, f"{name}/classify", f"What is this letter? {LETTER}", KIND)
            summary = await ask(stages, f"{name}/summarise", f"Summarise in one sentence: {LETTER}")
            reply = await ask(stages, f"{name}/reply", f"Answer this {kind} politely: {summary}")
        await session.execute(sa.insert(LETTERS).values(id=1, kind=kind, reply=reply))
        if fails:
            raise BadDay
        await session.commit()


async def main(*, joined: bool) -> None:
    """Try twice: the first unit of work is rolled back."""
    with provider() as settings:
        async with build_llm_service(settings) as llm:
            own = build_engine(settings.database_url.get_secret_value() if joined else OWN_DATABASE)
            try:
                async with own.begin() as connection:
                    await connection.run_sync(TABLES.create_all)
                for fails in (True, False):
                    print(f"{'first' if fails else 'second'} try, {'joined' if joined else 'autonomous'}:")
                    try:
                        await handle(llm, own, joined=joined, fails=fails)
                        print("committed")
                    except BadDay:
                        print("rolled back")
            finally:
                await own.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--joined", action="store_true", help="let the ledger write in the caller's transaction"
    )
    run(main(joined=parser.parse_args().joined))
