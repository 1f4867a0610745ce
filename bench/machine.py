"""The facts beside every figure: which machine in general terms, which versions, what a flush to the disk takes."""

import os
import platform
import resource
import sqlite3
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLUSHES = 200
_BLOCK = 4096
_PACKAGES = ("litellm", "aiohttp", "sqlalchemy", "asyncpg", "orjson", "pydantic-ai-slim")


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge the figures; nothing that names the host or a path."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "lane": os.environ.get("LLM_LITELLM_LANE", "default"),
        "versions": {**{name: version(name) for name in _PACKAGES}, "SQLite": sqlite3.sqlite_version},
    }


def flush_ms(directory: str) -> dict[str, float]:
    """Return the median and the 99th percentile of writing 4 KB and waiting for the disk."""
    file = Path(directory) / "flush"
    took_ms = []
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(FLUSHES):
            began_s = time.perf_counter()
            os.pwrite(descriptor, os.urandom(_BLOCK), 0)
            os.fdatasync(descriptor)
            took_ms.append((time.perf_counter() - began_s) * 1000)
    finally:
        os.close(descriptor)
        file.unlink()
    took_ms.sort()
    return {"p50_ms": took_ms[len(took_ms) // 2], "p99_ms": took_ms[int(len(took_ms) * 0.99)]}


def pin(process_id: int, core: int | None) -> None:
    """Keep every thread of a process on one core, where there are two or more."""
    if core is None:
        return
    for task in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def two_cores() -> tuple[int | None, int | None]:
    """Return a core for the client and one for everybody it talks to; None and None where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def allow_many_files() -> None:
    """Let this process have as many connections as the system allows; the usual limit is 1,024 with everything."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
