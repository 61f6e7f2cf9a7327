"""Conversations that are kept as they grow, each in a file of its own, so that none is lost with its terminal.

The files have the format of `dialogpt.cli.terminal.transcripts`; only their owner can read them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dialogpt.chat import Chat
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.terminal import transcripts
from dialogpt.errors import DialogueError
from dialogpt.files.disk import lock, reason_of
from dialogpt.history import Turn

MAX_CONVERSATIONS = 200  # the oldest are removed
TITLE_LETTERS = 48


def state_folder() -> Path:
    """Where this program keeps what it remembers between talks.

    Raises:
        RuntimeError: the home folder is not known.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dialogpt"


@dataclass(frozen=True)
class Kept:
    """A conversation on the disk: its file, when it last grew, how many turns it has, and how it begins."""

    path: Path
    changed: datetime
    num_turns: int
    title: str


class Conversations:
    """The kept conversations, and the one that is growing.

    What goes wrong with the disk is a warning in the log, once, and the talk goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: Path | None = None
        self._release: Callable[[], None] = lambda: None
        self._written: list[Turn] = []
        self._persona: Turn | None = None
        self._warned = False

    def keep(self, chat: Chat) -> None:
        """Write the conversation to its file if it has changed; an empty one ends the file."""
        turns = list(chat.history.turns)
        if turns == self._written and chat.persona is self._persona:
            return
        if not turns:
            self.close()
            return
        with self._without_keeping_on_error():
            if self._path is None:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._open(self._new_path())
                self._remove_oldest()
            assert self._path is not None
            transcripts.save(str(self._path), turns, chat.tokenizer, chat.persona)
            self._written, self._persona = turns, chat.persona

    def listed(self) -> list[Kept]:
        """All kept conversations, the one that changed last first."""
        found = []
        for path in self._paths():
            with suppress(OSError, ValueError):
                texts = transcripts.texts(path)
                title = printable(one_line(texts[0] if texts else ""))
                changed = datetime.fromtimestamp(path.stat().st_mtime)
                shown = title if len(title) <= TITLE_LETTERS else f"{title[: TITLE_LETTERS - 1]}…"
                found.append(Kept(path, changed, len(texts), shown))
        return found

    def bring_back(self, chat: Chat, number: int) -> None:
        """Go on with a kept conversation; where another talk has it open, in a copy.

        Args:
            chat: gets its turns.
            number: its place in `listed`, from 1 on.

        Raises:
            DialogueError: there is no such conversation, or it cannot be read.
        """
        kept = self.listed()
        if not 1 <= number <= len(kept):
            count = f"1 to {len(kept)}" if kept else "none yet"
            raise DialogueError(f"there is no conversation {number}; /conversations lists them ({count})")
        path = kept[number - 1].path
        chat.restore(transcripts.load(str(path), chat.tokenizer, chat.model.config.vocab_size))
        chat.set_persona(transcripts.load_persona(str(path)))
        if path == self._path:
            return
        self.close()
        with self._without_keeping_on_error(), suppress(BlockingIOError):
            self._open(path)
            self._written, self._persona = list(chat.history.turns), chat.persona

    def close(self) -> None:
        """Let go of the file that is growing."""
        self._release()
        self._path, self._release, self._written, self._persona = None, lambda: None, [], None

    def _open(self, path: Path) -> None:
        release = lock(path.with_name(f".{path.name}.lock"))
        self._path, self._release = path, release

    def _new_path(self) -> Path:
        begun = datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")
        return self.folder / f"{begun}-{os.getpid()}.json"

    def _paths(self) -> list[Path]:
        dated = []
        with suppress(OSError):
            for path in self.folder.glob("*.json"):
                with suppress(OSError):
                    dated.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(dated, reverse=True)]

    def _remove_oldest(self) -> None:
        for path in self._paths()[MAX_CONVERSATIONS - 1 :]:
            with suppress(OSError):
                path.unlink()
                path.with_name(f".{path.name}.lock").unlink(missing_ok=True)

    @contextmanager
    def _without_keeping_on_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DialogueError) as error:
            if not self._warned:
                logging.getLogger(__name__).warning("this conversation is not kept: %s", reason_of(error))
            self._warned = True
