"""Whether the ledger's database can be reached and used: its tables, its clock, and on a server what our role may do."""

from app.bootstrap import checked_url, database_name
from app.db.engine import sqlite_file
from app.diagnosis.findings import Finding, Tell
from app.llm.persistence.health import Health
from app.llm.persistence.health import look as looked
from app.llm.persistence.schema import is_file
from app.llm.ports import Clock
from app.llm.settings import LLMSettings

SUBJECTS = ("database", "tables", "clock")
RIGHTS = "rights"
"""A subject where the database is a server."""
REMEDY = "start the database, or set LLM_DATABASE_URL to one that can be reached"
DOUBTFUL_S, WRONG_S = 2.0, 30.0
"""Seconds between the two clocks from which it is a warning, and from which it is a fault."""
_MIGRATE = "signalbox migrate"


async def look(tell: Tell, settings: LLMSettings, clock: Clock, limit_s: float) -> None:
    """Tell how the database is; one that is not there is not made."""
    url, name = checked_url(settings), database_name(settings)
    migrates = settings.auto_migrate if settings.auto_migrate is not None else is_file(url)
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        tell(_missing(f"{file} is yet to be made", migrates=migrates, subject="database"))
        return
    health = await looked(url, timeout_s=min(limit_s, settings.ledger_timeout_s), clock=clock)
    if health.read_only:
        tell(
            Finding.fault("database", f"{name} takes no writes", "name a primary server in LLM_DATABASE_URL")
        )
    else:
        tell(Finding.ok("database", name))
    tell(_tables(health, migrates=migrates))
    tell(_clock(health))
    if health.role is not None and health.schema == "current":
        tell(_rights(health))


def _tables(health: Health, *, migrates: bool) -> Finding:
    if health.schema == "current":
        return Finding.ok("tables", "those of this version")
    if health.schema == "newer":
        said = "a newer version of signalbox has migrated them"
        return Finding.fault(
            "tables", said, "upgrade signalbox, or name another database in LLM_DATABASE_URL"
        )
    said = (
        "they are yet to be made"
        if health.schema == "empty"
        else "they are yet to be brought to this version"
    )
    return _missing(said, migrates=migrates, subject="tables")


def _missing(said: str, *, migrates: bool, subject: str) -> Finding:
    if migrates:
        return Finding.warning(subject, f"{said}; the next start does that", f"or do it now: {_MIGRATE}")
    return Finding.fault(subject, said, _MIGRATE)


def _clock(health: Health) -> Finding:
    apart_s = max(abs(health.ahead_s) - health.took_s / 2, 0.0)
    if apart_s < DOUBTFUL_S:
        return Finding.ok("clock", f"that of the database is {apart_s:.1f} s from this one")
    way = "ahead of" if health.ahead_s > 0 else "behind"
    kind = Finding.fault if apart_s >= WRONG_S else Finding.warning
    said = (
        f"that of the database is {apart_s:,.1f} s {way} this one: runs sort, and reports count days, by both"
    )
    return kind("clock", said, "let both hosts follow one time server (NTP)")


def _rights(health: Health) -> Finding:
    if not health.lacking:
        return Finding.ok(RIGHTS, f"{health.role} may read and write all tables")
    said = "; ".join(f"{', '.join(rights)} on {table}" for table, rights in health.lacking.items())
    grants = " ".join(
        f"GRANT {', '.join(rights)} ON {table} TO {health.role};" for table, rights in health.lacking.items()
    )
    return Finding.fault(RIGHTS, f"{health.role} lacks {said}", f"as the owner of the tables: {grants}")
