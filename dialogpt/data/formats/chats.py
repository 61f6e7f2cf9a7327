"""What messengers export: Telegram, Discord (DiscordChatExporter), Facebook Messenger and Instagram.

Each is one file of JSON (Discord: or CSV) with messages in the order of time; a pause longer than `gap_seconds` begins
a new dialogue. Whatever is no text (a picture, a call, somebody who joins) is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dialogpt.data.dialogue import Dialogue, Message, grouped
from dialogpt.data.formats.kind import Head, Kind, each, told
from dialogpt.data.formats.tables import rows_of
from dialogpt.data.formats.times import seconds_of_iso
from dialogpt.data.json_stream import JsonStream
from dialogpt.data.source import Source
from dialogpt.errors import DialogueError

MESSENGER_LIMIT = 200_000  # messages of one file, newest first, so that all are held; Facebook puts 10,000 in one
MESSENGER_LETTERS = 32 << 20  # of all of them
DELETED = "a deleted account"

Read = Callable[[dict[str, Any]], "tuple[str, float | None, str]"]  # speaker, seconds, text; raises DialogueError


def _messages(source: Source, stream: JsonStream, read: Read) -> Iterator[Message]:
    """The messages of an array."""
    for line in stream.elements():
        content = stream.value()
        try:
            if type(content) is not dict:
                raise DialogueError("a message that is no object")
            speaker, seconds, text = read(content)
            if not text.strip():
                raise DialogueError("a message without text")
        except DialogueError as error:
            source.problem(line, str(error))
        else:
            yield Message(line, speaker, seconds, text.strip())


def _telegram_message(message: dict[str, Any]) -> tuple[str, float | None, str]:
    if message.get("type") != "message":
        raise DialogueError(f"no message: {str(message.get('action') or message.get('type'))[:40]}")
    text = message.get("text")
    if type(text) is list:  # formatted pieces and plain ones
        text = "".join(str(piece.get("text", "")) if type(piece) is dict else str(piece) for piece in text)
    if type(text) is not str or not text.strip():
        kind = message.get("media_type") or ("photo" if "photo" in message else "file" if "file" in message else "text")
        raise DialogueError("a message without text" if kind == "text" else f"media: {str(kind)[:40]}")
    speaker = message.get("from")
    moment = seconds_of_iso(message.get("date_unixtime")) or seconds_of_iso(message.get("date"))
    return speaker if type(speaker) is str else DELETED, moment, text


def read_telegram(source: Source) -> Iterator[Dialogue]:
    """The export of one chat, or of all: {"chats": {"list": [{"messages": [...]}]}}."""
    with source.json() as stream:
        yield from told(source, _telegram(source, stream))


def _telegram(source: Source, stream: JsonStream) -> Iterator[Dialogue]:
    for key in stream.members():
        found = stream.peek()
        if key in ("chats", "left_chats") and found == "{":
            for inner in stream.members():
                if inner == "list" and stream.peek() == "[":
                    for _ in stream.elements():
                        if stream.peek() == "{":
                            yield from _telegram(source, stream)
                        else:
                            stream.value()
                else:
                    stream.value()
        elif key == "messages" and found == "[":
            yield from grouped(_messages(source, stream, _telegram_message), source.reading.gap_seconds)
        else:
            stream.value()


def _discord_message(message: dict[str, Any]) -> tuple[str, float | None, str]:
    if message.get("type", "Default") not in ("Default", "Reply"):
        raise DialogueError(f"no message: {str(message.get('type'))[:40]}")
    author, text = message.get("author"), message.get("content")
    names = [author.get(name) for name in ("nickname", "name")] if type(author) is dict else []
    speaker = next((name for name in names if type(name) is str and name), DELETED)
    if type(text) is not str or not text.strip():
        raise DialogueError("media: an attachment" if message.get("attachments") else "a message without text")
    return speaker, seconds_of_iso(message.get("timestamp")), text


def read_discord(source: Source) -> Iterator[Dialogue]:
    """A channel as DiscordChatExporter writes it, in JSON or CSV."""
    with source.json() as stream:
        is_object = stream.peek() == "{"
    if is_object:
        yield from told(source, _members(source, _discord_message))
    else:
        yield from grouped(_discord_rows(source), source.reading.gap_seconds)


def _members(source: Source, read: Read) -> Iterator[Dialogue]:
    with source.json() as stream:
        for key in stream.members():
            if key == "messages" and stream.peek() == "[":
                yield from grouped(_messages(source, stream, read), source.reading.gap_seconds)
            else:
                stream.value()
        stream.end()


def _discord_rows(source: Source) -> Iterator[Message]:
    rows = rows_of(source)
    _, header = next(rows, (0, []))
    for number, row in rows:
        cells = dict(zip(header, row, strict=False))
        text = cells.get("Content", "").strip()
        if text:
            yield Message(number, cells.get("Author", DELETED), seconds_of_iso(cells.get("Date")), text)
        else:
            source.problem(number, "media: an attachment" if cells.get("Attachments") else "a message without text")


def mended(text: str) -> str:
    """Text whose UTF-8 was written out as Latin-1, one letter a byte, as Facebook's exports have it."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:  # it is right as it is
        return text


_NO_TEXT = ("photos", "videos", "audio_files", "gifs", "sticker", "files", "share")


def _messenger_message(message: dict[str, Any]) -> tuple[str, float | None, str]:
    text, speaker, moment = (message.get(key) for key in ("content", "sender_name", "timestamp_ms"))
    if type(text) is not str or not text.strip():
        media = next((key for key in _NO_TEXT if key in message), None)
        raise DialogueError(f"media: {media}" if media else "a message without text")
    if message.get("is_unsent") is True or message.get("type") in ("Call", "Subscribe", "Unsubscribe"):
        raise DialogueError(f"no message: {str(message.get('type', 'unsent'))[:40]}")
    seconds = seconds_of_iso(moment / 1000) if isinstance(moment, (int, float)) else None
    return mended(speaker) if type(speaker) is str else DELETED, seconds, mended(text)


def read_messenger(source: Source) -> Iterator[Dialogue]:
    """A file of a chat, newest first; it is held whole and turned round."""
    yield from told(source, _messenger(source))


def _messenger(source: Source) -> Iterator[Dialogue]:
    held: list[Message] = []
    letters = 0
    with source.json() as stream:
        for key in stream.members():
            if key != "messages" or stream.peek() != "[":
                stream.value()
                continue
            for message in _messages(source, stream, _messenger_message):
                held.append(message)
                letters += len(message.text)
                if len(held) > MESSENGER_LIMIT or letters > MESSENGER_LETTERS:
                    raise DialogueError(
                        f"{source.path} holds more than {MESSENGER_LIMIT:,} messages; Facebook puts 10,000 in a file"
                    )
        stream.end()
    held.reverse()
    held.sort(key=lambda message: message.seconds or 0.0)
    yield from grouped(held, source.reading.gap_seconds)


def _is_telegram(head: Head) -> bool:
    chat = head.has(1, "messages") and head.has_any(2, "from_id", "date_unixtime", "text_entities", "actor_id")
    return chat or (head.has(1, "chats") and head.has(2, "list"))


def _is_discord(head: Head) -> bool:
    table = bool(head.lines) and head.lines[0].replace('"', "").startswith("AuthorID,Author,Date,Content")
    return table or head.has(1, "guild", "channel")


KINDS = (
    Kind("telegram", "Telegram's export in JSON, of one chat or of all", _is_telegram, each(read_telegram)),
    Kind("discord", "DiscordChatExporter's JSON or CSV", _is_discord, each(read_discord)),
    Kind("messenger", "Facebook Messenger's and Instagram's JSON",
         lambda head: head.has(1, "participants") and head.has_any(2, "sender_name"), each(read_messenger)),
)  # fmt: skip
