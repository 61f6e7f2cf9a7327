"""Two runs that write the same output: the second says so at its start, and leaves the first alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogpt.cli.main import main
from dialogpt.files.disk import lock_output
from dialogpt.weights.formats import new_folder
from tests.helpers import needs_posix
from tests.train.runs import write_dialogues


def _dialogues(folder: Path) -> str:
    return str(write_dialogues(folder / "d.jsonl", 4))


def _trees(folder: Path) -> str:
    reply = {"message_id": "2", "parent_id": "1", "text": "Fine.", "role": "assistant", "lang": "en", "replies": []}
    prompt = {"message_id": "1", "text": "How are you?", "role": "prompter", "lang": "en", "replies": [reply]}
    path = folder / "x.trees.jsonl"
    path.write_text(json.dumps({"message_tree_id": "1", "prompt": prompt}) + "\n")
    return str(path)


COMMANDS: dict[str, Callable[[Path, str], list[str]]] = {
    "convert": lambda folder, out: ["convert", "tiny", out],
    "convert --to hf": lambda folder, out: ["convert", "tiny", out, "--to", "hf"],
    "import": lambda folder, out: ["import", _dialogues(folder), "--out", out],
    "data oasst": lambda folder, out: ["data", "oasst", _trees(folder), "--out", out],
    "data trigrams": lambda folder, out: ["data", "trigrams", _dialogues(folder), "--out", out, "--min-count", "1"],
    "reply --batch": lambda folder, out: ["reply", "--batch", _dialogues(folder), "--output", out],
}


@needs_posix
@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_run_is_refused_at_its_start(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only at its end did it find the other's output, after all of the work was done twice."""
    out = tmp_path / "out"
    words = COMMANDS[command](tmp_path, str(out))
    release = lock_output(out)
    before = sorted(tmp_path.iterdir())
    assert main(words) == 1
    assert f"{out} is being written by another run; wait for its end" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    release()
    assert main(words) == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@needs_posix
def test_a_folder_that_appears_while_it_is_waited_for_is_left_alone(tmp_path: Path) -> None:
    """Two names of one folder are one output."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
        with pytest.raises(ValueError, match="is being written by another run"), new_folder(tmp_path / "link" / "out"):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
