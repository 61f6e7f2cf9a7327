"""The one decoding loop: rows that read a prompt and say one token a step, each with settings of its own.

`generate` runs it for one row, `generate_batch` for many. Rows may join and leave at any step. The loop knows token ids
only; what the scores mean is left to `dialogpt.sampler`, text to `dialogpt.chat`.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache, shared_prefix
from dialogpt.model.cache import BLOCK
from dialogpt.sampler import Seen, check_tokens, next_token_scores
from dialogpt.tokenizer import StopStrings, Tokenizer

MOST_SETTINGS = 256  # that are remembered, so that rows with equal ones are processed together
NOISE_WITHOUT_ZEROS = ("cpu",)  # devices whose `exponential_` is known to draw no exact zero
PROMPTS_AT_ONCE = 8  # of like length, so that padding costs little; 8 rows of 50 tokens keep a processor busy
NOTHING_LEFT = (
    "the settings leave no token to choose: what bans tokens (no_repeat_ngram_size, min_new_tokens, bad words, ...) "
    "bans all of them, or the temperature is too close to 0; loosen them"
)


NOT_A_NUMBER = "the settings make scores that are not numbers, as infinity minus infinity is; loosen sequence_bias"


class GenerationError(DialogueError):
    """The network gave nothing to choose from; the message says why.

    Attributes:
        rows: whose settings or scores it was, where that is known; the others can go on without them.
    """

    def __init__(self, message: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class NotFinite(GenerationError):
    """What the network says is no number: its weights are damaged."""


Stop = Callable[[], bool]  # whether the caller wants no more


class Stopped(Exception):
    """Decoding was ended by its caller, in the middle."""


@dataclass(eq=False)
class Row:
    """One sequence that is being decoded.

    Attributes:
        ids: prompt, and what was said after it.
        prompt_length: how many of them are the prompt.
        config: its settings, with the end tokens and the words that are never said filled in.
        generator: where its draws come from; rows may share one.
        own_turns: what the bot said in the prompt, for settings that ask for it.
        stop_strings: finds the texts that end it, where the settings name some.
        deadline: when it is over, in seconds of `time.monotonic`.
        finish_reason: None while it runs; then "stop" (an end token, or a stop string) or "length" (the most tokens, or
            the most time).
        ended: whether the last token is an end token.
    """

    ids: list[int]
    prompt_length: int
    config: GenerationConfig
    generator: torch.Generator | None
    own_turns: Sequence[Sequence[int]] = ()
    stop_strings: StopStrings | None = None
    deadline: float = math.inf
    finish_reason: str | None = None
    ended: bool = False
    cache: KVCache | None = field(default=None, repr=False)  # until the prompt is read

    @property
    def known(self) -> int:
        """How many tokens of the prompt the cache that it came with holds."""
        return 0 if self.cache is None else shared_prefix(self.cache.ids[0], self.ids)

    @property
    def new_ids(self) -> list[int]:
        """What was said, without the end token."""
        return self.ids[self.prompt_length : len(self.ids) - self.ended]

    @property
    def seen(self) -> Seen:
        """What the sampler looks at."""
        return Seen(self.ids, self.prompt_length, self.own_turns)

    def say(self, token: int) -> None:
        """Put a token at the end, and note whether that ends the row."""
        self.ids.append(token)
        self.finish_reason, self.ended = self.outcome(self.ids)

    def outcome(self, ids: Sequence[int]) -> tuple[str | None, bool]:
        """How this row is finished if it holds these ids, and whether by an end token."""
        if ids[-1] in self.config.end_ids:
            return "stop", True
        if self.stop_strings is not None and self.stop_strings.end(ids):
            return "stop", False
        full = len(ids) - self.prompt_length >= self.config.reply_limit(self.prompt_length)
        return ("length" if full or time.monotonic() > self.deadline else None), False


@dataclass(frozen=True)
class Step:
    """One token that one row has chosen.

    Attributes:
        row: whose it is.
        id: the token.
        logits: (V,) in float32: what the network said before any processor.
        normalizers: gives the logarithm of the sum of the exponentials of all rows' logits, (B,).
        place: of this row among them.
    """

    row: Row
    id: int
    logits: Tensor
    normalizers: Callable[[], Tensor]
    place: int

    @property
    def log_probability(self) -> float:
        """The network's own log-probability of the token, before any processor."""
        return float(self.logits[self.id] - self.normalizers()[self.place])


class Decoder:
    """Decodes rows together, one token each a step.

    Rows that share a generator draw as `model.generate` of transformers does: one draw over the matrix of all their
    rows, in which a finished row keeps its place until it is dropped, though it is not computed any more.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer | None = None,
        stop: Stop | None = None,
        prompt_tokens: int | None = None,
        stops_in_prompt: bool = True,
    ) -> None:
        """Begin without rows.

        Args:
            model: the network.
            tokenizer: of the same checkpoint, for settings that name texts (`stop_strings`, `bad_words`).
            stop: asked before every step; true ends decoding with `Stopped`.
            prompt_tokens: of prompts no more than so many tokens are read in a step, so that rows which run already do
                not wait long for those that join; None reads all at once. A row says nothing before its prompt is read.
            stops_in_prompt: whether a stop string may begin in the prompt, as in transformers.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_tokens = prompt_tokens
        self.stops_in_prompt = stops_in_prompt
        self.rows: list[Row] = []
        self._running: list[Row] = []  # the rows of self._cache, in its order
        self._cache: KVCache | None = None
        self._borrowed = False  # whether it may be a caller's, of which a row that joins must not become part
        self._settled: dict[GenerationConfig, GenerationConfig] = {}

    def add(
        self,
        prompt_ids: Prompt | Sequence[int],
        config: GenerationConfig,
        *,
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> Row:
        """Let a row join; its prompt is read at the next step. Rows with the same prompt read it once.

        Args:
            prompt_ids: at least one token. A `Prompt` knows which turns are the bot's; in bare ids turns alternate.
            config: without `eos_token_id`, the network's own ends the row.
            generator: None draws from a fresh one.
            cache: one row, which may hold a beginning of the prompt; what is shared is not computed again. A row that
                runs alone is decoded in this very cache; one that runs with others, in a copy.

        Raises:
            DialogueError: the prompt is empty, holds ids that the network has not, or leaves no room for the reply; the
                settings name what there is not; or the cache has other than one row.
        """
        known = prompt_ids if isinstance(prompt_ids, Prompt) else Prompt(list(prompt_ids), 0, 0)
        limits, prompt = self.model.config, list(known.ids)
        if not prompt:
            raise DialogueError("the prompt is empty; expected at least one token")
        if not all(0 <= token < limits.vocab_size for token in prompt):
            raise DialogueError(f"the prompt holds ids outside the vocabulary of {limits.vocab_size:,} tokens")
        most = config.reply_limit(len(prompt))
        if most < 1:
            raise DialogueError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply within max_length {config.max_length}"
            )
        if len(prompt) + most > limits.n_positions:
            raise DialogueError(
                f"a prompt of {len(prompt)} tokens and {most} new ones do not fit the network's {limits.n_positions} "
                f"positions; shorten the prompt or ask for fewer tokens "
                f"({'max_length' if config.max_new_tokens is None else 'max_new_tokens'})"
            )
        if cache is not None and len(cache.ids) != 1:
            raise DialogueError(f"the cache has {len(cache.ids)} rows; expected one")
        settled = self._settled.get(config)
        if settled is None:
            settled = self._settle(config)
            if len(self._settled) >= MOST_SETTINGS:  # a server's loop runs for ever
                self._settled.clear()
            self._settled[config] = settled
        if generator is None and config.do_sample:
            generator = fresh_generator(self.model.device)
        row = Row(prompt, len(prompt), settled, generator, cache=cache)
        if config.no_repeat_reply or config.repetition_scope == "own":
            by_turn = known.own_turns
            row.own_turns = own_turns(prompt, self._turn_ends(settled)) if by_turn is None else by_turn
        if config.stop_strings:
            begin = 0 if self.stops_in_prompt else len(prompt)
            row.stop_strings = StopStrings(config.stop_strings, self._require_tokenizer("stop_strings"), begin)
        if config.max_time is not None:
            row.deadline = time.monotonic() + config.max_time
        self.rows.append(row)
        return row

    def _settle(self, config: GenerationConfig) -> GenerationConfig:
        """The settings with what depends on network and vocabulary filled in."""
        if config.eos_token_id is None:
            config = replace(config, eos_token_id=self.model.config.eos_token_id)
        if config.bad_words:
            tokenizer = self._require_tokenizer("bad_words")
            spelled = tuple(dict.fromkeys(ids for word in config.bad_words for ids in spellings(word, tokenizer)))
            config = replace(config, bad_words_ids=(*(config.bad_words_ids or ()), *spelled), bad_words=None)
        check_tokens(config, self.model.config.vocab_size)
        return config

    def _turn_ends(self, config: GenerationConfig) -> Sequence[int]:
        """What ends turns, of all that may end a reply."""
        if self.tokenizer is not None:
            return [self.tokenizer.eos_id]
        own = self.model.config.eos_token_id
        return config.end_ids if own is None else [own] if isinstance(own, int) else own

    def _require_tokenizer(self, setting: str) -> Tokenizer:
        if self.tokenizer is None:
            raise DialogueError(f"{setting} names texts, which takes the tokenizer; pass it")
        return self.tokenizer

    def restart(self, row: Row) -> None:
        """Let a row generate its reply again, from its generator's next draws.

        The row keeps its place in the cache, so that only the last token of its prompt is computed once more.
        """
        del row.ids[row.prompt_length :]
        row.finish_reason, row.ended = None, False

    def drop(self, row: Row) -> None:
        """Let a row leave, finished or not."""
        self.rows.remove(row)

    def cache_of(self, row: Row) -> KVCache | None:
        """A copy of what was read of a row that runs, or has just finished; None if nothing was."""
        places = [place for place, other in enumerate(self._running) if other is row]
        if not places or self._cache is None:
            return None
        return self._cache.part(places[0], places[0] + 1).copy()

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Choose one token for every row that is not finished.

        Raises:
            GenerationError: the network's output is not finite, or every token of a sampled row is banned (a greedy one
                says token 0 then, as in transformers).
        """
        active, logits = self.read()
        if not active:
            return []
        scores = processed(logits, active)  # (B, V)
        normalizers = functools.cache(partial(log_sum_exp, logits))
        places = set(map(id, active))
        drawing = [row for row in self.rows if id(row) in places or row.finish_reason is not None]
        chosen = enumerate(zip(active, choose(scores, active, drawing), logits, strict=True))
        steps = [Step(row, token, row_logits, normalizers, place) for place, (row, token, row_logits) in chosen]
        for step in steps:
            step.row.say(step.id)
        return steps

    def read(self) -> tuple[list[Row], Tensor]:
        """Read what the rows that are not finished have not read yet.

        Returns:
            These rows, and the logits after each: (B, V) in float32.

        Raises:
            GenerationError: the network's output is not finite.
            Stopped: the caller wants no more.
        """
        if self.stop is not None and self.stop():
            raise Stopped
        active = self._ready([row for row in self.rows if row.finish_reason is None])
        if not active:
            return active, torch.empty(0, self.model.config.vocab_size)
        logits = self._next_logits(active)  # (B, V)
        strict = [place for place, row in enumerate(active) if not row.config.remove_invalid_values]
        if strict:
            require_finite(_rows(logits, strict), [active[place] for place in strict])
        return active, logits

    def _ready(self, rows: list[Row]) -> list[Row]:
        """The rows that take part in this step; of the others, the first reads a piece of its prompt."""
        if self.prompt_tokens is None:
            return rows
        running = set(map(id, self._running))
        ready, prompts, left = [], set(), self.prompt_tokens
        for row in rows:
            if id(row) in running or tuple(row.ids) in prompts:
                ready.append(row)
                continue
            unread = len(row.ids) - min(row.known, len(row.ids) - 1)
            if left and unread > left:
                row.cache = row.cache or KVCache.for_model(self.model)
                row.cache.crop(0, row.known)
                piece = torch.tensor([row.ids[row.known :][:left]], device=self.model.device)  # (1, T)
                self.model.hidden(piece, row.cache)
                left = 0
            elif left:
                ready.append(row)
                prompts.add(tuple(row.ids))
                left -= unread
        return ready

    def follow(self, choices: Sequence[tuple[Row, Row, int]]) -> None:
        """Let rows go on where others are: each becomes a copy of its parent, with one more token.

        Args:
            choices: row, parent and token; of all rows that were just read and are not dropped.
        """
        assert self._cache is not None
        places = {id(row): place for place, row in enumerate(self._running)}
        self._cache.select([places[id(parent)] for _, parent, _ in choices])
        self._running = [row for row, _, _ in choices]
        continued = [[*parent.ids, token] for _, parent, token in choices]
        for row, ids in zip(self._running, continued, strict=True):
            row.ids = ids

    def _next_logits(self, active: list[Row]) -> Tensor:
        """Read what each row has not read yet, and return the logits after it: (B, V) in float32."""
        hidden = []
        kept = _closed_up([any(row is other for other in active) for row in self._running])
        self._running = [self._running[place] for place in kept]
        if not kept:
            self._cache = None  # it may be the caller's, who keeps what the last row has read
        if self._cache is not None:
            self._cache.select(kept)
            longest = max(len(row.ids) for row in self._running)
            if not self._borrowed and self._cache.capacity > 2 * (longest + BLOCK):  # a far longer row has left
                self._cache = self._cache.copy()
            for place, row in enumerate(self._running):  # a step that failed may have read a token and chosen none
                self._cache.crop(place, len(row.ids) - 1)
            last = torch.tensor([row.ids[-1:] for row in self._running], device=self.model.device)  # (B, 1)
            hidden.append(self.model.hidden(last, self._cache)[:, -1])  # (B, C)
        running = set(map(id, self._running))
        waiting = [row for row in active if id(row) not in running]
        if waiting:
            joining, cache, read = self._read_prompts(waiting)
            hidden.append(read)
            if self._cache is None:
                self._cache, self._borrowed = cache, len(waiting) == 1
            elif self._borrowed:
                self._cache, self._borrowed = KVCache.joined([self._cache, cache]), False
            else:
                self._cache.join(cache)
            self._running = [*self._running, *joining]
        places = {id(row): place for place, row in enumerate(self._running)}
        last_hidden = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        return self.model.logits(_rows(last_hidden, [places[id(row)] for row in active])).float()  # (B, V)

    def _read_prompts(self, waiting: list[Row]) -> tuple[list[Row], KVCache, Tensor]:
        """Read the prompts of rows that have just joined, a few of like length at a time.

        Returns:
            These rows in the order of their cache, that cache, and their last hidden states (B, C).
        """
        # Rows with the same prompt share one reading, by the row whose cache holds most of it.
        distinct: dict[tuple[int, ...], Row] = {}
        for row in waiting:
            if row.known >= distinct.get(tuple(row.ids), row).known:
                distinct[tuple(row.ids)] = row
        readers = sorted(distinct.values(), key=lambda row: len(row.ids))
        caches = [row.cache or KVCache.for_model(self.model) for row in readers]
        cache = caches[0] if len(waiting) == 1 else KVCache.joined(caches)
        for place, row in enumerate(readers):
            cache.crop(place, min(row.known, len(row.ids) - 1))
        cache.make_room(len(readers[-1].ids))
        hidden = []
        for start in range(0, len(readers), PROMPTS_AT_ONCE):
            some = slice(start, start + PROMPTS_AT_ONCE)
            part = cache.part(start, start + PROMPTS_AT_ONCE)
            hidden.append(self._read_some(readers[some], part))
            cache.ids[some] = part.ids
        places = {tuple(row.ids): place for place, row in enumerate(readers)}
        joining = sorted(waiting, key=lambda row: places[tuple(row.ids)])
        rows = [places[tuple(row.ids)] for row in joining]
        cache.select(rows)
        for row in waiting:
            row.cache = None
        return joining, cache, torch.cat(hidden)[rows]

    def _read_some(self, rows: list[Row], cache: KVCache) -> Tensor:
        """Read the prompts of a few rows together, padded to the longest: their last hidden states (B, C)."""
        new = [row.ids[len(held) :] for row, held in zip(rows, cache.ids, strict=True)]
        lengths = torch.tensor([len(ids) for ids in new])
        padded = torch.tensor([ids + [0] * (int(lengths.max()) - len(ids)) for ids in new], device=self.model.device)
        hidden = self.model.hidden(padded, cache, lengths)  # (B, T, C)
        return hidden[torch.arange(len(new)), lengths - 1]  # (B, C)


def require_finite(logits: Tensor, rows: Sequence[Row]) -> None:
    """Refuse what a damaged network says.

    Raises:
        NotFinite: some logits, (B, V), are NaN or infinite.
    """
    if bool(torch.isfinite(logits.sum())) or torch.isfinite(logits).all():
        return
    raise NotFinite(
        "the network's output holds NaN or infinity; its weights are damaged: convert it again",
        _marked(rows, ~torch.isfinite(logits).all(dim=-1)),
    )


def choose(scores: Tensor, active: Sequence[Row], rows: Sequence[Row]) -> list[int]:
    """The token of each row: the highest score, or a draw.

    A draw is what `torch.multinomial` does, for all rows at once: the likeliest token after each probability was
    divided by a number of its own, from an exponential distribution.

    Args:
        scores: (B, V), after all processors.
        active: whose they are.
        rows: these and finished ones, which keep their place where rows share a generator.

    Raises:
        GenerationError: every token of a row that draws is banned.
    """
    order = {id(row): place for place, row in enumerate(active)}
    matrices: dict[int, list[Row]] = {}  # the rows that draw together; finished ones draw too
    for row in rows:
        if row.config.do_sample and row.generator is not None:
            matrices.setdefault(id(row.generator), []).append(row)
    drawing = [matrix for matrix in matrices.values() if any(row.finish_reason is None for row in matrix)]
    running = [order[id(row)] for matrix in drawing for row in matrix if row.finish_reason is None]
    greedy = len(running) < len(active)
    chosen: list[int] = scores.argmax(dim=-1).tolist() if greedy else [0] * len(active)  # the lowest id of a tie
    if running:
        probabilities = torch.softmax(_rows(scores, running), dim=-1)  # (B, V)
        if torch.isnan(probabilities).any():
            raise GenerationError(NOTHING_LEFT, _marked([active[p] for p in running], probabilities.isnan().any(-1)))
        drawn = probabilities.div_(_noise(drawing, probabilities)).argmax(dim=-1).tolist()
        for place, token in zip(running, drawn, strict=True):
            chosen[place] = token
    return chosen


def _noise(matrices: list[list[Row]], like: Tensor) -> Tensor:
    """Numbers from an exponential distribution for the unfinished rows of each matrix, by its generator: (B, V)."""
    noise = torch.empty_like(like)
    running = [[place for place, row in enumerate(matrix) if row.finish_reason is None] for matrix in matrices]

    @torch.inference_mode()  # which each thread has for itself
    def fill(matrix: list[Row], places: list[int], into: Tensor) -> None:
        if len(places) == len(matrix):
            into.exponential_(generator=matrix[0].generator)
        else:
            into.copy_(into.new_empty(len(matrix), into.size(1)).exponential_(generator=matrix[0].generator)[places])

    parts = noise.split([len(places) for places in running])  # type: ignore[no-untyped-call]
    alone = len(matrices) == 1 or noise.device.type != "cpu"  # a GPU has threads of its own
    deque((map if alone else _threads().map)(fill, matrices, running, parts), maxlen=0)
    return without_zeros(noise)


def without_zeros(noise: Tensor) -> Tensor:
    """Numbers from an exponential distribution, in place; off the CPU none is zero any more.

    MPS draws exact zeros (pytorch#192577), and a banned token's probability of 0 divided by 0 is NaN, which argmax
    takes for the largest: about every 600th token was a banned one. The CPU draws none, and is left as it is to the
    bit.
    """
    return noise if noise.device.type in NOISE_WITHOUT_ZEROS else noise.clamp_(min=torch.finfo(noise.dtype).tiny)


def _marked(rows: Sequence[Row], marks: Tensor) -> list[Row]:
    """The rows that are marked: (B,)."""
    return [row for row, mark in zip(rows, marks.tolist(), strict=True) if mark]


def _rows(tensor: Tensor, places: list[int]) -> Tensor:
    """Some rows, without a copy where they are all."""
    return tensor if places == list(range(len(tensor))) else tensor[places]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """For draws of many generators: one takes 20 nanoseconds a token, on one processor."""
    return ThreadPoolExecutor(torch.get_num_threads())


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def fresh_generator(device: torch.device | str = "cpu", seed: int | None = None) -> torch.Generator:
    """A source of draws: the same for the same seed, and another each time without one."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()  # a new Generator always starts at the same number
    else:
        generator.manual_seed(seed)
    return generator


def log_sum_exp(logits: Tensor) -> Tensor:
    """Of each row, (B, V) -> (B,); one after the other, as fresh memory for all of them at once costs more."""
    return torch.stack([row.logsumexp(dim=-1) for row in logits])


def _closed_up(kept: Sequence[bool]) -> list[int]:
    """The places that are kept, the last of them moved to where others are not: the fewest rows change their place.

    Example: of 5 places, of which 1 is not kept, 0 4 2 3.
    """
    places = [place for place, stays in enumerate(kept) if stays]
    number = len(places)
    moved = [place for place in places if place >= number]
    return [place if kept[place] else moved.pop() for place in range(number)]


def own_turns(prompt: Sequence[int], end_ids: Sequence[int]) -> list[list[int]]:
    """Return the bot's turns of bare ids: every other turn, back from the one that is answered."""
    turns: list[list[int]] = [[]]
    for token in prompt:
        if token in end_ids:
            turns.append([])
        else:
            turns[-1].append(token)
    if not turns[-1]:  # the prompt ends with the end of a turn
        turns.pop()
    return turns[-2::-2][::-1]


def spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The token sequences that a word is said by: after a space or not, as it stands or with a capital."""
    forms = dict.fromkeys(space + form for form in (word, word[:1].upper() + word[1:]) for space in ("", " "))
    return [tuple(tokenizer.encode(form)) for form in forms]


def processed(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Process rows with the same settings together: (B, V) -> (B, V).

    Raises:
        GenerationError: a score is NaN.
    """
    configs = list({id(row.config): row.config for row in rows}.values())
    if len(configs) == 1:  # without a copy of all scores
        scores = next_token_scores(logits, configs[0], [row.seen for row in rows])
    else:
        scores = torch.empty_like(logits)
        for config in configs:
            places = [place for place, row in enumerate(rows) if row.config is config]
            scores[places] = next_token_scores(logits[places], config, [rows[place].seen for place in places])
    if scores is not logits and torch.isnan(scores).any():
        raise GenerationError(NOT_A_NUMBER, _marked(rows, scores.isnan().any(dim=-1)))
    return scores
