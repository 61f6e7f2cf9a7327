"""The config file: any flag of any command, under what is typed; and a sentence for each mistake in it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.cli import config_file
from dialogpt.cli.main import build_parser, main
from dialogpt.cli.options import generation_from
from dialogpt.errors import DialogueError
from tests.helpers import deadline, needs_posix

NEEDED: dict[str, list[str]] = {
    "reply": ["Hi!"],
    "explain": ["Hi!"],
    "convert": ["a", "b"],
    "import": ["FILE"],
    "push": ["a", "b/c"],
    "completion": ["bash"],
    "data reddit": ["DUMP", "--out", "OUT"],
    "data oasst": ["FILE", "--out", "OUT"],
    "data trigrams": ["FILE", "--out", "OUT"],
} | {command: [] for command in ("chat", "train", "evaluate", "serve", "info", "cache", "bench")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def parsed(file: Path | str, command: str, *typed: str) -> argparse.Namespace:
    words = [*command.split(), *NEEDED[command], f"--config={file}", *typed]
    options: argparse.Namespace = build_parser().parse_args(words)
    return options


def test_top_level_keys_are_for_every_command_and_tables_for_one(file: Path) -> None:
    file.write_text(
        'seed = 3\nmodel = "small"\n[chat]\ntemperature = 0.6\nmodel = "own"\n[data.reddit]\nworkers = 3\nmemory = "1G"'
    )
    chat = parsed(file, "chat")
    assert (chat.seed, chat.temperature, chat.model) == (3, 0.6, "own")
    reply = parsed(file, "reply")
    assert (reply.seed, reply.temperature, reply.model) == (3, None, "small")
    reddit = parsed(file, "data reddit")
    assert (reddit.workers, reddit.memory) == (3, 1 << 30)
    assert parsed(file, "convert").dtype is None
    assert parsed(file, "evaluate", "DIALOGUES").systems == [("--model", "small")]


def test_what_is_typed_wins(file: Path) -> None:
    file.write_text(
        'seed = 3\nmodel = "small"\ngreedy = true\n[serve]\ncors = ["https://a", "https://b"]\n'
        '[train]\npreset = "small"\n[explain]\nno-repeat-reply = false\n[chat]\nno-history = true'
    )
    assert parsed(file, "chat", "--seed", "4").seed == 4
    assert parsed(file, "chat", "--history").no_history is False
    assert parsed(file, "reply", "--no-greedy").greedy is False
    assert parsed(file, "serve").cors == ["https://a", "https://b"]
    assert parsed(file, "serve", "--cors", "*").cors == ["*"]
    assert parsed(file, "evaluate", "DATA", "--model", "x").systems == [("--model", "x")]
    assert parsed(file, "explain").no_repeat_reply is False
    assert parsed(file, "explain", "--no-repeat-reply").no_repeat_reply is True
    train = parsed(file, "train", "DATA", "--model", "tiny")
    assert (train.model, train.preset) == ("tiny", None)  # they exclude each other
    assert parsed(file, "train", "DATA").preset == "small"


def test_typed_means_typed_alone(file: Path) -> None:
    file.write_text("seed = 3\ngreedy = true")
    options = parsed(file, "chat", "--top-p", "0.5")
    assert options.typed == {"top_p", "config"}
    assert options.parser.set_in_file == {"--seed", "--greedy"}


def test_a_flag_may_be_named_like_another_command(file: Path) -> None:
    """`explain` has --reply; the command `reply` took its text for a table and ended in a traceback."""
    file.write_text("reply = 'Fine.'")
    assert parsed(file, "explain").reply == "Fine."
    assert parsed(file, "reply").batch is None


def test_a_typed_way_to_sample_wins_over_the_other_in_the_file(file: Path) -> None:
    file.write_text("do-sample = true")
    assert not generation_from(parsed(file, "reply", "--greedy")).do_sample
    file.write_text("greedy = true")
    assert generation_from(parsed(file, "reply", "--do-sample")).do_sample
    with pytest.raises(SystemExit):
        generation_from(parsed("", "reply", "--greedy", "--do-sample"))


def test_the_file_may_have_what_a_command_needs(file: Path) -> None:
    file.write_text("[data.reddit]\nout = 'o'")
    options = build_parser().parse_args(["data", "reddit", "x.zst", f"--config={file}"])
    assert options.out == Path("o")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["data", "reddit", "x.zst", "--config="])


def test_none_that_is_typed_unsets_what_the_file_sets(file: Path) -> None:
    file.write_text("min-p = 0.1")
    assert parsed(file, "chat").min_p == 0.1
    assert parsed(file, "chat", "--min-p", "none").min_p is None


def test_every_flag_of_every_command_can_be_set(file: Path) -> None:
    """Any flag: what `--FLAG VALUE` leaves behind is what the file leaves behind."""
    examples: dict[str, tuple[Any, list[str]]] = {
        "stop-strings": ("end", ["end"]),
        "suppress-tokens": ("3,17", ["3,17"]),
        "sequence-bias": ("[[[3], 2.5]]", ["[[[3], 2.5]]"]),
        "exponential-decay-length-penalty": ("[20, 1.05]", ["[20, 1.05]"]),
        "bad-words-ids": ("[[3], [17, 4]]", ["[[3], [17, 4]]"]),
        "cors": (["*"], ["*"]),
        "lora-target": ("c_attn", ["c_attn"]),
        "memory": ("2G", ["2G"]),
        "bad-words": ("x", ["x"]),
        "window": (8, ["8"]),
        "turn-prefix": (["<you>", "<me>"], ["<you>", "<me>"]),
    }
    number = 0
    root = build_parser()

    def told(file: Path | str, command: str, *words: str) -> argparse.Namespace:
        options: argparse.Namespace = root.parse_args([*command.split(), *NEEDED[command], f"--config={file}", *words])
        return options

    for command, parser in root.leaves().items():
        for flag, action in parser.flags().items():
            if action.nargs == 0:
                value, words = True, []
            elif action.choices:
                value, words = next(iter(action.choices)), [str(next(iter(action.choices)))]
            elif flag in examples:
                value, words = examples[flag]
            elif action.type is None or action.type is Path or flag in ("allowed-host",):
                value, words = "text", ["text"]
            else:
                value, words = None, []
                for candidate in (1, 0.5, "1", "true", "6h", "2G"):
                    try:
                        action.type(str(candidate))  # type: ignore[operator]
                    except (argparse.ArgumentTypeError, ValueError):
                        continue
                    value, words = candidate, [str(candidate)]
                    break
                assert value is not None, flag
            shown = {True: "true"}.get(value) if value is True else repr(value).replace("'", '"')
            if isinstance(value, str):
                shown = f"'{value}'"
            table = f"[{'.'.join(command.split())}]\n"
            file.write_text(f"{table}{flag} = {shown}\n")
            required = flag == "out" and command.startswith("data ")
            default = action.default
            typed, found = told("", command, f"--{flag}", *words), told(file, command)
            parser.set_defaults(**{action.dest: default})
            assert required or getattr(found, action.dest) == getattr(typed, action.dest), (command, flag)
            number += 1
    assert number > 250


MISTAKES = {
    "temprature = 1": "has an unknown key 'temprature'; did you mean temperature?",
    "[chat]\ntop_k = 4": r"\[chat\] has an unknown key 'top_k'; did you mean top-k\?",
    "[caht]\nseed = 1": r"unknown table \[caht\]; did you mean chat\?",
    "[data.redit]\nworkers = 1": r"\[data\] has an unknown table \[data.redit\]; did you mean reddit\?",
    "[data]\nworkers = 1": r"\[data\] has an unknown key 'workers'",
    "config = 'x'": "has an unknown key 'config'",
    "help = true": "has an unknown key 'help'",
    "temperature = true": "temperature: expected a text or a number, got true",
    "temperature = nan": "temperature: expected a text or a number, got nan",
    "model = ['tiny']": "model: expected a text, in quotes, got a list of 1",
    "model = true": "model: expected a text, in quotes, got true",
    'model = "a\\u0000"': "model: expected a text without zero bytes, got 'a",
    "seed = {}": "seed: expected a value of the flag --seed, got a table",
    "[chat]\nseed = {a = 1}": r"\[chat\] seed: expected a value of the flag --seed, got a table",
    "greedy = {}": "greedy: expected a value of the flag --greedy, got a table",
    "greedy = [true]": "greedy: expected true or false, got a list of 1",
    "temperature = 'warm'": "temperature: --temperature must be a number above 0.*, got 'warm'",
    "temperature = [0.5]": "temperature: expected a text or a number, got",
    "temperature = 2020-01-01": "temperature: expected a text or a number, got 2020-01-01",
    "stop-strings = 10:00:00": "stop-strings: expected a text or a number, got 10:00:00",
    "[chat.temperature]\nx = 1": r"\[chat\] temperature: expected a value of the flag --temperature, got a table",
    "greedy = 1": "greedy: expected true or false, got 1",
    "greedy = 'yes'": "greedy: expected true or false, got 'yes'",
    "model = 3": "model: expected a text, in quotes, got 3",
    "dtype = 'flaot32'": "dtype: invalid choice: 'flaot32'; did you mean float32?",
    "seed = -1": r"seed: '-1' is not an integer from 0 to",
    "seed = ": "is not valid TOML: ",
    "seed = 1\nseed = 2": "is not valid TOML",
    "chat = 3": "unknown key 'chat'",
    "turn-prefix = '<you>'": "turn-prefix: expected a list of 2, got '<you>'",
    "turn-prefix = ['<you>']": "turn-prefix: expected a list of 2, got",
    "a = " + "[" * 20_000: "nested too deeply|is not valid TOML",
}


@pytest.mark.parametrize("content", MISTAKES, ids=lambda content: content[:30])
def test_a_mistake_is_a_sentence_with_file_and_key(content: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(DialogueError, match=MISTAKES[content]) as error:
        parsed(file, "chat")
    assert f"the config file {file}" in str(error.value)


WRONG = (
    "{}",
    "{x = 1}",
    "[[1]]",
    "[{}]",
    "[true]",
    "nan",
    "2020-01-01",
    "10:00:00",
    '"\\u0000"',
    "9" * 400,
    "['x', 3]",
)


def test_a_value_of_a_wrong_type_is_a_sentence_for_every_flag(file: Path) -> None:
    """`memory` of 400 digits was a traceback; a table was "an unknown table", a date `datetime.date(2020, 1, 1)`."""
    root, refused = build_parser(), 0
    for command, parser in root.leaves().items():
        for flag, action in parser.flags().items():
            for value in WRONG:
                file.write_text(f"[{'.'.join(command.split())}]\n{flag} = {value}\n")
                default = action.default
                try:
                    root.parse_args([*command.split(), *NEEDED[command], f"--config={file}"])
                except DialogueError as error:
                    refused += 1
                    sentence = str(error)
                    assert sentence.startswith(f"the config file {file}: "), sentence
                    assert flag in sentence
                    assert (
                        "expected" in sentence
                        or "must be" in sentence
                        or "choose from" in sentence
                        or "not an" in sentence
                    )
                    assert "datetime" not in sentence
                else:
                    assert value in ("9" * 400, "['x', 3]"), (command, flag, value)
                parser.set_defaults(**{action.dest: default})
    assert refused > 2000


def test_a_value_out_of_range_says_where_it_was_set(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("top-p = 5")
    assert main(["reply", "Hi!", "--config", str(file)]) == 2
    assert f"--top-p must be a number from 0 to 1, got 5.0 (--top-p: set in {file})" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--config", str(tmp_path / "gone.toml")]) == 1
    assert "gone.toml cannot be read: No such file" in capsys.readouterr().err
    assert main(["info", "--config", str(tmp_path)]) == 1
    assert "is not a plain file" in capsys.readouterr().err
    (tmp_path / "latin").write_bytes(b'model = "\xe9"')
    assert main(["info", "--config", str(tmp_path / "latin")]) == 1
    assert "is not UTF-8" in capsys.readouterr().err


@needs_posix
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with deadline(), pytest.raises(DialogueError, match="is not a plain file"):
        config_file.read(tmp_path / "pipe")


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "dialogpt" / "config.toml"
    own.parent.mkdir()
    monkeypatch.delenv(config_file.VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    assert config_file.find(None) is None
    own.write_text("seed = 5")
    assert config_file.find(None) == own
    assert config_file.find("") is None
    assert config_file.find("other.toml") == Path("other.toml")
    assert build_parser().parse_args(["chat"]).seed == 5
    assert build_parser().parse_args(["chat", "--config", ""]).seed is None
    monkeypatch.setenv(config_file.VARIABLE, "")
    assert config_file.find(None) is None
    monkeypatch.setenv(config_file.VARIABLE, "third.toml")
    assert config_file.find(None) == Path("third.toml")


def test_the_home_folder_is_written_as_in_a_shell(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    file.write_text('model = "~/small"\nadapter = "a~/b"')
    options = parsed(file, "chat")
    assert (Path(options.model), options.adapter) == (tmp_path / "small", "a~/b")


def test_help_needs_no_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("nonsense")
    assert main(["chat", "--help", "--config", str(file)]) == 0
    assert main(["chat", "--config", str(file), "--help-all"]) == 0


@given(st.text(max_size=200) | st.sampled_from(["seed = ", "[chat]\n", "model = "]).flatmap(lambda s: st.just(s)))
def test_any_text_is_settings_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(content, encoding="utf-8", errors="replace", newline="")
    problem = str(file)
    try:
        parsed(file, "chat")
    except DialogueError as error:
        problem = str(error)
    assert str(file) in problem
