"""The routing file: what it may say, who beats it, and the line of what is wrong in it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.llm.errors import LLMSettingsError
from app.llm.providers import Catalog
from app.llm.routing_file import Origins
from app.llm.settings import LLMSettings, isolated_settings, load_settings
from app.llm.types import LLMProfile, LLMProvider

YAML = """\
# who answers what
providers:
  ollama:
    api_base: http://gpu-box:11434
    num_ctx: 4096
  gemini:
    enabled: on
    api_key: ${TEAM_KEY}
models:
  ollama:qwen3:8b:
    num_ctx: 16384
    supports_vision: no
profiles:
  fast: [ollama:qwen3:8b, gemini]
  advanced:
    - gemini:gemini-2.5-pro
    - ollama
stages:
  query_routing: fast
  tool_calling: advanced
fallback: gemini
cache_enabled: true
default_timeout_s: 30
local_hosts: [gpu-box]
"""
TOML = """\
# who answers what
fallback = "gemini"
cache_enabled = true
default_timeout_s = 30
local_hosts = ["gpu-box"]

[providers.ollama]
api_base = "http://gpu-box:11434"
num_ctx = 4096

[providers]
gemini = { enabled = true, api_key = "${TEAM_KEY}" }

[models."ollama:qwen3:8b"]
num_ctx = 16384
supports_vision = false

[profiles]
fast = ["ollama:qwen3:8b", "gemini"]
advanced = [
  "gemini:gemini-2.5-pro",
  "ollama",
]

[stages]
query_routing = "fast"
tool_calling = "advanced"
"""


@pytest.fixture
def team_key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEAM_KEY", "k-0123456789")
    return "k-0123456789"


def write(text: str, name: str = "signalbox.yaml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def load(text: str, name: str = "signalbox.yaml", **values: Any) -> LLMSettings:
    return load_settings(config_file=write(text, name), **values)


def fault(text: str, name: str = "signalbox.yaml") -> str:
    with pytest.raises(LLMSettingsError) as caught:
        load(text, name)
    return caught.value.message


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML)])
def test_all_that_a_file_may_say_is_in_force(team_key: str, name: str, text: str):
    settings = load(text, name)
    assert settings.gemini_api_key == SecretStr(team_key)
    assert (settings.ollama_api_base, settings.ollama_num_ctx) == ("http://gpu-box:11434", 4096)
    assert settings.profile(LLMProfile.FAST) == ("ollama:qwen3:8b", "gemini:gemini-2.5-flash")
    assert settings.profile(LLMProfile.ADVANCED) == ("gemini:gemini-2.5-pro", "ollama:llama3.2")
    assert settings.stage_profiles == {"query_routing": LLMProfile.FAST, "tool_calling": LLMProfile.ADVANCED}
    assert settings.model_overrides["ollama:qwen3:8b"].model_dump(exclude_none=True) == {
        "num_ctx": 16384,
        "supports_vision": False,
    }
    assert (settings.cache_enabled, settings.default_timeout_s, settings.local_hosts) == (
        True,
        30.0,
        ("gpu-box",),
    )
    assert (settings.fallback_name(), settings.providers_off) == ("gemini:gemini-2.5-flash", ())


def test_yaml_and_toml_say_the_same(team_key: str):
    assert load(YAML).model_dump(exclude={"config_file"}) == load(TOML, "a.toml").model_dump(
        exclude={"config_file"}
    )


def test_variables_beat_dot_env_which_beats_the_file_which_beats_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
):
    Path(".env").write_text("LLM_CONFIG_FILE=signalbox.yaml\nLLM_MAX_ATTEMPTS=3\nLLM_QUEUE_LIMIT=3\n")
    write("max_attempts: 5\nqueue_limit: 5\nattempts_per_candidate: 5\n")
    monkeypatch.setenv("LLM_QUEUE_LIMIT", "7")
    settings = load_settings()
    assert (settings.attempts_per_candidate, settings.max_attempts, settings.queue_limit) == (5, 3, 7)
    assert load_settings(queue_limit=9).queue_limit == 9
    assert settings.concurrency_limit == 64


@pytest.mark.parametrize("variable", ["GEMINI_API_KEY", "LLM_GEMINI_API_KEY"])
def test_a_key_in_a_variable_of_either_name_beats_the_file(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "of-the-variable")
    settings = load("providers:\n  gemini:\n    api_key: of-the-file\n")
    assert settings.gemini_api_key == SecretStr("of-the-variable")


def test_the_variables_of_a_section_replace_it_as_a_whole(monkeypatch: pytest.MonkeyPatch, team_key: str):
    monkeypatch.setenv("LLM_STAGE_PROFILES", "summarise=balanced, plan=advanced,")
    monkeypatch.setenv("LLM_MODEL_OVERRIDES", '{"gemini:x": {"max_context_tokens": 5}}')
    monkeypatch.setenv("LLM_PROVIDERS_OFF", "ollama")
    settings = load(YAML)
    assert settings.stage_profiles == {"summarise": LLMProfile.BALANCED, "plan": LLMProfile.ADVANCED}
    assert settings.model_overrides["gemini:x"].max_context_tokens == 5
    assert (len(settings.model_overrides), settings.providers_off) == (1, ("ollama",))


def test_isolated_settings_read_no_file(monkeypatch: pytest.MonkeyPatch):
    write("max_attempts: 5\n")
    monkeypatch.setenv("LLM_CONFIG_FILE", "signalbox.yaml")
    assert (load_settings().max_attempts, isolated_settings().max_attempts) == (5, 4)


@pytest.mark.parametrize("provider", LLMProvider)
@pytest.mark.parametrize("said", ["off", "no", "false", "0", "False"])
def test_each_provider_can_be_switched_off(provider: str, said: str):
    assert load(f"providers:\n  {provider}: {said}\n").providers_off == (provider,)
    assert load(f"providers:\n  {provider}: {{enabled: {said}}}\n").providers_off == (provider,)


@pytest.mark.parametrize("provider", LLMProvider)
def test_each_setting_of_each_provider_has_its_place(provider: str):
    """A provider that is new has no code here."""
    texts = (str | None, SecretStr | None)
    for name, field in LLMSettings.model_fields.items():
        if not name.startswith(f"{provider}_") or (field.default is None and field.annotation not in texts):
            continue
        text = "X-A: b" if name.endswith("_headers") else "text"
        key = name.removeprefix(f"{provider}_")
        settings = load(
            f"providers:\n  {provider}:\n    {key}: '{text if field.default is None else field.default}'\n"
        )
        assert settings.model_fields_set == {"config_file", name}


def test_what_has_no_value_is_unset():
    settings = load(
        "providers:\n  ollama:\n    keep_alive:\n    model: ''\n  gemini:\nprofiles:\nmax_attempts: ~\n"
    )
    assert settings == load_settings(config_file=Path("signalbox.yaml"))
    assert settings.model_fields_set == {"config_file"}
    assert load("").model_fields_set == load("", "a.toml").model_fields_set == {"config_file"}


# -- ${NAME}


def test_a_reference_is_filled_from_the_environment_before_dot_env(monkeypatch: pytest.MonkeyPatch):
    Path(".env").write_text("HOST=of-dot-env\nPORT=1234\n")
    monkeypatch.setenv("HOST", "of-the-environment")
    settings = load("providers:\n  ollama:\n    api_base: http://${HOST}:${PORT}/$${x}\n")
    assert settings.ollama_api_base == "http://of-the-environment:1234/${x}"


def test_a_variable_that_is_not_set_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EMPTY", "")
    told = fault("providers:\n  gemini:\n    api_key: ${NOWHERE}\n  ollama:\n    model: ${EMPTY}\n")
    assert "signalbox.yaml:3: providers.gemini.api_key: the variable NOWHERE is not set" in told
    assert "signalbox.yaml:5: providers.ollama.model: the variable EMPTY is not set" in told


def test_a_broken_reference_is_refused_with_its_line():
    assert "signalbox.yaml:1: fallback: `${` begins no name" in fault("fallback: ${a-b}\n")


def test_what_a_variable_holds_shows_in_no_error_and_no_repr(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "s-e-c-r-e-t")
    text = "max_attempts: ${SECRET}\nproviders:\n  ollama:\n    api_base: ${SECRET}\n    headers: ${SECRET}\n"
    told = fault(text)
    assert "signalbox.yaml:1: max_attempts='${SECRET}': Input should be a valid integer" in told
    assert "signalbox.yaml:4: providers.ollama.api_base='${SECRET}': must be a URL" in told
    assert "signalbox.yaml:5: providers.ollama.headers=********: headers are written as" in told
    assert "s-e-c-r-e-t" not in told
    assert "s-e-c-r-e-t" not in repr(load("providers:\n  gemini:\n    api_key: ${SECRET}\n"))


# -- faults, each with its line

WRONG_YAML = [
    ("providers:\n  gemni:\n    model: x\n", "2: providers.gemni is not known here: providers.gemini was meant?"),
    ("providers:\n  ollama:\n    num_ctxx: 1\n", "3: providers.ollama.num_ctxx is not known here: providers.ollama.num_ctx was meant?"),
    ("\n\nrouter_polcy: as_listed\n", "3: router_polcy is not known here: router_policy was meant?"),
    ("ollama_num_ctx: 4096\n", "1: ollama_num_ctx is not known here: providers.ollama.num_ctx was meant?"),
    ("profile_fast: ollama\n", "1: profile_fast is not known here: profiles.fast was meant?"),
    ("config_file: other.yaml\n", "1: config_file is not known here: known: providers, models, profiles, stages, fallback, and each setting without LLM_"),
    ("profiles:\n  quick: [ollama]\n", "2: profiles.quick is not known here: known: advanced, balanced, fast"),
    ("models:\n  ollama:a:\n    vision: yes\n", "3: models.ollama:a.vision is not known here: models.ollama:a.supports_vision was meant?"),
    ("models:\n  gemini:a:\n    num_ctx: 4096\n", "1: models='a mapping': gemini:a: gemini takes no num_ctx: write max_context_tokens"),
    ("models:\n  ollama:a:\n    max_context_tokens: 5\n", "1: models='a mapping': ollama:a: the window of ollama is what is asked for: write num_ctx"),
    ("models:\n  ollama:b: {}\n  nobody:a: {}\n", "3: models.nobody:a is not known here: known: "),
    ("models:\n  gemini: {}\n", "2: models.gemini='a mapping': a model is named provider:model"),
    ("profiles:\n  fast:\n  - ollama\n  - nobody\n", "2: profiles.fast='[ollama, nobody]': 'nobody' is not `provider:model`"),
    ("stages:\n  plan: quick\n", "2: stages.plan='quick': Input should be 'fast', 'balanced' or 'advanced'"),
    ("models:\n  ollama:a:\n    num_ctx: 5\n", "3: models.ollama:a.num_ctx='5': Input should be greater than or equal to 256"),
    ("fallback: nobody:x\n", "1: fallback='nobody:x': 'nobody' is no provider of"),
    ("providers:\n  ollama: perhaps\n", "2: providers.ollama is neither on nor off"),
    ("providers: [ollama]\n", "1: providers holds names and values, not a list"),
    ("max_attempts:\n  a: 1\n", "1: max_attempts holds one value, not a mapping"),
    ("- a\n", "1: the file holds names and values, not a list"),
    ("max_attempts: 3\n\nmax_attempts: 4\n", "3: max_attempts is there twice, first in line 1"),
    ("a: b: c\n", "1: no YAML: mapping values are not allowed here"),
    ("a: 'b\n", "2: no YAML: found unexpected end of stream"),
    ("a: !!python/object:os.system x\n", "1: the tag tag:yaml.org,2002:python/object:os.system is not known"),
    ("a: !Env x\n", "1: the tag !Env is not known"),
    ("x: &a [*a]\n", "1: an alias holds itself"),
    ("x: &a {b: 1}\ny:\n  <<: *a\n", "3: a key is a plain text"),
    ("? [a]\n: b\n", "1: a key is a plain text"),
    ("a: 1\n---\nb: 2\n", "2: no YAML: but found another document"),
]  # fmt: skip
WRONG_TOML = [
    ("fallback = 'gemini'\n\n[providers.ollama]\n# a comment\nnum_ctxx = 1\n", "5: providers.ollama.num_ctxx is not known here"),
    ("[profiles]\nfast = [\n  'ollama',\n  'nobody',\n]\nquick = []\n", "6: profiles.quick is not known here"),
    ("[profiles]\nfast = [\n  'ollama',\n  'nobody',\n]\n", "2: profiles.fast='[ollama, nobody]': 'nobody' is not"),
    ("default_workspace = '''\na\n[providers]\nb = 1\n'''\nmax_attempts = 0\n", "6: max_attempts='0': Input should be greater"),
    ("providers.ollama.num_ctx = 4096\nproviders.ollama.nun = 1\n", "2: providers.ollama.nun is not known here"),
    ("\n[providers]\ngemini = { enabled = false, modl = 'x' }\n", "3: providers.gemini.modl is not known here"),
    ("max_attempts = 1\nmax_attempts = 2\n", "2: no TOML: Cannot overwrite a value"),
    ("max_attempts = \n", "1: no TOML: Invalid value"),
    ("a = [1,\n", "2: no TOML: Invalid value (at end of document)"),
    ("max_attempts = 2026-01-01\n", "1: max_attempts: no setting is a date"),
    ("[[providers]]\na = 1\n", "1: providers holds names and values, not"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), WRONG_YAML, ids=range(len(WRONG_YAML)))
def test_what_is_wrong_in_yaml_is_refused_with_its_line(text: str, told: str):
    assert f"signalbox.yaml:{told}" in fault(text)


@pytest.mark.parametrize(("text", "told"), WRONG_TOML, ids=range(len(WRONG_TOML)))
def test_what_is_wrong_in_toml_is_refused_with_its_line(text: str, told: str):
    assert f"signalbox.toml:{told}" in fault(text, "signalbox.toml")


def test_every_unknown_key_is_named_at_once_in_the_order_of_the_file():
    told = fault("nobody: 1\nproviders:\n  nowhere: on\nprofiles:\n  never: [ollama]\n")
    assert [part.split(":")[1] for part in told.split("; ")] == ["1", "3", "5"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.yaml", "nowhere.yaml: No such file or directory"),
        ("notes.txt", "notes.txt: a routing file ends in .yaml, .yml or .toml"),
        ("folder.yaml", "folder.yaml: Is a directory"),
        ("latin.yaml", "latin.yaml: not UTF-8 text (byte 3)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
):
    Path("notes.txt").write_text("")
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes("a: ä".encode("latin-1"))
    monkeypatch.setenv("LLM_CONFIG_FILE", name)
    with pytest.raises(LLMSettingsError) as caught:
        load_settings()
    assert caught.value.message == told
    assert caught.value.facts["variable"] == "LLM_CONFIG_FILE"


def test_a_fallback_whose_provider_is_off_is_refused():
    assert "LLM_FALLBACK=gemini: its provider is off" in fault("fallback: gemini\nproviders: {gemini: off}\n")


def test_a_wrong_variable_is_named_by_its_name_beside_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_MAX_ATTEMPTS", "0")
    monkeypatch.setenv("LLM_MODEL_OVERRIDES", "{")
    told = fault("max_attempts: 3\n")
    assert "LLM_MAX_ATTEMPTS='0': Input should be greater than or equal to 1" in told
    assert "LLM_MODEL_OVERRIDES='{': not JSON" in told


# -- what it means


def test_overrides_beat_the_table_and_change_the_identity_only_by_num_ctx():
    plain = Catalog.from_settings(load(""))
    told = Catalog.from_settings(
        load("models:\n  ollama:llama3.2: {supports_tools: no}\n  ollama:b: {num_ctx: 2048}\n")
    )
    assert plain.pinned("ollama:llama3.2").caps.supports_tools
    assert not told.pinned("ollama:llama3.2").caps.supports_tools
    assert told.pinned("ollama:llama3.2").identity == plain.pinned("ollama:llama3.2").identity
    assert told.pinned("ollama:b").caps.max_context_tokens == 2048
    assert told.pinned("ollama:b").identity != plain.pinned("ollama:b").identity
    assert told.pinned("ollama:c") == plain.pinned("ollama:c")


def test_a_model_of_which_something_is_said_is_assumed_no_more():
    catalog = Catalog.from_settings(
        load("models:\n  gemini:new: {max_context_tokens: 5000}\n  ollama:new: {num_ctx: 4096}\n")
    )
    assert (
        catalog.pinned("gemini:new").caps.max_context_tokens,
        catalog.pinned("gemini:new").caps.assumed,
    ) == (5000, False)
    assert catalog.pinned("ollama:new").caps.assumed


def test_each_value_has_its_origin(monkeypatch: pytest.MonkeyPatch, team_key: str):
    monkeypatch.setenv("LLM_QUEUE_LIMIT", "7")
    Path(".env").write_text("LLM_CONFIG_FILE=signalbox.yaml\n")
    write(YAML)
    origins = Origins.of(LLMSettings, {"max_attempts": 2}, LLMSettings.read_file)
    said = {
        name: (origin.source, origin.name)
        for name in (
            "max_attempts",
            "queue_limit",
            "config_file",
            "gemini_api_key",
            "profile_fast",
            "log_content",
        )
        for origin in [origins.origin(name)]
    }
    assert said == {
        "max_attempts": ("argument", "max_attempts"),
        "queue_limit": ("environment", "LLM_QUEUE_LIMIT"),
        "config_file": (".env", "LLM_CONFIG_FILE"),
        "gemini_api_key": ("file", "signalbox.yaml:8: providers.gemini.api_key"),
        "profile_fast": ("file", "signalbox.yaml:14: profiles.fast"),
        "log_content": ("default", ""),
    }
    assert origins.origin("model_overrides", "ollama:qwen3:8b", "supports_vision").name.startswith(
        "signalbox.yaml:12: "
    )
    assert origins.origin("gemini_api_key").refers


def test_the_file_of_the_documentation_can_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEAM_GEMINI_KEY", "k")
    document = (Path(__file__).parents[3] / "docs" / "ROUTING.md").read_text()
    settings = load(document.split("```yaml\n", 1)[1].split("```", 1)[0])
    assert settings.num_ctx_of("ollama", "qwen3:8b") == 32768
    assert settings.fallback_name() == "gemini:gemini-2.5-flash"
    assert settings.stage_profiles.keys() == {"query_routing", "tool_calling"}
