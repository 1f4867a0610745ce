"""A cassette as a file: played in order, each answer once; written whole or not at all."""

from pathlib import Path

import pytest

from app.llm.cassettes.lines import Asked, Interaction
from app.llm.cassettes.tapes import SHOWN_CHARS, Playing, Recording, read, write
from app.llm.errors import LLMCassetteMiss, LLMSettingsError
from app.llm.messages import TextPart
from app.llm.ports import ProviderReply
from app.llm.types import FinishReason, TokenUsage
from tests.support.ledger import request, route_of

FIRST, SECOND = route_of(request()).kept
TAPE = Path("folder/tape.jsonl")


def asked(text: str, who: int = 0, **fields: object) -> Asked:
    return Asked.of(request(text, **fields), (FIRST, SECOND)[who], str)


def said(question: Asked, text: str) -> Interaction:
    reply = ProviderReply(
        parts=(TextPart(text=text),), finish_reason=FinishReason.STOP, usage=TokenUsage(output_tokens=1)
    )
    return Interaction(asked=question, outcome=reply)


def recorded(*interactions: Interaction) -> Playing:
    tape = Recording(TAPE)
    for each in interactions:
        tape.add(tape.place(), each)
    return Playing(TAPE)


def text_of(interaction: Interaction) -> str:
    assert isinstance(interaction.outcome, ProviderReply)
    return "".join(part.text for part in interaction.outcome.parts if isinstance(part, TextPart))


def test_the_nth_equal_request_gets_the_nth_answer_whatever_lies_between():
    same, other = asked("same"), asked("other")
    tape = recorded(said(same, "one"), said(other, "x"), said(same, "two"), said(asked("same", 1), "three"))
    assert [text_of(tape.next(each)) for each in (other, same, same)] == ["x", "one", "two"]
    assert text_of(tape.next(asked("same", 1))) == "three"
    with pytest.raises(LLMCassetteMiss, match="has 2 answers to this request to ollama:first"):
        tape.next(same)
    assert text_of(Playing(TAPE).next(same)) == "one", "each tape begins at its beginning"


@pytest.mark.parametrize(
    ("wanted", "line", "path"),
    [
        (asked("What is a signalbox?"), 2, "$.request.messages[0].content[0].text"),
        (asked("What is a signal box?", seed=7), 2, "$.request.seed"),
        (asked("What is a signal box?", 1), 2, "$.candidate"),
        (asked("Something else", 1), 3, "$.request.messages[0].content[0].text"),
    ],
    ids=["text", "field", "candidate", "both"],
)
def test_a_miss_tells_the_nearest_and_where_it_differs(wanted: Asked, line: int, path: str):
    tape = recorded(
        said(asked("What is a semaphore, and who needs one?"), ""),
        said(asked("What is a signal box?"), ""),
        said(asked("Something else entirely", 1), ""),
    )
    with pytest.raises(LLMCassetteMiss) as caught:
        tape.next(wanted)
    assert (caught.value.facts["line"], caught.value.facts["path"]) == (line, path)
    assert caught.value.facts["cassette"] == str(TAPE)


def test_of_long_requests_only_the_place_is_shown():
    long = "word " * 5_000
    tape = recorded(said(asked(f"{long}A{long}"), ""))
    with pytest.raises(LLMCassetteMiss) as caught:
        tape.next(asked(f"{long}B{long}"))
    assert len(caught.value.message) < 3 * SHOWN_CHARS + 400
    assert "word A" in caught.value.message
    assert "word B" in caught.value.message


def test_calls_stand_where_they_began():
    tape = Recording(TAPE)
    places = [tape.place() for _ in range(3)]
    for place in (places[2], places[0]):
        tape.add(place, said(asked(str(place)), ""))
        assert len(read(TAPE)) == len(TAPE.read_text().splitlines())
    assert [text["messages"][0]["content"][0]["text"] for text in map(_content, read(TAPE).values())] == [
        "0",
        "2",
    ]


def _content(interaction: Interaction) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    return dict(interaction.asked.content)  # type: ignore[arg-type]


def test_who_records_may_go_to_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tape = Recording(TAPE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    tape.add(tape.place(), said(asked("Hello"), ""))
    assert len(read(tmp_path / TAPE)) == 1


def test_a_file_that_cannot_be_written_stays_as_it_was(monkeypatch: pytest.MonkeyPatch):
    recorded(said(asked("old"), ""))
    before = TAPE.read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(TAPE, ["{}"])
    assert TAPE.read_text() == before
    assert list(TAPE.parent.iterdir()) == [TAPE]


def test_a_folder_that_cannot_be_made_is_told_at_once():
    Path("folder").write_text("a file")
    with pytest.raises(
        LLMSettingsError, match=r"cassette folder/tape.jsonl: its folder cannot be made \(File exists\)"
    ):
        Recording(TAPE)


def test_a_file_that_cannot_be_read_is_told_at_once():
    TAPE.mkdir(parents=True)
    with pytest.raises(LLMSettingsError, match=r"it cannot be read \(Is a directory\)"):
        Playing(TAPE)


def test_empty_lines_are_passed_over_and_counted():
    recorded(said(asked("one"), ""), said(asked("two"), ""))
    TAPE.write_text(TAPE.read_text().replace("\n", "\n\n"))
    assert list(read(TAPE)) == [1, 3]
