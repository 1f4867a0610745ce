"""`LLM_LOCAL_ONLY=true`: a process that calls in every way opens no socket but to the hosts that are named as local."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import Reply, StubOllama
from tests.support import programs
from tests.support.ledger import ROOT

CALLS = """
import asyncio, json, socket, sys
named, outside = set(json.loads(sys.argv[1])), []
resolve = socket.getaddrinfo

def guard(event, args):
    if event not in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        return
    target = args[1] if event in {"socket.connect", "socket.sendto"} else args[0]
    host = target[0] if isinstance(target, tuple) else target
    if host not in named:
        outside.append([event, str(host)])
        raise PermissionError(f"{event} to {host}")

sys.addaudithook(guard)
# The name of a machine in the house, which no server of names has to know.
socket.getaddrinfo = lambda host, *rest, **more: resolve("127.0.0.1" if host == "gpu.house" else host, *rest, **more)

from app.bootstrap import build_llm_service
from app.llm import LLMError, LLMProfile, LLMRequest, Message

async def ended(llm, **asked):
    request = LLMRequest(messages=(Message.user("Hello"),), **asked)
    try:
        answer = await llm.chat(request)
    except LLMError as error:
        return {"error": error.code, "sends": len(error.attempts), "route": list(error.facts.get("route", ()))}
    return {"text": answer.text, "route": list(answer.route)}

async def main():
    told = []
    async with build_llm_service() as llm:
        await llm.warm_up()
        for asked in json.loads(sys.argv[2]):
            told.append(await ended(llm, **asked))
    print(json.dumps({"told": told, "outside": outside}))

asyncio.run(main())
"""
CLOUD = ("gemini:g", "openai:gpt-4.1", "anthropic:claude-haiku-4-5", "groq:openai/gpt-oss-20b")
ASKED: list[dict[str, Any]] = [
    {},
    {"profile": "fast"},
    *({"model": name} for name in CLOUD),
    {"model": "ollama:big-cloud"},
]


def calls(
    stub: StubOllama, folder: Path, *named: str, by: Callable[..., Any] = programs.run, **variables: str
) -> dict[str, Any]:
    """Make the calls in a process of its own, whose sockets may go to `named` and to nobody else."""
    port = stub.base_url.rpartition(":")[2]
    given = {
        "LLM_LOCAL_ONLY": "true",
        "LLM_LOCAL_HOSTS": ",".join(named),
        "LLM_OLLAMA_API_BASE": f"http://{named[0]}:{port}",
        "LLM_DEFAULT_WORKSPACE": "w1",
        "LLM_PROFILE_BALANCED": "ollama,gemini,openai,anthropic,groq",
        "LLM_PROFILE_FAST": "groq,anthropic,ollama",
        **{f"LLM_{name}_API_KEY": "a-key" for name in ("GEMINI", "OPENAI", "ANTHROPIC", "GROQ")},
        **{f"{kind}_proxy": "http://proxy.invalid:3128" for kind in ("http", "https", "all")},
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    done = by(
        [sys.executable, "-c", CALLS, json.dumps([*named, "127.0.0.1"]), json.dumps(ASKED)],
        env={**clean, **given}, cwd=folder, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("host", ["127.0.0.1", "gpu.house"])
def test_no_socket_leaves_the_named_hosts_and_the_route_says_why(tmp_path: Path, host: str):
    """A proxy, which the environment names, is no local host; once with nothing loaded: loading opens none either."""
    with StubOllama(models=("llama3.2",)) as stub:
        stub.always(Reply.text("from here"))
        seen = calls(stub, tmp_path, host, by=subprocess.run if host == "gpu.house" else programs.run)
    assert seen["outside"] == []
    balanced, fast, *pinned = seen["told"]
    assert (balanced["text"], fast["text"]) == ("from here", "from here")
    assert stub.sends == 2
    reasons = {entry["provider"]: entry["reason"] for entry in balanced["route"] if not entry["kept"]}
    assert reasons == dict.fromkeys(("gemini", "openai", "anthropic", "groq"), "local_only")
    for each in pinned:
        assert (each["error"], each["sends"]) == ("no_candidate", 0)
        assert each["route"][0]["reason"] == "local_only"


def test_a_local_candidate_that_fails_sends_nothing_elsewhere(tmp_path: Path):
    with StubOllama(models=("llama3.2",)) as stub:
        stub.always(Reply.status(500))
        seen = calls(stub, tmp_path, "127.0.0.1", LLM_RETRY_POSSIBLY_PAID="fallback_only")
    assert seen["outside"] == []
    assert [each.get("error") for each in seen["told"][:2]] == ["unavailable", "unavailable"]
    assert stub.sends == 2


def test_the_guard_sees_what_would_leave(tmp_path: Path):
    """Without the switch the same process does try."""
    with StubOllama(models=("llama3.2",)) as stub:
        stub.always(Reply.status(500))
        seen = calls(
            stub, tmp_path, "127.0.0.1", LLM_LOCAL_ONLY="false", LLM_RETRY_POSSIBLY_PAID="fallback_only"
        )
    assert seen["outside"] != []
