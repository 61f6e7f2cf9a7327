"""Completion in the shells themselves: each runs its script and is asked what may follow."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dialogpt.cli.commands.completion import SHELLS, takes_file
from dialogpt.cli.main import build_parser, main
from tests.helpers import WAIT_SECONDS, needs_posix

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each shell's script, in a folder with files to complete."""
    folder = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "dialogpt", "completion", shell], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        found[shell] = folder / f"script.{shell}"
        found[shell].write_text(done.stdout)
    (folder / "dialogues.jsonl").touch()
    (folder / "dialogue-run").mkdir()
    return found


def bash(script: Path, line: str) -> list[str]:
    program = """
    source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
    _shtab_dialogpt dialogpt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    return answered(["bash", "--norc", "-c", program, "bash", str(script), *line.split(" ")], script.parent)


def fish(script: Path, line: str) -> list[str]:
    found = answered(["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"], script.parent)
    return [entry.split("\t")[0] for entry in found]


def answered(command: list[str], folder: Path) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS)
    return done.stdout.split("\n") if command[0] == "fish" else done.stdout.split()


@needs_posix
@pytest.mark.parametrize("shell", [bash, fish], ids=lambda shell: shell.__name__)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dialogpt c", {"chat", "convert", "cache", "completion"}),
        ("dialogpt chat --temp", {"--temperature"}),
        ("dialogpt chat --dtype fl", {"float64", "float32", "float16"}),
        ("dialogpt data reddit --mem", {"--memory"}),
    ],
)
def test_commands_flags_and_choices_are_completed(
    shell: object, line: str, expected: set[str], scripts: dict[str, Path]
) -> None:
    assert callable(shell)
    assert expected <= set(shell(scripts[shell.__name__], line))


@needs_posix
@pytest.mark.parametrize("shell", [bash, fish], ids=lambda shell: shell.__name__)
@pytest.mark.parametrize("line", ["reply --batch dialogues", "chat --model dialogue-", "convert dialogue-"])
def test_file_names_are_completed(shell: object, line: str, scripts: dict[str, Path]) -> None:
    assert callable(shell)
    found = shell(scripts[shell.__name__], f"dialogpt {line}")
    assert {name.rstrip("/") for name in found if name} <= {"dialogues.jsonl", "dialogue-run"}
    assert any(name.startswith("dialogue") for name in found)


@needs_posix
def test_zsh_knows_the_commands_and_their_flags(scripts: dict[str, Path]) -> None:
    """It completes at a prompt alone; here it shows what it has read, and that the program is tied to it."""
    program = """
    autoload -Uz compinit; compinit -u -D
    eval "$(cat $1)"
    _describe() { print -rl -- $_commands }
    print -r -- "$_comps[dialogpt]"
    print -rl -- $_shtab_dialogpt_chat_options
    _shtab_dialogpt_commands
    """
    found = answered(["zsh", "-f", "-c", program, "zsh", str(scripts["zsh"])], scripts["zsh"].parent)
    assert found[0] == "_shtab_dialogpt"
    assert any("--temperature" in word for word in found)
    assert any(word.startswith("completion:") for word in found)


@needs_posix
def test_the_scripts_are_their_shells_language(scripts: dict[str, Path]) -> None:
    for shell, script in scripts.items():
        if shutil.which(shell) is not None:
            subprocess.run([shell, "-n", str(script)], check=True, timeout=WAIT_SECONDS)


def test_what_takes_a_file_is_known_by_its_type_or_its_name() -> None:
    def files(command: str) -> set[str]:
        actions: list[argparse.Action] = build_parser().leaves()[command]._actions
        return {(action.option_strings or [action.dest])[0] for action in actions if takes_file(action)}

    assert {"--batch", "--output", "--model", "--draft-model", "--reverse-model", "--adapter", "--config"} == files(
        "reply"
    )
    assert {"data", "--out", "--valid", "--model"} <= files("train")
    assert {"source", "destination"} <= files("convert")
    assert "--name" not in files("serve")


def test_without_shtab_the_advice_is_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "completion needs shtab; install with: pip install" in capsys.readouterr().err


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "choose from bash, zsh, fish" in capsys.readouterr().err
