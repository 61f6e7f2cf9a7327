"""The screen of a chat: a coloured label for each speaker, and words that are not broken at the terminal's edge.

What is shown is left to `dialogpt.cli.terminal.repl`. Imported only where prompt_toolkit is installed.
"""

from __future__ import annotations

import os
import shutil
import sys

from prompt_toolkit import print_formatted_text
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from dialogpt.cli.terminal.repl import BOT_LABEL, YOU_LABEL

TAB = 8  # columns
STYLE = Style.from_dict({"you": "ansigreen", "bot": "ansicyan"})
CLASSES = {YOU_LABEL: "class:you", BOT_LABEL: "class:bot"}


def styled(label: str) -> FormattedText:
    """A label with its speaker's colour, or without one where NO_COLOR is set or the terminal has no colours."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return FormattedText([("" if plain else CLASSES.get(label, ""), label)])


class Screen:
    """Standard output, with words wrapped at the terminal's width while they are streamed.

    A word is printed at the white space after it, as only then its width is known; the newline after a reply prints the
    last. In scripts that are written without spaces a line may end after any wide letter.
    """

    def __init__(self) -> None:
        self.column, self.word = 0, ""

    def label(self, label: str) -> None:
        """Begin what a speaker says."""
        print_formatted_text(styled(label), style=STYLE, end="", file=sys.stdout, flush=True)
        self.column += get_cwidth(label)

    def write(self, text: str) -> None:
        """Show text; its last word is held back until the next white space."""
        for letter in text:
            if letter.isspace():
                self._end_word()
                self._put_space(letter)
            elif get_cwidth(letter) > 1:
                self._end_word()
                self.word = letter
                self._end_word()
            else:
                self.word += letter
        sys.stdout.flush()

    def _end_word(self) -> None:
        width = get_cwidth(self.word)
        columns = shutil.get_terminal_size().columns
        if self.column and self.column + width > columns and width <= columns:
            sys.stdout.write("\n")
            self.column = 0
        sys.stdout.write(self.word)
        self.column += width
        if self.column > columns:  # a word that is wider than a line: the terminal breaks it
            self.column = self.column % columns or columns
        self.word = ""

    def _put_space(self, space: str) -> None:
        if space == "\n":
            sys.stdout.write("\n")
            self.column = 0
            return
        width = TAB - self.column % TAB if space == "\t" else max(1, get_cwidth(space))
        if self.column + width >= shutil.get_terminal_size().columns:
            sys.stdout.write("\n")  # in place of a space that would reach the last column
            self.column = 0
        else:
            sys.stdout.write(space)
            self.column += width
