"""Where the time of one call goes: each step by itself, in microseconds of CPU."""

import hashlib
from itertools import count
from typing import Any

import orjson
import zstandard

from app.core.ids import new_id
from app.llm import LLMService
from app.llm.fingerprint import prompt_sha256, request_sha256
from app.llm.persistence.codec import decode_response, encode_request, encode_response
from app.llm.redaction import Redactor
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMResponse, ServedFrom
from bench.cases import bare, ours
from bench.measure import Call, freeze
from bench.probes.compute import explained_anew
from bench.timing import best_async_us, best_us
from bench.world import GEMINI_KEY, World

_numbers = count(1)


async def steps(world: World) -> dict[str, Any]:
    """Return the microseconds of each step, in the order of a call."""
    figures: dict[str, float] = {}
    async with ours.service(world, client=ScriptedClient(), persist_runs=False) as llm:
        asked = ours.request(1, key=False)
        answer = await llm.chat(asked)
        freeze()
        figures |= _pure(llm, answer)
        figures["whole call, nothing sent, nothing recorded"] = await _chat_us(llm, key=False)
    without = figures["whole call, nothing sent, nothing recorded"]
    async with ours.service(world, client=ScriptedClient(), database_url=world.file("steps")) as llm:
        figures["claim + finish, SQLite, beyond that"] = await _chat_us(llm) - without
    if world.postgres_url is not None:
        async with (
            world.database() as url,
            ours.service(world, client=ScriptedClient(), database_url=url) as llm,
        ):
            figures["claim + finish, PostgreSQL, beyond that"] = await _chat_us(llm) - without
    async with bare.raw(world) as call:
        figures["raw aiohttp round trip"] = await _call_us(call)
    for name, case in (("Ollama", ours.unpersisted), ("Gemini", ours.gemini)):
        async with case(world) as call:
            title = f"{name}: render, slot, deadline, send, parse, beyond nothing sent"
            figures[title] = await _call_us(call) - without
    return figures


def _pure(llm: LLMService, answer: LLMResponse) -> dict[str, float]:
    asked = ours.request(1)
    prompt = prompt_sha256(asked)
    said, text = encode_response(answer), encode_request(asked)
    packed = zstandard.ZstdCompressor(level=1).compress(text)
    compressor, unpacker = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    redact = Redactor(secrets=(GEMINI_KEY,))
    fields = {"run_id": answer.run_id, "route": (), "served_from": ServedFrom.REPLAY}
    return {
        "request object, 1 KB prompt": best_us(lambda: ours.request(1)),
        "id": best_us(new_id),
        "prompt_sha256, 1 KB": best_us(lambda: prompt_sha256(asked)),
        "  of it SHA-256 alone": best_us(lambda: hashlib.sha256(text).hexdigest()),
        "request_sha256, prompt known": best_us(lambda: request_sha256(asked, prompt=prompt)),
        "route, remembered": best_us(lambda: llm.explain(asked)),
        "route, made anew": best_us(lambda: explained_anew(llm, asked)),
        "response object, copied": best_us(lambda: answer.model_copy(update={"persisted": True})),
        "request to bytes": best_us(lambda: encode_request(asked)),
        "response to bytes": best_us(lambda: encode_response(answer)),
        "response from bytes": best_us(lambda: decode_response(said, **fields)),
        "orjson of the request's bytes": best_us(lambda: orjson.loads(text)),
        "zstd level 1, 1 KB": best_us(lambda: compressor.compress(text)),
        "zstd back": best_us(lambda: unpacker.decompress(packed)),
        "redaction of one short text": best_us(lambda: redact("ollama:llama3.2 refused the connection")),
    }


async def _chat_us(llm: LLMService, *, key: bool = True) -> float:
    return await best_async_us(
        lambda: llm.chat(ours.request(1_000_000 + next(_numbers), key=key)), round_s=0.3
    )


async def _call_us(call: Call) -> float:
    return await best_async_us(lambda: call(2_000_000 + next(_numbers)), round_s=0.3)
