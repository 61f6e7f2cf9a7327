"""JSON with a dialogue an object: `turns` (ours), `messages` (OpenAI's), `sharegpt`; one a line, or one array of them.

Whatever orjson refuses is given to the standard library, which takes NaN, and says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

from dialogpt.data.dialogue import Dialogue, texts
from dialogpt.data.fast_json import loads
from dialogpt.data.formats.kind import Head, Kind, each, line_reader, told
from dialogpt.data.settings import Reading
from dialogpt.data.source import LINE_LIMIT, TOO_LONG, Source, decoded
from dialogpt.errors import DialogueError

ASSISTANT, SYSTEM = "assistant", "system"
Number = Callable[[bool], float]  # int or float, in which a format has its weights
MAX_KNOWN = 100  # messages of a dialogue whose speakers are remembered for others with the same
_ROLES = {  # other names of the three in use
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bard": ASSISTANT,
    "bing": ASSISTANT,
    "claude": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "prompter": "user",
    "developer": SYSTEM,
}


def json_of(line: bytes, key: bytes) -> Any:
    """The value on a line.

    Args:
        line: JSON.
        key: with its quotes, the one that matters: a line that holds it more than once is looked at again.

    Raises:
        DialogueError: it is damaged, or holds a key twice.
    """
    if len(line) > LINE_LIMIT:
        raise DialogueError(TOO_LONG)
    if line.count(key) > 1:
        return _careful(line)
    try:
        return loads(line)
    except (ValueError, RecursionError):
        return _careful(line)


def _careful(line: bytes) -> Any:
    """The value on a line, by the standard library, which says what is wrong."""
    text = decoded(line)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except DialogueError:
        raise
    except (ValueError, RecursionError) as error:
        raise DialogueError(f"not valid JSON ({str(error)[:200]})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with a duplicate key: nobody knows which value is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DialogueError(f'the key "{twice}" is duplicate')
    return found


def turns_of(content: Any, reading: Reading) -> Dialogue:
    """{"turns": [...], "weights": [...], "speakers": [...]}; only turns are needed, other keys are not looked at.

    Where `reading.references` says so, "references" holds what people replied to the last turn.
    """
    try:
        turns = content["turns"]
    except (TypeError, LookupError):
        turns = None
    if type(turns) is not list or not texts(turns):
        raise DialogueError('no list of texts under "turns"')
    if len(content) == 1:
        return Dialogue(turns)
    weights, speakers = content.get("weights"), content.get("speakers")
    if weights is not None and type(weights) is not list:
        raise DialogueError('"weights" is not a list')
    if speakers is not None and (type(speakers) is not list or len(speakers) != len(turns) or not texts(speakers)):
        raise DialogueError('"speakers" is not a list of as many texts as there are turns')
    references = content.get("references") if reading.references else None
    if references is None:
        return Dialogue(turns, weights, speakers)
    if type(references) is not list or not references or not texts(references):
        raise DialogueError('"references" is no list of at least one text')
    return Dialogue(turns, weights, speakers, references=references)


def messages_of(content: Any, reading: Reading) -> Dialogue:
    """{"messages": [{"role", "content", "weight"}]}: the assistant's turns are targets, unless their weight is 0."""
    listed = _listed(content, ("messages", "conversation", "conversations"))
    roles, turns = _columns(listed, "role", "content") or _roles_and_texts(listed)
    speakers, weights = _cast(roles)
    for number, message in enumerate(listed):
        if "weight" in message and speakers[number] == ASSISTANT:
            weights[number] = message["weight"]
    return Dialogue(turns, weights, speakers)


def _columns(messages: list[Any], who: str, what: str) -> tuple[list[str], list[str]] | None:
    """Who wrote each message, and what, where all are texts: mostly so, and faster seen at once than one by one."""
    names, turns = [], []
    try:
        for message in messages:
            names.append(message[who])
            turns.append(message[what])
    except (TypeError, LookupError):
        return None
    return (names, turns) if texts(names) and texts(turns) else None


def _cast(roles: list[str], number: Number = int, *, any_case: bool = False) -> tuple[list[str], list[Any]]:
    """The speakers of these roles, and the weights of their turns: 1 for the assistant's, else 0."""
    look_up = _known_cast if len(roles) <= MAX_KNOWN else _known_cast.__wrapped__
    speakers, weights = look_up(tuple(roles), number, any_case)
    return [*speakers], [*weights]


@lru_cache(maxsize=256)  # user, assistant, user, ...: in most dialogues the same
def _known_cast(roles: tuple[str, ...], number: Number, any_case: bool) -> tuple[list[str], list[float]]:
    names = [role.lower() for role in roles] if any_case else roles
    speakers = [_ROLES.get(name, name) for name in names]
    return speakers, [number(speaker == ASSISTANT) for speaker in speakers]


def _roles_and_texts(messages: list[Any]) -> tuple[list[str], list[str]]:
    """Who wrote each message, and what; or the reason why one cannot be used."""
    roles, turns = [], []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if type(message) is dict else None
        if type(role) is not str:
            raise DialogueError(f'message {number} has no "role"')
        roles.append(role)
        turns.append(_text_of(message.get("content"), number))
    return roles, turns


def _text_of(content: Any, number: int) -> str:
    """The text of a message: as it is, or the texts among its parts."""
    if type(content) is list:
        parts = [part.get("text") if type(part) is dict else part for part in content]
        content = "\n".join(part for part in parts if type(part) is str) or None
    if type(content) is not str:
        raise DialogueError(f"message {number} has no text: a picture, say, or the call of a tool")
    return content


def sharegpt_of(content: Any, reading: Reading) -> Dialogue:
    """{"conversations": [{"from", "value"}]}: the assistant's turns are targets, whatever it is called."""
    listed = _listed(content, ("conversations", "conversation"))
    found = _columns(listed, "from", "value")
    if found is None:
        number = next(number for number, message in enumerate(listed, 1) if not _columns([message], "from", "value"))
        raise DialogueError(f'message {number} has no text under "from" and "value"')
    names, turns = found
    system = content.get("system")
    if type(system) is str and system.strip():
        names, turns = [SYSTEM, *names], [system, *turns]
    speakers, weights = _cast(names, float, any_case=True)
    return Dialogue(turns, weights, speakers)


def _listed(content: Any, names: Sequence[str]) -> list[Any]:
    for name in names:
        found = content.get(name) if type(content) is dict else None
        if type(found) is list:
            return found
    raise DialogueError(f'no list of messages under "{names[0]}"')


def _kind(name: str, what: str, of: Callable[[Any, Reading], Dialogue], fits: Callable[[Head], bool]) -> Kind:
    quoted = b'"%s"' % name.replace("sharegpt", "conversations").encode()

    def parse(line: bytes, reading: Reading) -> Dialogue:
        return of(json_of(line, quoted), reading)

    def parse_all(lines: list[bytes], reading: Reading) -> list[Dialogue] | None:
        if max(map(bytes.count, lines, repeat(quoted))) > 1:
            return None
        try:
            return [of(content, reading) for content in map(loads, lines)]
        except (DialogueError, ValueError, RecursionError):
            return None

    by_line = line_reader(parse, parse_all)

    by_element = each(lambda source: told(source, _array(source, of)))

    def read(source: Source) -> Iterator[list[Dialogue]]:
        return by_element(source) if is_array(source) else by_line(source)

    return Kind(name, what, fits, read, parse)


def is_array(source: Source) -> bool:
    """Whether a file is one array rather than an object a line."""
    try:
        with Source(source.path, source.reading).json() as stream:
            return stream.peek() == "["
    except DialogueError:
        return False


def _array(source: Source, of: Callable[[Any, Reading], Dialogue]) -> Iterator[Dialogue]:
    with source.json() as stream:
        for line in stream.elements():
            content = stream.value()
            try:
                dialogue = of(content, source.reading)
            except DialogueError as error:
                source.problem(line, str(error))
                continue
            dialogue.line = line
            yield dialogue
        stream.end()


def _has_roles(head: Head) -> bool:
    return head.has(2, "role", "content")


KINDS = (
    _kind("turns", 'ours: {"turns": ["Hi!", "Hello."]} a line, or one array of them', turns_of,
          lambda head: head.has(1, "turns")),
    _kind("messages", "OpenAI's: {\"messages\": [{\"role\", \"content\"}]}", messages_of,
          lambda head: _has_roles(head) and head.has_any(1, "messages", "conversation", "conversations")),
    _kind("sharegpt", "ShareGPT's: {\"conversations\": [{\"from\", \"value\"}]}", sharegpt_of,
          lambda head: head.has(2, "from", "value") and head.has_any(1, "conversations", "conversation")),
)  # fmt: skip
