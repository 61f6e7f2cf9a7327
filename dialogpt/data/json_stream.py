"""JSON of any size, one value at a time: an export is one object around an array of a million messages.

The standard library parses a text whole; here it is asked for one member or one element after the other, from a buffer
that holds no more than the largest of them. What the values mean is left to the formats.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from dialogpt.errors import DialogueError

CHUNK = 1 << 18  # bytes read at a time
VALUE_LIMIT = 4 << 20  # letters of one value; the longest conversation of chitchat-dataset has 60 kB
NEAR_THE_END = 16  # letters: an error this near to the end of what was read may be one of reading too little
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonStream:
    """A pull parser: the caller says what comes next and takes it, or lets it be skipped.

    Attributes:
        line: of the place that was reached, from 1.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Begin to read.

        Args:
            read: gives the next bytes, at most so many; nothing at the end.
        """
        self._read = read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer, self._place, self._ended = "", 0, False
        self.line = 1

    def peek(self) -> str:
        """The next letter that is no blank, or nothing at the end."""
        while True:
            blank = _BLANK.match(self._buffer, self._place)
            assert blank is not None
            self._go_to(blank.end())
            if self._place < len(self._buffer) or not self._more():
                return self._buffer[self._place : self._place + 1]

    def value(self) -> Any:
        """Parse the value that comes next, whole.

        Raises:
            DialogueError: it is damaged, or longer than `VALUE_LIMIT`.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._place)
            except RecursionError:
                raise self._wrong("brackets are nested too deeply") from None
            except json.JSONDecodeError as error:
                short = error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - NEAR_THE_END
                if not (short and self._more()):
                    raise self._wrong(error.msg) from None
            except ValueError:
                raise self._wrong("a number of thousands of digits") from None
            else:
                if end < len(self._buffer) or not self._more():  # a number may go on
                    self._go_to(end)
                    return value
            if len(self._buffer) - self._place > VALUE_LIMIT:
                raise self._wrong(f"a value is longer than {VALUE_LIMIT >> 20} MiB")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller takes the value after each, by any of these methods."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong("a key is no text")
            self._take(":")
            yield key
            if self._take(",", "}") == "}":
                return

    def elements(self) -> Iterator[int]:
        """The line of each element of the array that comes next; the caller takes each, by any of these methods."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            self.peek()
            yield self.line
            if self._take(",", "]") == "]":
                return

    def end(self) -> None:
        """Raise unless everything was read."""
        if self.peek():
            raise self._wrong("something comes after the end of the JSON")

    def _take(self, *expected: str) -> str:
        found = self.peek()
        if found not in expected or not found:
            shown = repr(found) if found else "the end of the file"
            raise self._wrong(f"expected {' or '.join(map(repr, expected))}, found {shown}")
        self._go_to(self._place + 1)
        return found

    def _go_to(self, place: int) -> None:
        self.line += self._buffer.count("\n", self._place, place)
        self._place = place

    def _more(self) -> bool:
        """Read on; twice as much each time, so that a long value is tried only a few times."""
        if self._ended:
            return False
        held = self._buffer[self._place :]
        data = self._read(max(CHUNK, 4 * len(held)) if len(held) < VALUE_LIMIT else CHUNK)
        try:
            self._buffer, self._place = held + self._decoder.decode(data, not data), 0
        except UnicodeDecodeError as error:
            raise self._wrong(f"not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
        self._ended = not data
        return bool(data)

    def _wrong(self, what: str) -> DialogueError:
        return DialogueError(f"line {self.line}: not valid JSON: {what}")
