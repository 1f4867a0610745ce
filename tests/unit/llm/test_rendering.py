"""What is remembered of a request's parameters: by value, within bounds, and nothing of the caller's."""

from typing import Any

from app.llm.wire.rendering import MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Remembered, as_sent


class Maker:
    """Counts what it makes."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.remembered = Remembered(self._make)

    def _make(self, model: str, given: dict[str, Any]) -> dict[str, Any]:
        self.made.append((model, given))
        return given

    def of(self, model: str = "m", **options: Any) -> dict[str, Any]:
        return self.remembered.of(model, {"model": f"x/{model}", **options})


def test_equal_parameters_are_read_once_whatever_the_messages():
    maker = Maker()
    for text in ("a", "b"):
        assert maker.of(temperature=0.5, messages=[text], api_key=text, headers={"x": text}) == {
            "temperature": 0.5
        }
    assert maker.made == [("m", {"temperature": 0.5})]


def test_parameters_are_equal_only_with_the_model_the_type_and_the_order():
    maker = Maker()
    maker.of(seed=1, stop=["a", "b"])
    maker.of("other", seed=1, stop=["a", "b"])
    maker.of(seed=True, stop=["a", "b"])
    maker.of(seed=1.0, stop=["a", "b"])
    maker.of(seed=1, stop=["b", "a"])
    maker.of(tools=[{"a": 1, "b": 2}])
    maker.of(tools=[{"b": 2, "a": 1}])
    assert len(maker.made) == 7


def test_a_caller_that_changes_its_schema_later_changes_nothing_that_is_remembered():
    maker = Maker()
    tools = [{"name": "a"}]
    maker.of(tools=tools)
    tools[0]["name"] = "b"
    assert maker.of(tools=[{"name": "a"}]) == {"tools": [{"name": "a"}]}
    assert maker.of(tools=tools) == {"tools": [{"name": "b"}]}


def test_the_oldest_is_forgotten_and_the_used_is_kept():
    maker = Maker()
    for seed in range(MAX_REMEMBERED):
        maker.of(seed=seed)
    maker.of(seed=0)
    maker.of(seed=-1)
    assert len(maker.made) == MAX_REMEMBERED + 1
    maker.of(seed=0)
    assert len(maker.made) == MAX_REMEMBERED + 1
    maker.of(seed=1)
    assert len(maker.made) == MAX_REMEMBERED + 2


def test_what_is_too_long_or_has_no_canonical_form_is_made_each_time():
    maker = Maker()
    for _ in range(2):
        maker.of(tools=["x" * MAX_REMEMBERED_BYTES])
        maker.of(seed=10**30)
    assert len(maker.made) == 4


def test_of_two_headers_of_one_name_the_last_counts():
    sent = as_sent({"X-Team": "a", "x-team": "b", "Content-Type": "text/plain"})
    assert sent == {"x-team": "b", "content-type": "application/json"}
