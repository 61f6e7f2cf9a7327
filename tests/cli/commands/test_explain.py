"""`dialogpt explain`: what it writes where, what it refuses, and that it explains the reply that `reply` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialogpt.chat import Chat
from dialogpt.cli.commands.explain import has_true_colour
from dialogpt.cli.main import main
from dialogpt.errors import DONE, FAILED, USAGE
from dialogpt.inspect import Inspection, explain
from dialogpt.inspect.text import percent, render_text, render_token, times

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def found() -> Inspection:
    return explain(
        Chat.load("tiny", seed=1), ["Hi! My name is Anna.", "Hello!", "What is my name?"], "Your name is Anna."
    )


def test_without_a_flag_the_essentials_are_printed(capsys: Captured) -> None:
    assert main(["explain", "Hi!", "--reply", "Hello."]) == DONE
    printed = capsys.readouterr().out
    assert "2 Bot     Hello.<end>" in printed
    assert "the reply without" in printed
    assert "\x1b" not in printed


def test_json_is_all_of_it_for_the_reply_of_the_same_seed(capsys: Captured) -> None:
    assert main(["reply", "Hi!", "--seed", "3"]) == DONE
    reply = capsys.readouterr().out.rstrip("\n")
    assert main(["explain", "Hi!", "--seed", "3", "--json"]) == DONE
    inspection = json.loads(capsys.readouterr().out)
    assert inspection["reply"]["text"] == reply
    assert inspection["model"]["name"] == "tiny"


def test_a_page_and_a_picture_are_written_and_named(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.html", tmp_path / "panels.png"
    dialogue = ["Costs $5 or $6? 🙂 <b>", "--reply", "It is $x_2$ & 你好"]
    assert main(["explain", *dialogue, "--out", str(page), "--png", str(picture)]) == DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(page) in captured.err
    assert str(picture) in captured.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "panels.png"]


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        ([], USAGE, "at least one TURN"),
        (["Hi!", "--json", "--text"], USAGE, "omit one of them"),
        (["Hi!", "--out", "FOLDER"], FAILED, "is a folder"),
        (["Hi!", "--png", "FOLDER/none/x.png"], FAILED, "there is no folder"),
        (["Hi!", "--model", "FOLDER/none"], FAILED, "none"),
    ],
)
def test_what_it_refuses_is_a_sentence(
    arguments: list[str], status: int, problem: str, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["explain", *(argument.replace("FOLDER", str(tmp_path)) for argument in arguments)]) == status
    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_colours_need_a_terminal_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLORTERM", raising=False)
    assert not has_true_colour()
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert has_true_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_true_colour()


def test_letters_stand_below_their_tokens(found: Inspection) -> None:
    lines = render_text(found, colours=False).splitlines()
    turn = next(k for k, line in enumerate(lines) if line.startswith("1 You"))
    name = lines[turn].index("name")
    assert lines[turn + 1][name] in ".abcd"
    assert len(lines[turn + 1]) <= len(lines[turn])


def test_with_colours_every_token_is_tinted_and_the_tint_ends(found: Inspection) -> None:
    text = render_text(found, colours=True)
    assert text.count("\x1b[48;2;") == len(found["tokens"]) == text.count("\x1b[0m")


@pytest.mark.parametrize("width", [30, 80])
def test_long_turns_are_wrapped(width: int) -> None:
    long = explain(Chat.load("tiny", seed=1), ["I went to the market and the sea and the hills. " * 3], "你好 🙂 ok.")
    dialogue = render_text(long, colours=False, width=width).split("\n\n")[1].splitlines()
    assert all(len(line) <= width + 2 for line in dialogue)
    assert len(dialogue) > 4


def test_one_token_has_its_panels(found: Inspection) -> None:
    text = render_token(found, found["reply"]["first"])
    for panel in ("could have come", "it would say", "attention on each turn", "its largest parts"):
        assert panel in text
    assert "nothing precedes it" in render_token(found, 0)
    assert "could have come" in render_token(found, 2)


def test_control_characters_are_spelled() -> None:
    text = render_text(explain(Chat.load("tiny", seed=1), ["a\x1b[31m\nb"], "\x07c"), colours=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\u001b" in text


def test_changes_are_said_in_words() -> None:
    assert times(0.01) == "as likely"
    assert times(-0.7) == "2.0 x less likely"
    assert times(5) == "148 x more likely"
    assert times(-40) == "10^17 x less likely"
    assert [percent(share) for share in (1, 0.5, 0.0123, 1e-9)] == ["100.0 %", "50 %", "1.2 %", "<0.01 %"]
