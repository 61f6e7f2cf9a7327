"""Lines are parsed and checked many at a time; what comes out equals what comes of each line alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data.dialogue import Dialogue, Problem
from dialogpt.data.formats import KINDS
from dialogpt.data.import_ import import_dialogues, lines_of
from dialogpt.data.read import read_one
from dialogpt.data.report import Statistics
from dialogpt.data.settings import Reading
from dialogpt.data.transform import Transformer
from dialogpt.errors import DialogueError

turns = st.sampled_from(
    ["hi", "how are you?", "für dich 🙂", " ", "", '"turns" "messages"', "\ud800", "<|endoftext|>", 7]
)
roles = st.sampled_from(["user", "assistant", "Assistant", "gpt", "human", "system", "tool", "", 3])
weights = st.sampled_from([0, 1, 1.0, 0.5, True, -1, None, "x"])
lists = lambda of: st.lists(of, max_size=4)  # noqa: E731
optional = lambda key, values: st.one_of(st.just({}), st.builds(lambda value: {key: value}, values))  # noqa: E731


def messages(who: str, what: str) -> st.SearchStrategy[list[Any]]:
    message = st.builds(lambda a, b, more: {who: a, what: b, **more}, roles, turns, optional("weight", weights))
    return lists(message | st.just({what: "nobody"}) | st.just("text"))


def good(render: Any) -> st.SearchStrategy[Any]:
    """Contents that are read without a problem, though not all of them are kept as they are."""
    texts = st.lists(
        st.sampled_from(["hi", "well", "ü", "me@example.org", "a <|endoftext|> b"]), min_size=2, max_size=3
    )
    return texts.flatmap(render)


def said(who: str, what: str, names: tuple[str, ...], texts: list[str]) -> list[dict[str, str]]:
    return [{who: names[n % len(names)], what: text} for n, text in enumerate(texts)]


def chats(key: str, who: str, what: str, *orders: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return good(lambda texts: st.sampled_from([{key: said(who, what, names, texts)} for names in orders]))


merge = lambda *parts: {key: value for part in parts for key, value in part.items()}  # noqa: E731
CONTENTS = {
    "turns": (
        good(lambda texts: st.sampled_from([{"turns": texts}, {"turns": texts, "speakers": ["a"] * len(texts)}])),
        st.builds(
            merge,
            st.builds(lambda value: {"turns": value}, lists(turns)),
            optional("weights", lists(weights)),
            optional("speakers", lists(roles)),
            optional("references", lists(turns)),
        ),
    ),
    "messages": (
        chats("messages", "role", "content", ("user", "assistant"), ("system", "assistant"), ("user",)),
        st.builds(lambda value: {"messages": value}, messages("role", "content")),
    ),
    "sharegpt": (
        chats("conversations", "from", "value", ("human", "gpt"), ("system", "GPT"), ("human",)),
        st.builds(
            merge,
            st.builds(lambda value: {"conversations": value}, messages("from", "value")),
            optional("system", turns),
        ),
    ),
}
FIRST = {  # so that no file is one array
    "turns": b'{"turns": ["a", "b"]}',
    "messages": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    "sharegpt": b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}',
}
BROKEN = st.sampled_from(
    [b"", b" ", b"{", b"[1]", b'"x"', b"NaN", b"\xff", b'{"turns": ["a",', b'"b"]}',
     b'{"turns": ["a", "b"], "turns": 1}', b'{"turns": ["a", "b"], "x": [1', b"[" * 2000]
)  # fmt: skip
SETTINGS = [
    Reading(), Reading(min_turns=3), Reading(system="drop"), Reading(bot="*"), Reading(redact=True),
    Reading(max_turns=2), Reading(eos_in_text="split"), Reading(names=True), Reading(references=True),
]  # fmt: skip


def alone(lines: list[bytes], name: str, reading: Reading, path: Path) -> tuple[list[Dialogue], list[Problem]]:
    """The slow, obvious way."""
    kept: list[Dialogue] = []
    problems: list[Problem] = []
    parse, transformer = KINDS[name].parse, Transformer(reading)
    assert parse is not None
    for number, line in enumerate(lines, 1):
        note = lambda reason, number=number: problems.append(Problem(path, number, reason))  # noqa: E731
        if line:
            try:
                dialogue = parse(line, reading)
                dialogue.line = number
                kept += transformer.apply(dialogue, note)
            except DialogueError as error:
                note(str(error))
    return kept, problems


def seen(dialogues: list[Dialogue], problems: list[Problem]) -> Any:
    """All that can be told of what came out; bytes, as 1, 1.0 and True are equal."""
    kept = Statistics()
    kept.add(dialogues)
    return lines_of(dialogues), [dialogue.line for dialogue in dialogues], dialogues, problems, kept


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("at_once", [3, 64])
def test_lines_together_are_as_lines_alone(
    name: str, at_once: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogpt.data.source.AT_ONCE", at_once)
    path = tmp_path_factory.mktemp("many") / "a.jsonl"
    fine, other = (strategy.map(lambda content: json.dumps(content).encode()) for strategy in CONTENTS[name])
    twice = fine.map(lambda line: line[:-1] + b"," + line[1:])  # every key
    files = st.lists(fine, max_size=8) | st.lists(fine | twice, max_size=5) | st.lists(fine | other | twice | BROKEN)

    @given(files, st.sampled_from(SETTINGS))
    def check(lines: list[bytes], reading: Reading) -> None:
        path.write_bytes(b"".join(line + b"\n" for line in [FIRST[name], *lines]))
        problems: list[Problem] = []
        together = list(read_one(path, KINDS[name], Transformer(reading), problems.append))
        assert seen(together, problems) == seen(*alone([FIRST[name], *lines], name, reading, path))

    check()


def test_weights_of_one_size_are_told_apart() -> None:
    """True equals 1, and the weights [True, 1] those of a dialogue that was kept before; True is no weight."""
    transformer = Transformer(Reading())
    assert transformer.keeps([Dialogue(["a", "b"], [1, 1]), Dialogue(["a", "b"], [0, 1])])
    assert not transformer.keeps([Dialogue(["a", "b"], [1, 1]), Dialogue(["a", "b"], [True, 1])])  # type: ignore[list-item]
    assert not transformer.keeps([Dialogue(["a", "b"], [1, 1, 1]), Dialogue(["a", "b"], [1])])


def test_dialogues_share_no_lists(tmp_path: Path) -> None:
    """Speakers of one order are looked up once; a change to one dialogue leaves the others as they are."""
    content = {"messages": said("role", "content", ("user", "assistant"), ["hi", "ho"])}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(content)}\n" * 2)
    first, second = read_one(tmp_path / "a.jsonl", KINDS["messages"], Transformer(Reading()))
    assert first.speakers is not None
    assert first.weights is not None
    first.speakers[0], first.weights[0] = "x", 9
    assert (second.speakers, second.weights) == (["user", "assistant"], [0, 1])


def test_what_passes_is_passed_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of plain lines none is looked at alone but one of each shape; else a mistake there would cost only time."""
    count = 0
    apply = Transformer.apply

    def counted(self: Transformer, *arguments: Any) -> list[Dialogue]:
        nonlocal count
        count += 1
        return apply(self, *arguments)

    monkeypatch.setattr(Transformer, "apply", counted)
    (tmp_path / "a.jsonl").write_text('{"turns": ["hi", "ho"]}\n{"turns": ["a", "b", "c"]}\n' * 200)
    found = import_dialogues([tmp_path / "a.jsonl"], tmp_path / "out.jsonl", Reading())
    assert (found.kept.dialogues, count) == (400, 2)


@pytest.mark.parametrize(("name", "weights"), [("messages", "[0,1]"), ("sharegpt", "[0.0,1.0]")])
def test_weights_are_written_as_ever(name: str, weights: str, tmp_path: Path) -> None:
    """Whole numbers of messages, fractions of sharegpt: a file that is imported again is the same to the byte."""
    key, who, what, names = {
        "messages": ("messages", "role", "content", ("user", "assistant")),
        "sharegpt": ("conversations", "from", "value", ("Human", "GPT")),
    }[name]
    (tmp_path / "a.jsonl").write_text(json.dumps({key: said(who, what, names, ["hi", "ho"])}) + "\n")
    import_dialogues([tmp_path / "a.jsonl"], tmp_path / "out.jsonl", Reading())
    written = (tmp_path / "out.jsonl").read_text().replace(" ", "")
    assert written == f'{{"turns":["hi","ho"],"weights":{weights},"speakers":["user","assistant"]}}\n'


def test_settings_that_look_at_texts_see_each() -> None:
    """Two dialogues of one shape, of which --eos-in-text split changes only the first."""
    transformer = Transformer(Reading(eos_in_text="split"))
    assert not transformer.keeps([Dialogue(["a<|endoftext|>b", "c"]), Dialogue(["a", "b"])])
