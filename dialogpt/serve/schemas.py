"""Request bodies, and what they resolve to: a prompt, settings and a number of replies.

The fields are OpenAI's. Beyond them a body may hold `rerank` with `num_candidates`, and any setting of
`GenerationConfig`, by its name. Fields of OpenAI's that would change the answer and are not implemented are refused;
unknown ones are ignored with a warning (`dialogpt.serve.fields`). HTTP is left to `dialogpt.serve.routes`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from dialogpt.errors import DialogueError
from dialogpt.generation_config import BANS, DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.history import BOT, USER, History, Prompt, Turn
from dialogpt.ranking.rerankers import Reranker
from dialogpt.replies import Plan
from dialogpt.serve.fields import Fields, unknown_fields
from dialogpt.tokenizer import Tokenizer

MAX_REPLIES, MAX_CANDIDATES, MAX_BEAMS = 16, 64, 16
MAX_STOPS, MAX_ALTERNATIVES, MAX_BIASES = 4, 20, 300
MAX_ENTRIES, MAX_SETTING_CHARACTERS = 1_000, 4_000  # of a setting that is a list: its numbers or words
MAX_DEPTH = 4  # of lists within lists; no setting has more than three
MAX_PARTS, MAX_PROMPT_IDS, MAX_PROMPTS = 100, 10_000, 32
OPENAI_NAMES = {"num_return_sequences": "n", "stop_strings": "stop", "sequence_bias": "logit_bias"}
SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")  # results of what the network cannot call
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {  # OpenAI's fields that would change the answer, and values that do not
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
}
WITHOUT_EFFECT = (  # OpenAI's fields that do not change the response
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
    "verbosity",
)

SETTINGS = tuple(setting.name for setting in fields(GenerationConfig))

Item = TypeVar("Item")
Several = Annotated[list[Item], Field(min_length=1, max_length=MAX_PROMPTS)]
Ids = Annotated[list[int], Field(max_length=MAX_PROMPT_IDS, fail_fast=True)]
Probability = Annotated[float, Field(ge=0, le=1)]


class ContextLengthExceeded(DialogueError):
    """A prompt does not fit the network's window.

    Attributes:
        param: the field of the body that holds it.
    """

    param = "prompt"


def _content_required(schema: dict[str, Any]) -> None:
    """Describe messages as having content: it may be missing only where the assistant calls tools."""
    content = schema["properties"]["content"]
    content["anyOf"] = [kind for kind in content["anyOf"] if kind != {"type": "null"}]
    del content["default"]
    schema["required"] = ["role", "content"]


class Part(Fields):
    """A text part of a message; other types are not supported."""

    type: Literal["text"]
    text: str


class Message(Fields):
    """One turn. The network is shown no roles; settings about the bot's own turns go by the role "assistant"."""

    model_config = ConfigDict(json_schema_extra=_content_required)

    also_known: ClassVar[Collection[str]] = (
        "name",
        "refusal",
        "audio",
        "annotations",
        "tool_calls",
        "tool_call_id",
        "function_call",
    )

    role: Role
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != BOT:
            raise PydanticCustomError(
                "no_content", "a message of the role '{role}' has no content", {"role": self.role}
            )
        return self

    @property
    def text(self) -> str:
        """Its text, all parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Fields):
    """What a stream contains beside the reply."""

    also_known = ("include_obfuscation",)

    include_usage: bool = False


class GenerationRequest(Fields):
    """What all requests for generation have in common."""

    also_known: ClassVar = (*SETTINGS, *WITHOUT_EFFECT, *NOT_IMPLEMENTED)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=MAX_REPLIES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = (
        None
    )
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    history_tokens: Annotated[int, Field(ge=1)] | None = None
    rerank: bool | None = None
    num_candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    user: str | None = None

    @property
    def max_reply_tokens(self) -> int | None:
        """How many tokens a reply may have; None if the request sets no limit."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a reply and are not part of it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    @property
    def replies(self) -> int:
        """How many replies are requested."""
        return self.n or 1

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to each token are requested; None omits its own log-probability too."""
        raise NotImplementedError

    @property
    def resample(self) -> bool:
        """Whether a blank reply is resampled."""
        return False

    def prompt(self, tokenizer: Tokenizer, limits: Limits, window: int) -> Prompt:
        """Return the prompt.

        Args:
            tokenizer: of the model.
            limits: how many tokens of a dialogue the network is shown, and whether system messages count as turns.
            window: how many tokens fit besides the reply.

        Raises:
            DialogueError: there is no prompt, or it is too long.
        """
        raise NotImplementedError

    def turns(self, tokenizer: Tokenizer, limits: Limits) -> list[Turn]:
        """Return the dialogue, for a reranker.

        Raises:
            DialogueError: there is none.
        """
        raise NotImplementedError


class ChatRequest(GenerationRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None

    @property
    def max_reply_tokens(self) -> int | None:
        """See `GenerationRequest`; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None

    @property
    def resample(self) -> bool:
        """See `GenerationRequest`."""
        return True

    def prompt(self, tokenizer: Tokenizer, limits: Limits, window: int) -> Prompt:
        """Make each message a turn, and drop the oldest turns that do not fit, as `dialogpt chat` does."""
        history = History(tokenizer.eos_id, self.turns(tokenizer, limits), tokenizer.turn_prefix)
        return history.prompt(self.history_tokens or limits.history_tokens, window)

    def turns(self, tokenizer: Tokenizer, limits: Limits) -> list[Turn]:
        """Return the messages, without end tokens, with their roles."""
        roles = (USER, BOT, *(SYSTEM_ROLES if limits.keep_system else ()))
        # A turn of the assistant without content only calls tools.
        kept = [message for message in self.messages if message.role in roles and message.content is not None]
        if not kept:
            raise DialogueError(
                "all messages are system messages or of tools, which are dropped here; send one of the user's"
            )
        return [Turn(tokenizer.encode_turn(message.text, message.role), message.role) for message in kept]


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``: texts that are continued, without turns."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    prompt_text: Annotated[str | Ids | Several[str] | Several[Ids], Field(alias="prompt")] = ""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @property
    def alternatives(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    @property
    def several(self) -> list[CompletionRequest]:
        """One request for each prompt."""
        given = self.prompt_text
        if not isinstance(given, list) or not given or isinstance(given[0], int):
            return [self]
        return [self.model_copy(update={"prompt_text": prompt}) for prompt in given]

    def prompt(self, tokenizer: Tokenizer, limits: Limits, window: int) -> Prompt:
        """Return the text, which is never truncated; an empty one becomes an end token."""
        if self.suffix:
            raise DialogueError("suffix is not implemented; omit it")
        given = self.prompt_text
        if isinstance(given, str):
            ids = tokenizer.encode(given)
        else:
            ids = [token for token in given if isinstance(token, int)]
        if len(ids) > window:
            raise ContextLengthExceeded(
                f"the model's context length is {limits.positions:,} tokens; the prompt has {len(ids):,}, and "
                f"{limits.positions - window:,} are reserved for the completion; shorten the prompt or the completion"
            )
        return Prompt(ids or [tokenizer.eos_id], 0, 0)

    def turns(self, tokenizer: Tokenizer, limits: Limits) -> list[Turn]:
        """See `GenerationRequest`."""
        raise DialogueError("a text without turns cannot be reranked; ask under /v1/chat/completions")


@dataclass(frozen=True)
class Limits:
    """What a request is granted.

    Attributes:
        settings: the defaults of a request.
        positions: how many tokens the network can take, prompt and reply together.
        new_tokens: how many tokens a reply may have.
        seconds: how long a request may take.
        history_tokens: how many tokens of a dialogue are shown to the network.
        reranker: scores candidates, for requests that ask for it.
        num_candidates: the default number of candidates.
        strict: whether fields without effect are refused rather than warned of.
        keep_system: whether a system message is a turn; else it is dropped, as the model would repeat it.
    """

    settings: GenerationConfig
    positions: int
    new_tokens: int
    seconds: float
    history_tokens: int
    reranker: Reranker | None = None
    num_candidates: int = DEFAULT_CANDIDATES
    strict: bool = False
    keep_system: bool = False


def warnings_for(request: GenerationRequest, limits: Limits, body: Fields | None = None) -> list[str]:
    """Return one sentence for each part of a request that has no effect.

    Args:
        request: a request.
        limits: of the server.
        body: what it was made of, where that has another form.

    Raises:
        DialogueError: there is one, and the server is strict.
    """
    warnings = unknown_fields(body or request)
    given = request.max_reply_tokens or 0
    if given > limits.new_tokens:
        warnings.append(f"max_tokens {given} was reduced to {limits.new_tokens}, the most that this server generates")
    if isinstance(request, ChatRequest):
        system = sum(message.role in SYSTEM_ROLES for message in request.messages)
        if system and not limits.keep_system:
            warnings.append(f"{system} system messages were dropped; the model was not trained to follow them")
        if tools := sum(message.role in TOOL_ROLES for message in request.messages):
            warnings.append(f"{tools} messages of tools were dropped; the model was not trained to use any")
    if warnings and limits.strict:
        raise DialogueError(f"this server is strict: {'; '.join(warnings)}")
    return warnings


def plan_of(request: GenerationRequest, limits: Limits, eos_id: int) -> Plan:
    """Merge the settings of a request into the server's.

    Raises:
        DialogueError: one is out of range or not implemented, or two contradict each other.
    """
    given = _settings_in(request)
    candidates = max(request.num_candidates or limits.num_candidates, request.replies)
    beams = _non_negative("num_beams", given, 1)
    _refuse_contradictions(request, limits, candidates, beams)
    defaults = limits.settings
    if request.logit_bias:
        given["sequence_bias"] = _biases(request.logit_bias)
    limit = request.max_reply_tokens or _non_negative(
        "max_new_tokens", given, defaults.max_new_tokens or limits.new_tokens
    )
    max_tokens = min(limit, limits.new_tokens)
    min_tokens = defaults.min_new_tokens  # None, where min_length counts
    if min_tokens is not None or "min_new_tokens" in given:
        min_tokens = _non_negative("min_new_tokens", given, min(min_tokens or 0, max_tokens))
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        min_tokens = max(1, min_tokens or 0)  # evaluation harnesses drop the last token, and an end token is never sent
    if (min_tokens or 0) > limits.new_tokens:
        raise DialogueError(f"min_new_tokens is {min_tokens}; this server generates at most {limits.new_tokens} tokens")
    given |= {"max_new_tokens": max_tokens, "min_new_tokens": min_tokens, "stop_strings": request.stops or None}
    forced = [name for name in ("forced_bos_token_id", "forced_eos_token_id") if given.get(name) is not None]
    if forced and any(getattr(defaults, name) is not None for name in BANS):
        raise DialogueError(f"{forced[0]} may force what this server bans; omit it")
    return Plan.of(
        _with_bans(defaults.merged(given), defaults),
        eos_id,
        num_replies=request.replies,
        reranker=limits.reranker if request.rerank else None,
        num_candidates=candidates,
        resample=request.resample,
    )


def _with_bans(config: GenerationConfig, operators: GenerationConfig) -> GenerationConfig:
    """Return settings with everything added that the operator bans or biases.

    Clients may add bans to the operator's and remove none. Where both bias the same tokens, the operator's bias counts.
    """
    united: dict[str, Any] = {}
    for name in BANS:
        entries = (*(getattr(config, name) or ()), *(getattr(operators, name) or ()))
        united[name] = tuple(dict(entries).items() if name == "sequence_bias" else dict.fromkeys(entries)) or None
    return replace(config, **united)


def _settings_in(request: GenerationRequest) -> dict[str, Any]:
    """Return the settings of `GenerationConfig` that a body holds, by name.

    Raises:
        DialogueError: one is too long, or has another name in this interface.
    """
    given = {name: value for name in SETTINGS if (value := getattr(request, name, None)) is not None}
    for name, value in given.items():
        if name in OPENAI_NAMES:
            raise DialogueError(f"the setting for {name.replace('_', ' ')} is {OPENAI_NAMES[name]} here")
        entries, characters = _size(value)
        if entries > MAX_ENTRIES or characters > MAX_SETTING_CHARACTERS:
            raise DialogueError(
                f"{name} is longer than {MAX_ENTRIES:,} entries or {MAX_SETTING_CHARACTERS:,} characters"
            )
    if sum(map(len, request.stops)) > MAX_SETTING_CHARACTERS:
        raise DialogueError(f"stop has more than {MAX_SETTING_CHARACTERS:,} characters")
    return given


def _non_negative(name: str, given: Mapping[str, Any], default: int) -> int:
    """Return a setting that is needed before `GenerationConfig` checks it."""
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DialogueError(f"{name} is {str(value)[:50]}, expected a non-negative integer")
    return value


def _refuse_contradictions(request: GenerationRequest, limits: Limits, candidates: int, beams: int) -> None:
    """Raise a `DialogueError` at what is not implemented, or contradicts something else."""
    for name, harmless in NOT_IMPLEMENTED.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless and not (name == "best_of" and value == request.replies):
            raise DialogueError(f"{name} is not implemented; omit it")
    if request.rerank and limits.reranker is None:
        raise DialogueError("no reranker is loaded; start the server with --rerank")
    if request.num_candidates and not request.rerank:
        raise DialogueError("num_candidates goes with rerank")
    if beams > MAX_BEAMS:
        raise DialogueError(f"num_beams is {beams}; at most {MAX_BEAMS} are allowed here")
    if (request.rerank or beams > 1) and request.alternatives is not None:
        raise DialogueError("omit logprobs: beams and candidates are known at their end only, without them")
    if request.rerank and 1 < beams < candidates:
        raise DialogueError(f"rerank scores {candidates} candidates, and num_beams makes {beams}; ask for as many")


def _biases(biases: Mapping[str, float]) -> list[list[Any]]:
    """Convert OpenAI's `logit_bias`, a dictionary of ids, to `sequence_bias`."""
    foreign = next((name for name in biases if not name.isdecimal() or len(name) > 9), None)
    if foreign is not None:
        raise DialogueError(f"logit_bias names the token {foreign[:20]!r}; expected a number")
    return [[[int(name)], float(value)] for name, value in biases.items()]


def _size(value: Any, depth: int = 0) -> tuple[int, int]:
    """Count the entries of a setting, in nested lists too, and its characters.

    Raises:
        DialogueError: it is nested too deep.
    """
    if isinstance(value, str):
        return 1, len(value)
    if not isinstance(value, (list, dict)):
        return 1, 0
    if depth >= MAX_DEPTH:
        raise DialogueError(f"a setting has lists within lists, more than {MAX_DEPTH} deep; none has so many")
    parts = [_size(part, depth + 1) for part in (value if isinstance(value, list) else value.values())]
    return sum(entries for entries, _ in parts), sum(characters for _, characters in parts)
