"""How replies are written: OpenAI's objects for chat and text completions, whole and in chunks.

Deciding what is said is left to `dialogpt.serve.engine`, sending it to `dialogpt.serve.app`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialogpt.serve.engine import End, Token
from dialogpt.tokenizer import StreamDecoder, Tokenizer


class ShownText:
    """The text of a reply as a client is shown it: whole characters, and nothing of what ends it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops = StreamDecoder(tokenizer), stops
        self._held, self._stopped = "", False

    def feed(self, token: int) -> str:
        """The text that a token makes sure of; the beginning of a stop string is held back."""
        self._held += self._decoder.feed(token)
        return self._release(last=False)

    def finish(self) -> str:
        """What was held back and is no stop string."""
        self._held += self._decoder.finish()
        return self._release(last=True)

    def _release(self, last: bool) -> str:
        if self._stopped:
            return ""
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self._stopped = True
            return self._held[: min(found)]
        begun = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - begun], self._held[len(self._held) - begun :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass
class Reply:
    """One choice, as far as it is known."""

    text: ShownText
    whole: str = ""
    tokens: int = 0
    finish_reason: str | None = None


class Form:
    """How one endpoint writes what is said; an instance writes one answer."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        """Begin an answer."""
        self.tokenizer, self.model = tokenizer, model
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.noted: dict[int, list[Token]] = {}

    def head(self, chunk: bool) -> dict[str, Any]:
        """What every object begins with."""
        return {
            "id": self.id,
            "object": self.chunk_kind if chunk else self.kind,
            "created": self.created,
            "model": self.model,
        }

    def note(self, choice: int, token: Token) -> None:
        """Remember a token for the probabilities of a whole answer."""
        if token.log_probability is not None:
            self.noted.setdefault(choice, []).append(token)

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """The chunks before the first token."""
        return []

    def chunks(self, choice: int, text: str, event: Token | End) -> list[dict[str, Any]]:
        """What a token, or the end, is in a stream."""
        found = []
        if text or (isinstance(event, Token) and event.log_probability is not None):
            found.append(self._chunk(choice, text, [event] if isinstance(event, Token) else [], None))
        if isinstance(event, End):
            found.append(self._chunk(choice, None, [], event.finish_reason))
        return found

    def whole(self, replies: Sequence[Reply], usage: dict[str, int]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choices = [
            self._choice(place, reply.whole, self.noted.get(place, []), reply.finish_reason)
            for place, reply in enumerate(replies)
        ]
        return self.head(chunk=False) | {"choices": choices, "usage": usage}

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class Chat(Form):
    """``chat.completion``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._delta(choice, {"role": "assistant", "content": ""}, None, None)]

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self._delta(choice, {} if text is None else {"content": text}, self._log_probabilities(tokens), reason)

    def _delta(
        self, choice: int, delta: dict[str, Any], log_probabilities: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        one = {"index": choice, "delta": delta, "logprobs": log_probabilities, "finish_reason": reason}
        return self.head(chunk=True) | {"choices": [one]}

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": choice,
            "message": message,
            "logprobs": self._log_probabilities(tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, tokens: list[Token]) -> dict[str, Any] | None:
        told = [token for token in tokens if token.log_probability is not None]
        if not told:
            return None
        return {
            "content": [
                self._described(token.id, token.log_probability)
                | {"top_logprobs": [self._described(*each) for each in token.alternatives]}
                for token in told
            ],
            "refusal": None,
        }

    def _described(self, token: int, log_probability: float | None) -> dict[str, Any]:
        spelled = self.tokenizer.bytes_of(token)
        return {"token": self.tokenizer.decode([token]), "logprob": log_probability, "bytes": list(spelled)}


class Completion(Form):
    """``text_completion``."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        """Begin an answer."""
        super().__init__(tokenizer, model)
        self._read: dict[int, tuple[StreamDecoder, int]] = {}  # of each choice, and its characters so far

    def continued(
        self, prompt: int, text: str, scored: list[Token], replies: Sequence[Reply], noted: Mapping[int, list[Token]]
    ) -> list[dict[str, Any]]:
        """The replies to one of several prompts.

        Args:
            prompt: which one.
            text: what is echoed before each reply.
            scored: the tokens of that text, if probabilities were asked for.
            replies: to this prompt.
            noted: the tokens of each.
        """
        first = prompt * len(replies)
        return [
            self._choice(first + place, text + reply.whole, [*scored, *noted.get(place, [])], reply.finish_reason)
            for place, reply in enumerate(replies)
        ]

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self.head(chunk=True) | {"choices": [self._choice(choice, text or "", tokens, reason)]}

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {
            "index": choice,
            "text": text,
            "logprobs": self._log_probabilities(choice, tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, choice: int, tokens: list[Token]) -> dict[str, Any] | None:
        told = [token for token in tokens if token.log_probability is not None or token.echoed]
        if not told:
            return None
        offsets = []
        for token in told:
            decoder, length = self._read.get(choice, (StreamDecoder(self.tokenizer), 0))
            offsets.append(length)
            self._read[choice] = decoder, length + len(decoder.feed(token.id))
        return {
            "tokens": [self._spelled(token.id) for token in told],
            "token_logprobs": [token.log_probability for token in told],
            "top_logprobs": [
                None  # of the first token of a prompt, which nothing precedes
                if token.log_probability is None
                else {self._spelled(n): value for n, value in (*token.alternatives, (token.id, token.log_probability))}
                for token in told
            ],
            "text_offset": offsets,
        }

    def _spelled(self, token: int) -> str:
        """A token's text; of one that holds half a character its bytes, as OpenAI writes them."""
        spelled = self.tokenizer.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
