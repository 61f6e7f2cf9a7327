"""Random dialogues are rendered into each kind and read back; any bytes are dialogues, problems or a sentence."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialogpt.data import KINDS, Dialogue, Problem, Reading, read
from dialogpt.data.detect import kind_of
from dialogpt.data.import_ import lines_of
from dialogpt.errors import DialogueError

Turns = list[str]
words = st.text("abcdefghijklmnopqrstuvwxyzäöüßéñ", min_size=1, max_size=8)
plain = st.lists(words, min_size=1, max_size=5).map(" ".join)  # survives the layouts that trim or tidy
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30).filter(
    lambda text: text.strip() == text and text != ""
)
dialogues_of = lambda texts: st.lists(st.lists(texts, min_size=2, max_size=5), min_size=1, max_size=4)  # noqa: E731
NAMES = ("Anna", "Ben")


def as_csv(dialogues: list[Turns]) -> str:
    """The notebook's layout: newest first."""
    longest = max(map(len, dialogues))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", "response", "context", *(f"context/{n}" for n in range(longest - 2))])
    for number, turns in enumerate(dialogues):
        writer.writerow([number, *turns[::-1], *[""] * (longest - len(turns))])
    return file.getvalue()


def as_chat(layout: str) -> Callable[[list[Turns]], str]:
    """WhatsApp, dialogues a day apart."""

    def render(dialogues: list[Turns]) -> str:
        moment, rows = datetime(2021, 1, 25, 8, 0), []
        for turns in dialogues:
            for number, turn in enumerate(turns):
                rows.append(moment.strftime(layout).format(name=NAMES[number % 2]) + turn)
                moment += timedelta(minutes=1)
            moment += timedelta(days=1)
        return "\n".join(rows)

    return render


def chat_json(message: Callable[[str, str, float], dict[str, Any]], newest_first: bool = False, **around: Any) -> Any:
    def render(dialogues: list[Turns]) -> str:
        seconds, said = 1_600_000_000.0, []
        for turns in dialogues:
            for number, turn in enumerate(turns):
                said.append(message(NAMES[number % 2], turn, seconds))
                seconds += 60
            seconds += 86400
        return json.dumps({**around, "messages": said[::-1] if newest_first else said}, indent=2)

    return render


def by_line(render: Callable[[Turns], Any]) -> Callable[[list[Turns]], str]:
    return lambda dialogues: "".join(json.dumps(render(turns)) + "\n" for turns in dialogues)


def as_tree(turns: Turns) -> dict[str, Any]:
    node: dict[str, Any] | None = None
    for number in reversed(range(len(turns))):
        role = ("prompter", "assistant")[number % 2]
        node = {"message_id": str(number), "text": turns[number], "role": role, "replies": [node] if node else []}
    return {"message_tree_id": "x", "prompt": node}


def as_personachat(turns: Turns) -> str:
    """Numbered lines of utterance and reply, after a persona."""
    pairs = [turns[n : n + 2] for n in range(0, len(turns), 2)]
    numbered = enumerate(["your persona: i like cats .", *map("\t".join, pairs)], 1)
    return "".join(f"{number} {line}\n" for number, line in numbered)


def as_blended(turns: Turns) -> dict[str, Any]:
    before, said = turns[: len(turns) // 2], turns[len(turns) // 2 :]
    return {"personas": [["x"], ["y"]], "previous_utterance": before, "free_messages": said[::2],
            "guided_messages": said[1::2]}  # fmt: skip


def roles(speaker: str, text: str) -> Callable[[Turns], list[dict[str, str]]]:
    names = {"role": ("user", "assistant"), "from": ("human", "gpt")}[speaker]
    return lambda turns: [{speaker: names[n % 2], text: turn} for n, turn in enumerate(turns)]


RENDERED: dict[str, tuple[str, Any, Callable[[list[Turns]], str]]] = {
    "turns": ("a.jsonl", anything, by_line(lambda turns: {"turns": turns})),
    "messages": ("a.jsonl", anything, by_line(lambda turns: {"messages": roles("role", "content")(turns)})),
    "sharegpt": (
        "a.json",
        anything,
        lambda dialogues: json.dumps([{"conversations": roles("from", "value")(turns)} for turns in dialogues]),
    ),
    "tsv": ("a.tsv", plain, lambda dialogues: "".join(f"{' EOS '.join(t[:-1])}\t{t[-1]}\n" for t in dialogues)),
    "csv": ("a.csv", anything, as_csv),
    "dailydialog": ("a.txt", plain, lambda dialogues: "".join(" __eou__ ".join([*t, "\n"]) for t in dialogues)),
    "empathetic": (
        "a.csv",
        plain.map(lambda text: text.replace(" ", ", ")),
        lambda dialogues: (
            "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
            + "".join(
                f"c{d},{n},sad,p,{n % 2},{turn.replace(',', '_comma_')},5,\n"
                for d, turns in enumerate(dialogues)
                for n, turn in enumerate(turns)
            )
        ),
    ),
    "topical-chat": (
        "a.json",
        anything,
        lambda dialogues: json.dumps(
            {
                f"t_{d}": {"content": [{"message": turn, "agent": f"agent_{n % 2}"} for n, turn in enumerate(turns)]}
                for d, turns in enumerate(dialogues)
            }
        ),
    ),
    "whatsapp": ("a.txt", plain, as_chat("[%d.%m.%y, %H:%M:%S] {name}: ")),
    "telegram": (
        "a.json",
        anything,
        chat_json(
            lambda who, text, at: {
                "type": "message",
                "from": who,
                "from_id": who,
                "date_unixtime": f"{at:.0f}",
                "text": text,
            },
            name="x",
        ),
    ),
    "discord": (
        "a.json",
        anything,
        chat_json(
            lambda who, text, at: {
                "type": "Default",
                "author": {"name": who},
                "timestamp": f"{datetime.fromtimestamp(at).isoformat()}Z",
                "content": text,
            },
            guild={},
            channel={},
        ),
    ),
    "messenger": (
        "a.json",
        plain.filter(lambda text: True),
        chat_json(
            lambda who, text, at: {
                "sender_name": who,
                "timestamp_ms": int(at * 1000),
                "content": text.encode().decode("latin-1"),
            },
            newest_first=True,
            participants=[],
        ),
    ),
    "text": ("a.txt", plain, lambda dialogues: "\n\n".join("\n".join(turns) for turns in dialogues)),
    "personachat": ("a.txt", plain, lambda dialogues: "".join(map(as_personachat, dialogues))),
    "blended-skill-talk": ("a.json", anything, lambda dialogues: json.dumps(list(map(as_blended, dialogues)))),
}
_TEXT_LIKE = ("tsv", "text")


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_rendered_is_read_back(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file, texts, render = RENDERED[name]
    path = tmp_path_factory.mktemp("round") / file

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(dialogues_of(texts), st.sampled_from(["", "\ufeff"]))
    def check(dialogues: list[Turns], mark: str) -> None:
        path.write_bytes((mark + render(dialogues)).encode())
        assert kind_of(path, Reading()).name == name
        problems: list[Problem] = []
        found = [dialogue.turns for dialogue in read(path, on_problem=problems.append)]
        assert (found, [p for p in problems if p.line]) == (dialogues, [])

    check()


@settings(max_examples=60, deadline=None)
@given(dialogues_of(plain))
def test_a_tree_of_one_path_is_read_back(tmp_path_factory: pytest.TempPathFactory, dialogues: list[Turns]) -> None:
    path = tmp_path_factory.mktemp("tree") / "a.jsonl"
    path.write_text("".join(json.dumps(as_tree(turns)) + "\n" for turns in dialogues))
    expected = [turns[: len(turns) // 2 * 2] for turns in dialogues]  # a question at the end is nobody's reply
    assert [dialogue.turns for dialogue in read(path)] == expected


@settings(max_examples=40, deadline=None)
@given(dialogues_of(plain))
def test_messages_of_trees_a_line_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, dialogues: list[Turns]
) -> None:
    path = tmp_path_factory.mktemp("messages") / "a.jsonl"
    rows = [
        {"message_id": f"{d}-{n}", "parent_id": f"{d}-{n - 1}" if n else None, "message_tree_id": f"{d}", "text": turn,
         "role": ("prompter", "assistant")[n % 2]}
        for d, turns in enumerate(dialogues)
        for n, turn in enumerate(turns)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [turns[: len(turns) // 2 * 2] for turns in dialogues]
    assert [dialogue.turns for dialogue in read(path, Reading(kind="oasst"))] == expected


@settings(max_examples=30, deadline=None)
@given(dialogues_of(st.text(st.characters(max_codepoint=255, categories=["L", "N", "P"]), min_size=1, max_size=20)))
def test_cornell_s_two_files_are_read_back(tmp_path_factory: pytest.TempPathFactory, dialogues: list[Turns]) -> None:
    folder, between = tmp_path_factory.mktemp("cornell"), " +++$+++ "
    lines, conversations = [], []
    for d, turns in enumerate(dialogues):
        names = [f"L{d}{n:03d}" for n in range(len(turns))]
        lines += [between.join([name, f"u{n % 2}", "m0", NAMES[n % 2], turns[n]]) for n, name in enumerate(names)]
        conversations.append(between.join(["u0", "u1", "m0", str(names)]))
    (folder / "movie_lines.txt").write_bytes("\n".join(lines[::-1]).encode("latin-1"))
    (folder / "movie_conversations.txt").write_text("\n".join(conversations))
    assert kind_of(folder, Reading()).name == "cornell"
    assert [dialogue.turns for dialogue in read(folder)] == dialogues


@settings(max_examples=20, deadline=None)
@given(dialogues_of(anything), st.sampled_from(["parquet", "datasets"]))
def test_tables_of_arrow_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, dialogues: list[Turns], name: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    folder = tmp_path_factory.mktemp("arrow")
    table = pyarrow.table({"dialog": dialogues})
    path = folder if name == "datasets" else folder / "a.parquet"
    if name == "parquet":
        parquet.write_table(table, path)
    else:
        (folder / "state.json").write_text("{}")
        with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
    assert kind_of(path, Reading()).name == name
    assert [dialogue.turns for dialogue in read(path)] == dialogues


def test_every_kind_has_a_round_trip() -> None:
    assert {*RENDERED, "oasst", "cornell", "parquet", "datasets"} == {*KINDS}


@given(st.lists(anything, min_size=2), st.booleans(), st.booleans())
def test_what_is_written_is_read_back(turns: Turns, weighted: bool, named: bool) -> None:
    dialogue = Dialogue(
        turns, [1.0, 0.0] * len(turns) if weighted else None, ["a", "b"] * len(turns) if named else None
    )
    dialogue.weights = dialogue.weights and dialogue.weights[: len(turns)]
    dialogue.speakers = dialogue.speakers and dialogue.speakers[: len(turns)]
    kind = KINDS["turns"]
    assert kind.parse is not None
    assert kind.parse(lines_of([dialogue]).rstrip(b"\n"), Reading()) == dialogue


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("datasets", "parquet")])
def test_any_bytes_are_dialogues_or_problems_or_a_sentence(name: str, tmp_path: Path) -> None:
    """A good file with a few bytes changed, cut or doubled; nothing but a DialogueError ever comes out."""
    file, _, render = RENDERED.get(name, RENDERED["turns"])
    good = render([["hi", "hello there"], ["a b", "c", "d"]]).encode()
    draw = random.Random(name)
    path = tmp_path / file
    for _ in range(60):
        data = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data) + 1)
            data[at : at + draw.randint(0, 5)] = draw.choice(
                [b"", b"\0", b"\xff\xfe", b'"', b"{", b"]", b"\n\n", b"\r", b"9" * 20, b"\\ud800", b"[" * 50, b"\t"]
            )
        path.write_bytes(bytes(data))
        with suppress(DialogueError):
            for dialogue in read(path, Reading(kind=name)):
                assert len(dialogue.turns) >= 2
                assert all(turn.strip() for turn in dialogue.turns)
                lines_of([dialogue])
