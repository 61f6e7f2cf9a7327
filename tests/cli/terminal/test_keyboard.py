"""A real pseudo-terminal: the line editor, remembered lines, and keys that arrive while a reply is shown."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from dialogpt import Chat
from dialogpt.cli.terminal import keyboard, typed_lines
from tests.helpers import WAIT_SECONDS, environment, needs_posix

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child becomes another program at once

CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-Z]|[=>])|\r")  # what moves the cursor, colours, and modes


class Screen:
    """A chat in a pseudo-terminal, and what it has shown so far."""

    def __init__(self, model: Path, state: Path, *flags: str, shell: bool = False) -> None:
        import pty  # which Windows has not

        variables = environment(XDG_STATE_HOME=str(state), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1", PS1="shell> ")
        command = [sys.executable, "-m", "dialogpt", "chat", "--model", str(model), *flags]
        program = ["sh", "-i"] if shell else command  # what no shell has started cannot be stopped
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(program[0], program, variables)
        self.data, self.shown, self.seen = b"", "", 0
        if shell:
            self.press(f"{shlex.join(command)}\n")

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown, after what was waited for before."""
        while (place := self.shown.find(text, self.seen)) < 0:
            assert self.read(), self.shown
        self.seen = place + len(text)

    def read(self) -> bool:
        """Read the next output; false when the program has ended, or prints nothing for minutes."""
        if not select.select([self.terminal], [], [], WAIT_SECONDS)[0]:
            return False
        try:
            data = os.read(self.terminal, 4096)
        except OSError:  # the other end is closed
            return False
        self.data += data
        self.shown = CONTROL.sub("", self.data.decode(errors="replace"))
        return bool(data)

    def press(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def status(self) -> int:
        """The exit status; a program that does not end is killed, which is a status too."""
        while self.read():  # it cannot end before somebody has read what it wrote
            pass
        for _ in range(10 * WAIT_SECONDS):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@needs_posix
def test_a_person_talks_and_leaves(published: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen(published, state, "--seed", "1")
    screen.wait_for("you> ")
    screen.press("Hello\n")
    screen.wait_for("bot> ")
    screen.wait_for("you> ")
    screen.press("\x04")  # Ctrl-D
    assert screen.status() == 0
    history = state / "dialogpt" / "history"
    assert "Hello" in history.read_text()
    assert b"36mbot> " in screen.data
    assert b"32myou> " in screen.data
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@needs_posix
def test_the_title_counts_packed_weights_too(state: Path) -> None:
    screen = Screen(Path("tiny"), state, "--dtype", "int8")
    screen.wait_for("tiny, 7.0 million parameters, int8.")
    screen.wait_for("you> ")
    screen.press("\x04")
    assert screen.status() == 0


@needs_posix
def test_ctrl_c_at_the_prompt_clears_and_leaves(published: Path, state: Path) -> None:
    screen = Screen(published, state, "--no-history")
    screen.wait_for("you> ")
    screen.press("half a line")
    screen.wait_for("half a line")
    screen.press("\x03")
    screen.press("\x03")
    screen.wait_for("Ctrl-C again")
    screen.wait_for("you> ")
    screen.press("\x03")
    assert screen.status() == 130
    assert not state.exists()


@needs_posix
def test_ctrl_z_and_fg_show_the_prompt_again(state: Path) -> None:
    screen = Screen(Path("tiny"), state, "--no-history", shell=True)
    screen.wait_for("you> ")
    screen.press("half a")
    screen.wait_for("half a")
    screen.press("\x1a")
    screen.wait_for("Stopped")
    screen.press("fg\n")
    screen.wait_for("you> half a")
    screen.press(" line\n")
    screen.wait_for("bot> ")
    screen.wait_for("you> ")
    screen.press("\x04")
    screen.wait_for("shell> ")
    screen.press("exit 7\n")
    assert screen.status() == 7


@needs_posix
def test_no_color_is_respected(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(Path("tiny"), state, "--no-history")
    screen.wait_for("you>")  # a space without colour is a movement
    screen.press("Hello\n")
    screen.wait_for("bot> ")
    screen.wait_for("you>")  # a space without colour is a movement
    screen.press("\x04")
    assert screen.status() == 0
    assert b"36mbot> " not in screen.data
    assert b"32myou> " not in screen.data


@needs_posix
def test_keys_pressed_during_a_reply_wait_for_the_prompt(published: Path, state: Path) -> None:
    screen = Screen(published, state, "--no-history", "--greedy", "--max-new-tokens", "100", "--min-new-tokens", "100")
    screen.wait_for("you> ")
    screen.press("Hello\n")
    screen.wait_for("bot> ")
    screen.press("/hel")
    screen.wait_for("you> ")
    screen.press("p\n")
    screen.wait_for("/retry")
    reply = screen.shown.split("bot> ")[1].split("you> ")[0]
    assert "/hel" not in reply
    screen.press("/exit\n")
    assert screen.status() == 0


@needs_posix
def test_a_history_file_that_cannot_be_is_a_notice(published: Path, state: Path) -> None:
    (state / "dialogpt" / "history").mkdir(parents=True)
    screen = Screen(published, state)
    screen.wait_for("typed lines are not remembered in a file")
    screen.wait_for("you> ")
    screen.press("\x04")
    assert screen.status() == 0


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"Hello\nHow are you?\n", ["Hello", "How are you?"]),
        (b"_HiStOrY_V2_\nHow\\040are\\040you?\n", ["How are you?"]),
        (b"one\n\0\xff\x1b[2J\ntwo\n", ["one", "two"]),
        ("a\u3000b\na\u00a0b\na\tb\na\u2028b\n\u202eevil\n".encode(), ["a\u3000b", "a\u00a0b", "a\tb", "a\u2028b"]),
        (b"".join(b"%d\n" % n for n in range(3000)), [str(n) for n in range(2000, 3000)]),
    ],
)
def test_a_history_of_any_library_is_read(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    """Libedit refuses a file that is empty or GNU readline's: an error message at the first start on macOS."""
    (tmp_path / "history").write_bytes(content)
    assert typed_lines.read_lines(tmp_path / "history") == lines


def test_two_talks_lose_no_line_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second ends while the first has read the file and not written it yet."""
    path = tmp_path / "history"
    path.write_text("before\n")
    honest = typed_lines.read_lines
    other = threading.Thread(target=typed_lines.add_lines, args=(path, ["of the other", "", "a\x1bb"]))

    def read(path: Path) -> list[str]:
        lines = honest(path)
        if threading.current_thread() is not other:
            other.start()
            other.join(1)
        return lines

    monkeypatch.setattr(typed_lines, "read_lines", read)
    monkeypatch.setattr(typed_lines, "LOCK_SECONDS", WAIT_SECONDS)
    typed_lines.add_lines(path, ["of one"])
    other.join(WAIT_SECONDS)
    assert honest(path) == ["before", "of one", "of the other"]


def test_lines_of_earlier_talks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Japanese spaces, unbreakable ones and tabs cost a line; and a kill while the file was written cost them all."""
    path = tmp_path / "history"
    lines = ["a\u3000b", "a\u00a0b", "a\tb"]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    typed_lines.add_lines(path, ["c\u3000d", "two\nlines", "\ud800"])
    assert typed_lines.read_lines(path) == [*lines, "c\u3000d"]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        typed_lines.add_lines(path, ["more"])
    assert typed_lines.read_lines(path) == [*lines, "c\u3000d"]


def test_without_an_editor_edit_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing could be inserted, /edit asked for a line and did not say for which."""
    monkeypatch.setattr("builtins.input", lambda prompt: f"{prompt}Hello")
    assert keyboard._read_plainly("you> ", "Helo\x1b") == "you> Hello"
    assert capsys.readouterr().err == (
        "  you said: Helo\ufffd\n  type what you want to say instead; an empty line leaves it as it was\n"
    )
    assert keyboard._read_plainly("you> ", "") == "you> Hello"
    assert capsys.readouterr().err == ""


def test_a_talk_needs_no_line_editor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "dialogpt.cli.terminal.editor", None)
    lines = iter(["Hi", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert keyboard.open_terminal(Chat.load("tiny", seed=1), "a title", remember=True) == 0
    assert "bot> " in capsys.readouterr().out
