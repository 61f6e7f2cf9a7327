"""What a reader of one turn has to open: the files that a default turn runs through, counted whole.

Counted: the three READMEs on the way, every file of dialogpt/ and model/ in which a function runs between the typed
line and the shown reply of `dialogpt chat` (seen by a profile hook, in a second turn with the chat's preset, in
float32), and the three files that read keys and write to the screen, by name, as a script plays the person here. Not
counted: opening the checkpoint, flags, model/precision/, keeping the conversation on disk, and files of which a turn
uses only constants and types.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from dialogpt import Chat, GenerationConfig, Tokenizer
from dialogpt.cli.terminal.commands import CommandTalk
from dialogpt.cli.terminal.repl import Console
from tests.helpers import ROOT, random_model, small_vocabulary

READMES = ("README.md", "dialogpt/README.md", "model/README.md")
KEYBOARD = tuple(f"dialogpt/cli/terminal/{name}.py" for name in ("keyboard", "editor", "screen"))
MAX_TURN_LINES = 3750  # to be lowered with every file that leaves the turn


def files_of_a_turn() -> set[str]:
    """Return the paths, relative to the root, of the files whose functions run in a turn."""
    network = random_model(vocab_size=557, eos_token_id=556, n_positions=256)
    chat = Chat(network, Tokenizer(small_vocabulary()), GenerationConfig.chat(), seed=0)
    chat.reply("Hi")
    seen: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    waiting = ["Hello there"]

    def read(_prompt: str, _prefill: str) -> str:
        if not waiting:
            sys.setprofile(None)
            raise EOFError
        sys.setprofile(profile)
        return waiting.pop()

    shown: list[str] = []
    terminal = CommandTalk(chat, Console(read, shown.append, shown.append))
    before = sys.getprofile()
    try:
        terminal.talk()
    finally:
        sys.setprofile(before)
    assert len(chat.history.turns) == 4, shown
    paths = {Path(name).resolve() for name in seen}  # dialogpt/model is a link
    inside = {path.relative_to(ROOT.resolve()).as_posix() for path in paths if path.is_relative_to(ROOT.resolve())}
    return {name for name in inside if name.startswith(("dialogpt/", "model/")) and "precision/" not in name}


def test_the_files_of_a_turn_do_not_grow() -> None:
    files = sorted(files_of_a_turn() | {*READMES, *KEYBOARD})
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files}
    table = "\n".join(f"{count:>6}  {name}" for name, count in lines.items())
    assert {"dialogpt/chat.py", "dialogpt/replies.py", "model/gpt2.py"} <= {*lines}, table
    assert "dialogpt/cli/terminal/commands.py" not in lines, table
    assert sum(lines.values()) <= MAX_TURN_LINES, f"{sum(lines.values())} lines in {len(lines)} files\n{table}"
