"""Which lane a call goes by: the dialect unless another is set, and acompletion, said aloud, where it cannot be had."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMInternal
from app.llm.limits import Limits
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire import rendering
from app.llm.wire.acompletion import AcompletionLane
from app.llm.wire.dialect import DialectLane
from app.llm.wire.lanes import Lanes
from app.llm.wire.loading import load_litellm
from tests.wire.conftest import Rig


def lanes_of(client: LiteLLMClient) -> set[type]:
    assert client._lanes is not None
    return {type(client._lanes.of[provider]) for provider in (LLMProvider.OLLAMA, LLMProvider.GEMINI)}


async def test_the_dialect_is_the_lane_of_both_and_leaves_the_wrapper_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    async def wrapper(**_: Any) -> None:
        raise AssertionError("acompletion was called")

    monkeypatch.setattr(load_litellm(), "acompletion", wrapper)
    assert lanes_of(rig.client) == {DialectLane}
    assert (await rig.send()).parts


@pytest.mark.parametrize("overrides", [{"litellm_lane": "acompletion"}])
async def test_the_setting_sends_both_through_the_wrapper(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    wrapped: list[str] = []
    litellm = load_litellm()
    real = litellm.acompletion

    async def wrapper(**options: Any) -> Any:
        wrapped.append(options["model"])
        return await real(**options)

    monkeypatch.setattr(litellm, "acompletion", wrapper)
    assert lanes_of(rig.client) == {AcompletionLane}
    assert (await rig.send()).parts
    assert len(wrapped) == 1


def refusing(**_: Any) -> Any:
    raise TypeError("takes no such argument")


def writing_something_else(**_: Any) -> Any:
    return {"temperature": 3.0}


class Changed(SimpleNamespace):
    """LiteLLM with other members."""

    def __getattr__(self, name: str) -> Any:
        return getattr(load_litellm(), name)


@pytest.mark.parametrize(
    "changes",
    [
        {"utils": SimpleNamespace()},
        {"utils": SimpleNamespace(get_optional_params=refusing)},
        {"utils": SimpleNamespace(get_optional_params=writing_something_else)},
        {"OllamaChatConfig": None},
        {"GoogleAIStudioGeminiConfig": SimpleNamespace},
    ],
    ids=["not there", "takes something else", "writes something else", "no class", "no method"],
)
async def test_a_litellm_without_the_dialect_is_said_once_and_serves_by_acompletion(
    settings: LLMSettings, on_ollama: Rig, changes: dict[str, Any]
):
    said: list[str] = []
    other = Changed(**changes)
    client = LiteLLMClient(
        settings=settings, limits=Limits.from_settings(settings), warm=lambda: other, unfit=said.append
    )
    await client.warm_up()
    await client.warm_up()
    assert lanes_of(client) == {AcompletionLane}
    assert len(said) == 1
    on_ollama.client = client
    assert (await on_ollama.send()).parts
    await client.close()


async def test_nobody_hears_of_a_lane_that_is_not_wanted(settings: LLMSettings):
    other = SimpleNamespace(utils=SimpleNamespace())
    wanted = settings.model_copy(update={"litellm_lane": "acompletion"})
    lanes = Lanes.opened(wanted, other, pytest.fail)
    await lanes.close()


async def test_a_defect_in_litellms_classes_is_no_payment(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """As it happened to a release: every call with tools failed for a module that was not there."""

    def broken(*_: Any) -> bytes:
        raise ImportError("No module named 'mcp'")

    monkeypatch.setattr(rendering, "_dumped", broken)
    with pytest.raises(LLMInternal, match="was not asked properly: ImportError") as caught:
        await rig.send()
    assert caught.value.possibly_paid is False
    assert (rig.stub.sends, rig.sends_begun) == (0, [])
