"""What Tab offers at the prompt of a chat: slash commands, the names of settings, and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from dialogpt.cli.terminal.commands import SETTINGS


class CommandCompleter(Completer):
    """Completes slash commands, names of settings, and names of files.

    Attributes:
        usages: of each slash command the arguments it takes.
    """

    def __init__(self) -> None:
        """Offer no command yet."""
        self.usages: Mapping[str, str] = {}
        self.paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the text before the cursor may go on with."""
        text = document.text_before_cursor
        name, space, argument = text.removeprefix("/").partition(" ")
        if not text.startswith("/"):
            return
        if not space:
            found = (f"/{command}" for command in self.usages if command.startswith(name))
            yield from (Completion(command, start_position=-len(text)) for command in found)
        elif name == "set":
            names = (setting.replace("_", "-") for setting in SETTINGS)
            typed = argument.replace("_", "-")
            yield from (Completion(n, start_position=-len(argument)) for n in names if n.startswith(typed))
        elif "FILE" in self.usages.get(name, ""):
            yield from self.paths.get_completions(Document(argument), complete_event)
