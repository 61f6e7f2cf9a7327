"""A real pseudo-terminal: readline, remembered lines, and keys that arrive while a reply is shown."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import environment, needs_posix

pytestmark = [
    needs_posix,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # the child becomes another program at once
]


class Screen:
    """A chat in a pseudo-terminal, and what it has shown so far."""

    def __init__(self, model: Path, state: Path, *flags: str) -> None:
        import pty  # which Windows has not

        variables = environment(XDG_STATE_HOME=str(state), TERM="dumb")
        command = [sys.executable, "-m", "dialogpt", "chat", "--model", str(model), *flags]
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, command, variables)
        self.shown, self.seen = "", 0

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown, after what was waited for before."""
        while (place := self.shown.find(text, self.seen)) < 0:
            assert self.read(), self.shown
        self.seen = place + len(text)

    def read(self) -> bool:
        """Take in what is shown next; false when the program has ended, or says nothing for half a minute."""
        if not select.select([self.terminal], [], [], 30)[0]:
            return False
        try:
            data = os.read(self.terminal, 4096)
        except OSError:  # the other end is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def press(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C while a key is waited for: before that, Python notes a signal and waits for the next key."""
        time.sleep(0.3)
        self.press("\x03")

    def status(self) -> int:
        """The exit status; a program that does not end is killed, which is a status too."""
        while self.read():  # it cannot end before somebody has read what it wrote
            pass
        for _ in range(50):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_person_talks_and_leaves(published: Path, state: Path) -> None:
    screen = Screen(published, state, "--seed", "1")
    screen.wait_for("you> ")
    screen.press("Hello\n")
    screen.wait_for("bot> ")
    screen.wait_for("you> ")
    screen.press("\x04")  # Ctrl-D
    assert screen.status() == 0
    history = state / "dialogpt" / "history"
    assert "Hello" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_title_counts_packed_weights_too(state: Path) -> None:
    screen = Screen(Path("tiny"), state, "--dtype", "int8")
    screen.wait_for("tiny, 7.0 million parameters, int8.")
    screen.wait_for("you> ")
    screen.press("\x04")
    assert screen.status() == 0


def test_ctrl_c_at_the_prompt_clears_and_leaves(published: Path, state: Path) -> None:
    screen = Screen(published, state, "--no-history")
    screen.wait_for("you> ")
    screen.press("half a line")
    screen.wait_for("half a line")
    screen.interrupt()
    screen.wait_for("Ctrl-C again")
    screen.wait_for("you> ")
    screen.interrupt()
    assert screen.status() == 130
    assert not state.exists()


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


def test_a_history_file_that_cannot_be_is_a_notice(published: Path, state: Path) -> None:
    (state / "dialogpt" / "history").mkdir(parents=True)
    screen = Screen(published, state)
    screen.wait_for("typed lines are not remembered in a file")
    screen.wait_for("you> ")
    screen.press("\x04")
    assert screen.status() == 0
