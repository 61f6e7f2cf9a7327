"""What a client may ask, and what it comes to: a prompt, settings and a number of replies.

The fields are OpenAI's. Beyond them a body may hold `rerank` with `num_candidates`, and any setting of
`GenerationConfig`, by its name; what is unknown is ignored, as servers of this interface do. HTTP is left to
`dialogpt.serve.app`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dialogpt.errors import DialogueError
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.history import History, Prompt, Turn
from dialogpt.ranking.rerankers import Reranker
from dialogpt.replies import Plan
from dialogpt.tokenizer import Tokenizer

MOST_TURNS, MOST_CHARACTERS, MOST_CHARACTERS_IN_ALL = 500, 8_000, 32_000
MOST_REPLIES, MOST_CANDIDATES, MOST_BEAMS = 16, 64, 16
MOST_STOPS, MOST_ALTERNATIVES, MOST_BIASES = 4, 20, 300
MOST_ENTRIES, MOST_SPELLED = 1_000, 4_000  # of a setting that is a list: its numbers or words, and their characters
MOST_DEPTH = 4  # of lists within lists; no setting has more than three
MOST_PARTS, MOST_PROMPT_IDS, MOST_PROMPTS = 100, 10_000, 32
SAID_BY = {"num_return_sequences": "n", "stop_strings": "stop", "sequence_bias": "logit_bias"}  # settings, by OpenAI

Item = TypeVar("Item")
Several = Annotated[list[Item], Field(min_length=1, max_length=MOST_PROMPTS)]
Ids = Annotated[list[int], Field(max_length=MOST_PROMPT_IDS, fail_fast=True)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of a message: text, the only kind that there is here."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn. The network is shown no roles; settings about the bot's own turns go by the role "assistant"."""

    role: str
    content: str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None

    @property
    def text(self) -> str:
        """What was said."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """What a stream holds beside the reply."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=MOST_REPLIES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None = (
        None
    )
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    history_tokens: Annotated[int, Field(ge=1)] | None = None
    rerank: bool | None = None
    num_candidates: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a reply may have, if the request says it."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a reply, and are no part of it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    @property
    def replies(self) -> int:
        """How many replies are wanted."""
        return self.n or 1

    @property
    def alternatives(self) -> int | None:
        """How many tokens are wanted beside each that was said; None if not even its own probability is."""
        raise NotImplementedError

    @property
    def resample(self) -> bool:
        """Whether a blank reply is no answer, and is generated again."""
        return False

    def prompt(self, tokenizer: Tokenizer, history_tokens: int, window: int) -> Prompt:
        """What to go on from.

        Args:
            tokenizer: of the model.
            history_tokens: how many tokens of a dialogue are shown.
            window: how many the network has room for beside the reply.

        Raises:
            DialogueError: there is nothing to go on from, or too much.
        """
        raise NotImplementedError

    def turns(self, tokenizer: Tokenizer) -> list[Turn]:
        """The dialogue, for who judges candidates.

        Raises:
            DialogueError: there is none.
        """
        raise NotImplementedError


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """See `Request`; the newer name counts."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """See `Request`."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None

    @property
    def resample(self) -> bool:
        """See `Request`."""
        return True

    def prompt(self, tokenizer: Tokenizer, history_tokens: int, window: int) -> Prompt:
        """Every message a turn with its end, the oldest left out where there is no room, as `dialogpt chat` does it."""
        return History(tokenizer.eos_id, self.turns(tokenizer)).prompt(self.history_tokens or history_tokens, window)

    def turns(self, tokenizer: Tokenizer) -> list[Turn]:
        """The messages, without end tokens, and who wrote each."""
        texts = [message.text for message in self.messages]
        _limit(texts)
        return [Turn(tokenizer.encode(text), message.role) for text, message in zip(texts, self.messages, strict=True)]


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: texts that are continued, without turns."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    prompt_text: Annotated[str | Ids | Several[str] | Several[Ids], Field(alias="prompt")] = ""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @property
    def alternatives(self) -> int | None:
        """See `Request`."""
        return self.logprobs

    @property
    def several(self) -> list[CompletionRequest]:
        """One request for each prompt."""
        given = self.prompt_text
        if not isinstance(given, list) or not given or isinstance(given[0], int):
            return [self]
        if sum(map(len, given)) > MOST_CHARACTERS_IN_ALL:
            raise DialogueError(
                f"the prompts hold {sum(map(len, given)):,} "
                f"{'characters' if isinstance(given[0], str) else 'tokens'} together, at most "
                f"{MOST_CHARACTERS_IN_ALL:,} are accepted; send fewer prompts at a time"
            )
        return [self.model_copy(update={"prompt_text": prompt}) for prompt in given]

    def prompt(self, tokenizer: Tokenizer, history_tokens: int, window: int) -> Prompt:
        """The one text, whole; an empty one begins after the end of a turn."""
        if self.suffix:
            raise DialogueError("suffix is not implemented; leave it out")
        given = self.prompt_text
        if isinstance(given, str):
            _limit([given])
            ids = tokenizer.encode(given)
        else:
            ids = [token for token in given if isinstance(token, int)]
        return Prompt(ids or [tokenizer.eos_id], 0, 0)

    def turns(self, tokenizer: Tokenizer) -> list[Turn]:
        """See `Request`."""
        raise DialogueError("a text without turns cannot be reranked; ask under /v1/chat/completions")


@dataclass(frozen=True)
class Limits:
    """What the server grants.

    Attributes:
        settings: of a request that says nothing.
        positions: of the network.
        new_tokens: the most that a reply may have.
        seconds: the most that a request may take.
        history_tokens: how many tokens of a dialogue are shown to the network.
        reranker: judges candidates, where a request asks for it.
        num_candidates: how many, of a request that does not say.
    """

    settings: GenerationConfig
    positions: int
    new_tokens: int
    seconds: float
    history_tokens: int
    reranker: Reranker | None = None
    num_candidates: int = DEFAULT_CANDIDATES


def plan_of(request: Request, limits: Limits, eos_id: int) -> Plan:
    """Resolve what a request asks for, on top of the server's settings.

    Raises:
        DialogueError: they are out of range, contradict each other, or ask for what is not implemented.
    """
    given = _given(request)
    candidates = max(request.num_candidates or limits.num_candidates, request.replies)
    beams = _number("num_beams", given, 1)
    _refuse(request, limits, candidates, beams)
    defaults = limits.settings
    if request.logit_bias:
        given["sequence_bias"] = _biases(request.logit_bias)
    asked = request.most_tokens or _number("max_new_tokens", given, defaults.max_new_tokens or limits.new_tokens)
    most = min(asked, limits.new_tokens)
    shortest = defaults.min_new_tokens  # None, where min_length counts
    if shortest is not None or "min_new_tokens" in given:
        shortest = _number("min_new_tokens", given, min(shortest or 0, most))
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        shortest = max(1, shortest or 0)  # evaluation harnesses drop the last token, and an end token is never sent
    if (shortest or 0) > limits.new_tokens:
        raise DialogueError(f"min_new_tokens is {shortest}; this server says at most {limits.new_tokens} tokens")
    given |= {"max_new_tokens": most, "min_new_tokens": shortest, "stop_strings": request.stops or None}
    return Plan.of(
        defaults.merged(given).with_bans_of(defaults),
        eos_id,
        num_replies=request.replies,
        reranker=limits.reranker if request.rerank else None,
        num_candidates=candidates,
        resample=request.resample,
    )


def _given(request: Request) -> dict[str, Any]:
    """The settings of `GenerationConfig` in a body, by their names; what is unknown is left out.

    Raises:
        DialogueError: one is too long, or is said in another way.
    """
    known = [setting.name for setting in fields(GenerationConfig)]
    given = {name: value for name in known if (value := getattr(request, name, None)) is not None}
    for name, value in given.items():
        if name in SAID_BY:
            raise DialogueError(f"the setting for {name.replace('_', ' ')} is {SAID_BY[name]} here")
        entries, characters = _size(value)
        if entries > MOST_ENTRIES or characters > MOST_SPELLED:
            raise DialogueError(f"{name} is longer than {MOST_ENTRIES:,} entries or {MOST_SPELLED:,} characters")
    if sum(map(len, request.stops)) > MOST_SPELLED:
        raise DialogueError(f"stop has more than {MOST_SPELLED:,} characters")
    return given


def _number(name: str, given: Mapping[str, Any], default: int) -> int:
    """A setting that is counted with before `GenerationConfig` looks at it."""
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DialogueError(f"{name} is {str(value)[:50]}, expected a whole number from 0 on")
    return value


def _refuse(request: Request, limits: Limits, candidates: int, beams: int) -> None:
    """Raise a `DialogueError` at what is not implemented, or does not go together."""
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise DialogueError(f"{name} is {getattr(request, name)}, which is not implemented; see repetition_penalty")
    if request.rerank and limits.reranker is None:
        raise DialogueError("nothing judges replies here; start the server with --rerank")
    if request.num_candidates and not request.rerank:
        raise DialogueError("num_candidates goes with rerank")
    if beams > MOST_BEAMS:
        raise DialogueError(f"num_beams is {beams}; at most {MOST_BEAMS} are searched here")
    if (request.rerank or beams > 1) and request.alternatives is not None:
        raise DialogueError("leave logprobs out: beams and candidates are known at their end only, without them")
    if request.rerank and 1 < beams < candidates:
        raise DialogueError(f"rerank judges {candidates} candidates, and num_beams makes {beams}; ask for as many")


def _biases(biases: Mapping[str, float]) -> list[list[Any]]:
    """OpenAI's form of biases, a dictionary of ids, as `sequence_bias` has them."""
    foreign = next((name for name in biases if not name.isdecimal() or len(name) > 9), None)
    if foreign is not None:
        raise DialogueError(f"logit_bias names the token {foreign[:20]!r}; expected a number")
    return [[[int(name)], float(value)] for name, value in biases.items()]


def _size(value: Any, depth: int = 0) -> tuple[int, int]:
    """How many entries a setting has, down to the last list, and how many characters.

    Raises:
        DialogueError: it goes on too deep.
    """
    if isinstance(value, str):
        return 1, len(value)
    if not isinstance(value, (list, dict)):
        return 1, 0
    if depth >= MOST_DEPTH:
        raise DialogueError(f"a setting has lists within lists, more than {MOST_DEPTH} deep; none has so many")
    parts = [_size(part, depth + 1) for part in (value if isinstance(value, list) else value.values())]
    return sum(entries for entries, _ in parts), sum(characters for _, characters in parts)


def _limit(texts: list[str]) -> None:
    longest, total = max(map(len, texts)), sum(map(len, texts))
    if longest > MOST_CHARACTERS:
        raise DialogueError(f"a text has {longest:,} characters; at most {MOST_CHARACTERS:,} are taken")
    if total > MOST_CHARACTERS_IN_ALL:
        raise DialogueError(f"the texts have {total:,} characters together; {MOST_CHARACTERS_IN_ALL:,} are the most")
