"""Open Assistant's two layouts, written by hand after the cards of its data sets."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dialogpt.data.oasst import Line, Options, dialogues
from dialogpt.errors import DialogueError


def message(id_: str, text: str, role: str, **changes: Any) -> dict[str, Any]:
    return {"message_id": id_, "text": text, "role": role, "lang": "en", "deleted": False, "review_result": True,
            "synthetic": False, "rank": None, "replies": [], **changes}  # fmt: skip


def tree() -> dict[str, Any]:
    """A prompt with two replies, the better of which goes on."""
    more = message("d", "And why?", "prompter", replies=[message("e", "Light scatters.", "assistant", rank=0)])
    best = message("b", "It is blue.", "assistant", rank=0, replies=[more])
    other = message("c", "Green, I think.", "assistant", rank=1)
    return {"message_tree_id": "a", "tree_state": "ready_for_export",
            "prompt": message("a", "What colour is the sky?", "prompter", replies=[other, best])}  # fmt: skip


def flat(record: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    own = {**record, "parent_id": parent, "message_tree_id": "a"}
    replies = own.pop("replies")
    return [own, *(line for reply in replies for line in flat(reply, record["message_id"]))]


def read(path: Path, **options: Any) -> tuple[list[Line], Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    problems: list[str] = []
    return list(dialogues(path, Options(**options), counts, problems)), counts, problems


@pytest.fixture(params=["trees", "messages", "trees.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    records = flat(tree()["prompt"]) if request.param == "messages" else [tree()]
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / f"oasst.{request.param}"
    path.write_bytes(gzip.compress(data) if request.param.endswith("gz") else data)
    return path


def test_every_path_or_the_best(path: Path) -> None:
    found, counts, _ = read(path)
    long = Line(["What colour is the sky?", "It is blue.", "And why?", "Light scatters."], [0.0, 1.0, 0.0, 1.0], "e")
    assert sorted(found, key=lambda line: line.id) == [Line([long.turns[0], "Green, I think."], [0.0, 1.0], "c"), long]
    assert (counts["trees"], counts["messages"], counts["dialogues"]) == (1, 5, 2)
    assert read(path, best=True)[0] == [long]
    assert read(path, best=True, train_prompter=True)[0][0].weights == [1.0] * 4
    assert read(path, best=True, max_turns=2)[0][0].turns == long.turns[2:]
    assert read(path, language="de")[1]["language"] == 5


def test_messages_are_left_out_by_rule(tmp_path: Path) -> None:
    changes = ({"deleted": True}, {"review_result": False}, {"synthetic": True}, {"lang": "de"}, {"text": " "})
    replies = [message(f"r{n}", "A reply.", "assistant") | change for n, change in enumerate(changes)]
    content = {"message_tree_id": "a", "prompt": message("a", "Hello?", "prompter", replies=replies)}
    (tmp_path / "x.jsonl").write_text(json.dumps(content) + "\n")
    found, counts, _ = read(tmp_path / "x.jsonl", language="en")
    assert found == []
    assert {name: counts[name] for name in ("deleted", "rejected", "synthetic", "language", "no_context")} == {
        "deleted": 2, "rejected": 1, "synthetic": 1, "language": 1, "no_context": 1}  # fmt: skip


@pytest.mark.parametrize(
    "data", [b"", b"{}\n", b"hello\n", b"[" * 9999 + b"\n", b"\x1f\x8bxx", b"\xff\n", b'{"prompt": 7}\n']
)
def test_what_is_no_such_file_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(DialogueError, match=r"x.jsonl"):
        read(tmp_path / "x.jsonl")


def test_a_wrong_line_is_counted(path: Path) -> None:
    if path.suffix == ".gz":
        pytest.skip("text is appended")
    with path.open("a") as file:
        file.write('{"message_id": "z"}\n')
    found, counts, problems = read(path)
    assert (len(found), counts["unreadable"]) == (2, 1)
    assert problems == [f"{path}, line {len(path.read_text().splitlines())}: no 'message_tree_id'"]
