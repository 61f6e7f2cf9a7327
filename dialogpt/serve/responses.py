"""OpenAI's response objects for chat and text completions, whole and in chunks.

Generating is left to `dialogpt.serve.engine`, sending to `dialogpt.serve.routes`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import error_object
from dialogpt.text.stream_decoder import StreamDecoder
from dialogpt.tokenizer import Tokenizer


class VisibleText:
    """The text of a reply as a client sees it: whole characters, without the stop string that ended it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops = StreamDecoder(tokenizer, reply=True), stops
        self._held, self._stopped = "", False

    def feed(self, token: int) -> str:
        """Add a token, and return the text that is final; a possible prefix of a stop string is held back."""
        self._held += self._decoder.feed(token)
        return self._release(last=False)

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        self._held += self._decoder.finish()
        return self._release(last=True)

    def _release(self, last: bool) -> str:
        if self._stopped:
            return ""
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            self._stopped = True
            return self._held[: min(found)]
        prefix = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - prefix], self._held[len(self._held) - prefix :]
        return shown


def json_pieces(value: Any) -> Iterator[str]:
    """Serialize JSON in pieces; an iterator becomes a list whose items are computed lazily.

    A response with 82,000 alternatives takes two seconds to serialize; in pieces it does not block the event loop.
    """
    if isinstance(value, Iterator):
        yield "["
        for index, item in enumerate(value):
            yield ("," if index else "") + compact_json(item)
        yield "]"
    elif isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield f"{',' if index else '{'}{compact_json(name)}:"
            yield from json_pieces(item)
        yield "}" if value else "{}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from json_pieces(item)
        yield "]"
    else:
        yield compact_json(value)


def compact_json(value: Any) -> str:
    """Write JSON without spaces, and with characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of a text that is a prefix of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass
class Choice:
    """One reply, as far as it is generated.

    Attributes:
        visible: decodes its tokens to text.
        text: the text so far.
        tokens: the number of generated tokens.
        finish_reason: "stop" or "length" once it is complete.
    """

    visible: VisibleText
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


class ResponseFormat:
    """How one endpoint writes its response; an instance writes one response."""

    kind, chunk_kind, prefix = "", "", ""
    media_type, end_of_stream = "text/event-stream", "data: [DONE]\n\n"

    def __init__(self, tokenizer: Tokenizer, model: str, include_usage: bool = False) -> None:
        """Start a response; `include_usage` is that of OpenAI's `stream_options`."""
        self.tokenizer, self.model, self.include_usage = tokenizer, model, include_usage
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.recorded: dict[int, list[Token]] = {}

    def head(self, chunk: bool) -> dict[str, Any]:
        """Return the fields that every object begins with."""
        kind = self.chunk_kind if chunk else self.kind
        unknown = {"usage": None} if chunk and self.include_usage else {}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **unknown}

    def frame(self, content: Any) -> str:
        """Return a chunk as it is sent."""
        return f"data: {''.join(json_pieces(content))}\n\n"

    def error_chunk(self, sentence: str) -> Any:
        """Return the chunk that ends a stream early."""
        return {"error": error_object(sentence, "server_error")}

    def closing(self, choices: Sequence[Choice], usage: dict[str, int]) -> list[Any]:
        """Return the chunks after the last event."""
        return [self.head(chunk=True) | {"choices": [], "usage": usage}] if self.include_usage else []

    def record(self, choice: int, token: Token) -> None:
        """Keep a token, for the probabilities of a whole response."""
        if token.log_probability is not None:
            self.recorded.setdefault(choice, []).append(token)

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """Return the chunks before the first token."""
        return []

    def chunks(self, choice: int, text: str, event: Token | End) -> list[dict[str, Any]]:
        """Return the chunks of one event of a stream."""
        found = []
        if text or (isinstance(event, Token) and event.log_probability is not None):
            found.append(self._chunk(choice, text, [event] if isinstance(event, Token) else [], None))
        if isinstance(event, End):
            found.append(self._chunk(choice, None, [], event.finish_reason))
        return found

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        written = [
            self._choice_object(index, choice.text, self.recorded.get(index, []), choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return self.head(chunk=False) | {"choices": written, "usage": usage}

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _choice_object(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class ChatFormat(ResponseFormat):
    """``chat.completion``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """Name the speaker."""
        return [self._delta(choice, {"role": "assistant", "content": ""}, None, None)]

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self._delta(choice, {} if text is None else {"content": text}, self._log_probabilities(tokens), reason)

    def _delta(
        self, choice: int, delta: dict[str, Any], log_probabilities: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        one = {"index": choice, "delta": delta, "logprobs": log_probabilities, "finish_reason": reason}
        return self.head(chunk=True) | {"choices": [one]}

    def _choice_object(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": choice,
            "message": message,
            "logprobs": self._log_probabilities(tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, tokens: list[Token]) -> dict[str, Any] | None:
        scored = [token for token in tokens if token.log_probability is not None]
        if not scored:
            return None
        content = (  # an iterator: see `json_pieces`
            self._token_object(token.id, token.log_probability)
            | {"top_logprobs": [self._token_object(*each) for each in token.alternatives]}
            for token in scored
        )
        return {"content": content, "refusal": None}

    def _token_object(self, token: int, log_probability: float | None) -> dict[str, Any]:
        spelled = self.tokenizer.bytes_of(token)
        return {"token": self.tokenizer.decode([token]), "logprob": log_probability, "bytes": list(spelled)}


class CompletionFormat(ResponseFormat):
    """``text_completion``."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, model: str, include_usage: bool = False) -> None:
        """Start a response."""
        super().__init__(tokenizer, model, include_usage)
        self._offsets: dict[int, tuple[StreamDecoder, int]] = {}  # of each choice, and its characters so far

    def continued(
        self,
        prompt: int,
        text: str,
        scored: list[Token],
        choices: Sequence[Choice],
        recorded: Mapping[int, list[Token]],
    ) -> list[dict[str, Any]]:
        """Return the choices of one of several prompts.

        Args:
            prompt: which one.
            text: what is echoed before each reply.
            scored: the tokens of that text, if probabilities were asked for.
            choices: the replies to this prompt.
            recorded: the tokens of each.
        """
        first = prompt * len(choices)
        return [
            self._choice_object(
                first + index, text + choice.text, [*scored, *recorded.get(index, [])], choice.finish_reason
            )
            for index, choice in enumerate(choices)
        ]

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self.head(chunk=True) | {"choices": [self._choice_object(choice, text or "", tokens, reason)]}

    def _choice_object(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {
            "index": choice,
            "text": text,
            "logprobs": self._log_probabilities(choice, tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, choice: int, tokens: list[Token]) -> dict[str, Any] | None:
        scored = [token for token in tokens if token.log_probability is not None or token.echoed]
        if not scored:
            return None
        offsets = []
        for token in scored:
            decoder, length = self._offsets.get(choice, (StreamDecoder(self.tokenizer), 0))
            offsets.append(length)
            self._offsets[choice] = decoder, length + len(decoder.feed(token.id))
        return {
            "tokens": [self._spelled(token.id) for token in scored],
            "token_logprobs": [token.log_probability for token in scored],
            "top_logprobs": (  # an iterator: see `json_pieces`
                None  # of the first token of a prompt, which nothing precedes
                if token.log_probability is None
                else {self._spelled(n): value for n, value in (*token.alternatives, (token.id, token.log_probability))}
                for token in scored
            ),
            "text_offset": offsets,
        }

    def _spelled(self, token: int) -> str:
        """Return a token's text, or its bytes, as OpenAI writes them, if it holds part of a character."""
        spelled = self.tokenizer.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
