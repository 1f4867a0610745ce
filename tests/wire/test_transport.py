"""The HTTP of the lanes by itself: what no stub of a provider shows."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMUnavailable
from app.llm.limits import Limits
from app.llm.providers import Catalog
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubOllama
from app.llm.types import LLMProvider
from app.llm.wire.exchange import Exchange, Unreachable
from app.llm.wire.http import OneRequestHTTP
from app.llm.wire.lanes import Lanes
from app.llm.wire.loading import load_litellm
from tests.wire.conftest import Rig

ASKED = b'{"model": "llama3.2"}'
ANSWER = b'{"message": {"role": "assistant", "content": "Sealed."}, "done": true}'


def exchange(sends_begun: list[int]) -> Exchange:
    return Exchange(max_bytes=1000, on_send=lambda: sends_begun.append(1))


@pytest.fixture
async def http() -> AsyncIterator[OneRequestHTTP]:
    http = OneRequestHTTP()
    yield http
    await http.close()


async def test_whoever_repeats_a_request_of_the_same_attempt_is_refused(
    http: OneRequestHTTP, ollama: StubOllama
):
    """LiteLLM's own HTTP client does it when a connection closes before the headers."""
    ollama.script(Reply.raw(b"{}"), Reply.raw(b"{}"))
    begun: list[int] = []
    record = exchange(begun)
    await http.send(f"{ollama.base_url}/api/chat", {}, ASKED, record)
    with pytest.raises(RuntimeError, match="second request"):
        await http.send(f"{ollama.base_url}/api/chat", {}, ASKED, record)
    assert ollama.sends == len(begun) == 1


async def test_attempts_side_by_side_keep_their_own_records(http: OneRequestHTTP, ollama: StubOllama):
    async def attempt() -> Exchange:
        mine = exchange([])
        await http.send(f"{ollama.base_url}/api/chat", {}, ASKED, mine)
        return mine

    ollama.script(Reply.raw(b"first"), Reply.raw(b"second"), Reply.raw(b"third"))
    records = await asyncio.gather(*(attempt() for _ in range(3)))
    assert {record.body for record in records} == {b"first", b"second", b"third"}
    assert [(record.requests, record.written) for record in records] == [(1, True)] * 3


async def test_a_host_that_is_not_there_was_never_written_to(http: OneRequestHTTP, ollama: StubOllama):
    ollama.down()
    record = exchange([])
    with pytest.raises(Unreachable):
        await http.send(f"{ollama.base_url}/api/chat", {}, ASKED, record)
    assert (record.written, record.status, type(record.failure)) == (False, None, Unreachable)


async def test_no_more_connections_are_open_at_once_than_allowed(ollama: StubOllama):
    http = OneRequestHTTP(connections=2)
    url = f"{ollama.base_url}/api/chat"
    with ollama.hold():
        sends = [asyncio.create_task(http.send(url, {}, ASKED, exchange([]))) for _ in range(6)]
        await asyncio.to_thread(ollama.wait_for_sends, 2)
    await asyncio.gather(*sends)
    await http.close()
    assert (ollama.sends, ollama.max_in_flight) == (6, 2)


@pytest.mark.parametrize(
    ("environment", "base", "proxied"),
    [
        ({}, "http://api.example/v1", False),
        ({"http_proxy": "http://proxy:1"}, "http://api.example/v1", True),
        ({"http_proxy": "http://proxy:1", "no_proxy": "api.example"}, "http://api.example/v1", False),
        ({"http_proxy": "http://proxy:1"}, "https://api.example/v1", False),
        ({"http_proxy": "http://proxy:1"}, "http://127.0.0.1:11434", False),
        ({"http_proxy": "http://proxy:1"}, "http://localhost:11434", False),
        ({"http_proxy": "http://proxy:1"}, "http://[::1]:11434", False),
    ],
)
def test_a_proxy_is_looked_for_once_and_only_for_hosts_that_it_serves(
    environment: dict[str, str], base: str, proxied, monkeypatch: pytest.MonkeyPatch
):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines = Lanes.opened(
        load_settings(_env_file=None, ollama_api_base=base), load_litellm(), pytest.fail
    ).lines
    assert lines[LLMProvider.OLLAMA]._trust_env is proxied


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this host that nobody has signed, and its key."""
    if which("openssl") is None:
        pytest.skip("makes its certificate with the openssl command")
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    return made, key


@pytest.fixture
async def sealed_base(certificate: tuple[Path, Path]) -> AsyncIterator[str]:
    """The base of an Ollama that speaks TLS."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
        )
        writer.close()
        await writer.wait_closed()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def sealed_rig(base: str, stub: StubOllama, bundle: Path | None) -> Rig:
    settings = load_settings(_env_file=None, ollama_api_base=base, ca_bundle=bundle)
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    return Rig(stub, Catalog.from_settings(settings).pinned("ollama:llama3.2"), client)


async def test_a_certificate_that_nobody_vouches_for_gets_no_prompt(sealed_base: str, ollama: StubOllama):
    rig = await sealed_rig(sealed_base, ollama, None)
    with pytest.raises(LLMUnavailable, match="set LLM_CA_BUNDLE") as caught:
        await rig.send()
    await rig.client.close()
    assert (caught.value.possibly_paid, caught.value.retryable) == (False, False)


async def test_a_certificate_in_the_bundle_is_trusted(
    sealed_base: str, ollama: StubOllama, certificate: tuple[Path, Path]
):
    rig = await sealed_rig(sealed_base, ollama, certificate[0])
    reply = await rig.send()
    await rig.client.close()
    assert [part.text for part in reply.parts] == ["Sealed."]
