"""`LLM_LOCAL_ONLY=true`: looking around opens no socket but to the hosts that are named as local."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import StubOllama
from tests.support import programs
from tests.support.ledger import ROOT

LOOKS = """
import json, socket, sys
outside = []

def guard(event, args):
    if event not in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        return
    target = args[1] if event in {"socket.connect", "socket.sendto"} else args[0]
    host = target[0] if isinstance(target, tuple) else target
    if host != "127.0.0.1":
        outside.append([event, str(host)])
        raise PermissionError(f"{event} to {host}")

sys.addaudithook(guard)
from app.cli import main
codes = [main(args) for args in json.loads(sys.argv[1])]
print(json.dumps({"codes": codes, "outside": outside}), file=sys.stderr)
"""
COMMANDS = [["doctor"], ["models"], ["warmup"], ["pull", "llama3.2"]]


def looks(stub: StubOllama, folder: Path, local_only: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    given = {
        "LLM_LOCAL_ONLY": local_only,
        "LLM_LOCAL_HOSTS": "127.0.0.1",
        "LLM_OLLAMA_API_BASE": stub.base_url,
        "LLM_PROFILE_BALANCED": "ollama,gemini,openai,anthropic,groq",
        **{f"LLM_{name}_API_KEY": "a-key-0123456789" for name in ("GEMINI", "OPENAI", "ANTHROPIC", "GROQ")},
        **{f"{kind}_proxy": "http://proxy.invalid:3128" for kind in ("http", "https", "all")},
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run if local_only == "true" else programs.run  # loading opens no socket either
    done = run(
        [sys.executable, "-c", LOOKS, json.dumps(COMMANDS)],
        env={**clean, **given}, cwd=folder, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return told


@pytest.mark.parametrize("local_only", ["true", "false"])
def test_no_socket_leaves_the_local_hosts(tmp_path: Path, local_only: str):
    """Without the switch the same commands do try: the guard sees what would leave."""
    with StubOllama(models=("llama3.2",)) as stub:
        seen = looks(stub, tmp_path, local_only)
        paths = {each.path for each in stub.requests}
    assert {"/api/version", "/api/tags", "/api/show", "/api/generate", "/api/pull"} <= paths
    assert (seen["outside"] == []) == (local_only == "true")
    if local_only == "true":
        assert seen["codes"] == [0, 0, 0, 0]
