"""The one decoding loop: rows that read a prompt and say one token a step, each with settings of its own.

`generate` runs it for one row, `generate_batch` for many. Rows may join and leave at any step. The loop knows token ids
only; what the scores mean is left to `dialogpt.sampler`, text to `dialogpt.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.sampler import next_token_scores
from model import GPT2, KVCache


class GenerationError(DialogueError):
    """The network gave nothing to choose from; the message says why."""


@dataclass(eq=False)
class Row:
    """One sequence that is being decoded.

    Attributes:
        ids: prompt, and what was said after it.
        prompt_length: how many of them are the prompt.
        config: its settings, with the end tokens filled in.
        generator: where its draws come from; rows may share one.
        finish_reason: None while it runs; then "stop" (an end token) or "length" (`max_new_tokens`).
    """

    ids: list[int]
    prompt_length: int
    config: GenerationConfig
    generator: torch.Generator | None
    finish_reason: str | None = None
    cache: KVCache | None = field(default=None, repr=False)  # until the prompt is read

    @property
    def known(self) -> int:
        """How many tokens of the prompt the cache that it came with holds."""
        return 0 if self.cache is None else shared_prefix(self.cache.ids[0], self.ids)

    @property
    def new_ids(self) -> list[int]:
        """What was said, without the end token."""
        end = len(self.ids) - (self.finish_reason == "stop")
        return self.ids[self.prompt_length : end]


@dataclass(frozen=True)
class Step:
    """One token that one row has chosen.

    Attributes:
        row: whose it is.
        id: the token.
        logits: (V,) in float32: what the network said before any processor.
    """

    row: Row
    id: int
    logits: Tensor

    @property
    def log_probability(self) -> float:
        """The network's own log-probability of the token, before any processor."""
        return float(self.logits[self.id] - self.logits.logsumexp(dim=-1))


class Decoder:
    """Decodes rows together, one token each a step.

    Rows that share a generator draw as `model.generate` of transformers does: one draw over the matrix of all their
    rows, in which a finished row keeps its place until it is dropped, though it is not computed any more.
    """

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._running: list[Row] = []  # the rows of self._cache, in its order, which is that of self.rows
        self._cache: KVCache | None = None

    def add(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        *,
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> Row:
        """Let a row join; its prompt is read at the next step. Rows with the same prompt read it once.

        Args:
            prompt_ids: at least one token.
            config: without `eos_token_id`, the network's own ends the row.
            generator: None draws from a fresh one.
            cache: one row, which may hold a beginning of the prompt; what is shared is not computed again. A row that
                runs alone is decoded in this very cache; one that runs with others, in a copy.

        Raises:
            DialogueError: the prompt is empty, holds ids that the network has not, or leaves no room for the reply; or
                the cache has other than one row.
        """
        limits, prompt = self.model.config, list(prompt_ids)
        if not prompt:
            raise DialogueError("the prompt is empty; expected at least one token")
        if not all(0 <= token < limits.vocab_size for token in prompt):
            raise DialogueError(f"the prompt holds ids outside the vocabulary of {limits.vocab_size:,} tokens")
        if len(prompt) + config.max_new_tokens > limits.n_positions:
            raise DialogueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens {config.max_new_tokens} do not fit the network's "
                f"{limits.n_positions} positions; shorten the prompt or ask for fewer tokens"
            )
        if cache is not None and len(cache.ids) != 1:
            raise DialogueError(f"the cache has {len(cache.ids)} rows; expected one")
        if config.eos_token_id is None:
            config = replace(config, eos_token_id=limits.eos_token_id)
        if generator is None and config.do_sample:
            generator = fresh_generator(self.model.token_embedding.weight.device)
        row = Row(prompt, len(prompt), config, generator, cache=cache)
        self.rows.append(row)
        return row

    def drop(self, row: Row) -> None:
        """Let a row leave, finished or not."""
        self.rows.remove(row)

    @torch.no_grad()
    def step(self) -> list[Step]:
        """Choose one token for every row that is not finished.

        Raises:
            GenerationError: the network's output is not finite, or every token of a row is banned.
        """
        active = [row for row in self.rows if row.finish_reason is None]
        if not active:
            return []
        logits = self._next_logits(active)  # (B, V)
        if not torch.isfinite(logits).all():
            raise GenerationError(
                "the network's output holds NaN or infinity; its weights are damaged: convert it again"
            )
        scores = _processed(logits, active)  # (B, V)
        steps = [Step(*chosen) for chosen in zip(active, self._choose(scores, active), logits, strict=True)]
        for row, token in ((step.row, step.id) for step in steps):
            row.ids.append(token)
            if token in row.config.end_ids:
                row.finish_reason = "stop"
            elif len(row.ids) - row.prompt_length >= row.config.max_new_tokens:
                row.finish_reason = "length"
        return steps

    def _next_logits(self, active: list[Row]) -> Tensor:
        """Read what each row has not read yet, and return the logits after it: (B, V) in float32."""
        hidden = []
        kept = [place for place, row in enumerate(self._running) if row in active]
        self._running = [self._running[place] for place in kept]
        if not kept:
            self._cache = None  # it may be the caller's, who keeps what the last row has read
        if self._cache is not None:
            self._cache.select(kept)
            for place, row in enumerate(self._running):  # a step that failed may have read a token and chosen none
                self._cache.crop(place, len(row.ids) - 1)
            last = torch.tensor([row.ids[-1:] for row in self._running], device=self._cache.keys.device)  # (B, 1)
            hidden.append(self.model.hidden(last, self._cache)[:, -1])  # (B, C)
        waiting = active[len(self._running) :]
        if waiting:
            cache, read = self._read_prompts(waiting)
            hidden.append(read)
            self._cache = cache if self._cache is None else KVCache.joined([self._cache, cache])
            self._running = active
        return self.model.logits(torch.cat(hidden)).float()  # (B, V)

    def _read_prompts(self, waiting: list[Row]) -> tuple[KVCache, Tensor]:
        """Read the prompts of rows that have just joined: their cache, and their last hidden states (B, C)."""
        # Rows with the same prompt share one reading, by the row whose cache holds most of it.
        distinct: dict[tuple[int, ...], Row] = {}
        for row in waiting:
            if row.known >= distinct.get(tuple(row.ids), row).known:
                distinct[tuple(row.ids)] = row
        readers = list(distinct.values())
        caches = [row.cache or KVCache.for_model(self.model) for row in readers]
        cache = caches[0] if len(waiting) == 1 else KVCache.joined(caches)
        for place, row in enumerate(readers):
            cache.crop(place, min(row.known, len(row.ids) - 1))
        new = [row.ids[len(held) :] for row, held in zip(readers, cache.ids, strict=True)]
        lengths = torch.tensor([len(ids) for ids in new])
        padded = torch.tensor([ids + [0] * (int(lengths.max()) - len(ids)) for ids in new], device=cache.keys.device)
        hidden = self.model.hidden(padded, cache, lengths)  # (B, T, C)
        last = hidden[torch.arange(len(new)), lengths - 1]  # (B, C)
        places = {prompt: place for place, prompt in enumerate(distinct)}
        rows = [places[tuple(row.ids)] for row in waiting]
        cache.select(rows)
        for row in waiting:
            row.cache = None
        return cache, last[rows]

    def _choose(self, scores: Tensor, active: list[Row]) -> list[int]:
        """The token of each row: the highest score, or a draw."""
        chosen = scores.argmax(dim=-1).tolist()  # the lowest id of those that tie
        sampled = [row for row in self.rows if row.config.do_sample and row.generator is not None]
        for generator in {id(row.generator): row.generator for row in sampled}.values():
            matrix = [row for row in sampled if row.generator is generator]
            probabilities = scores.new_zeros(len(matrix), scores.size(1))  # (B, V)
            probabilities[:, 0] = 1  # a finished row draws too, and its token is thrown away
            places = {place: active.index(row) for place, row in enumerate(matrix) if row.finish_reason is None}
            if not places:
                continue
            probabilities[list(places)] = torch.softmax(scores[list(places.values())], dim=-1)
            if torch.isnan(probabilities).any():
                raise GenerationError(
                    "the settings leave no token to choose: no_repeat_ngram_size or min_new_tokens ban all of them, "
                    "or the temperature is too close to 0; loosen them"
                )
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()
            for place, row in places.items():
                chosen[row] = drawn[place]
        return chosen


def fresh_generator(device: torch.device | str = "cpu", seed: int | None = None) -> torch.Generator:
    """A source of draws: the same for the same seed, and another each time without one."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()  # a new Generator always starts at the same number
    else:
        generator.manual_seed(seed)
    return generator


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


def _processed(logits: Tensor, rows: list[Row]) -> Tensor:
    """Process rows with the same settings together: (B, V) -> (B, V)."""
    scores = torch.empty_like(logits)
    for config in {id(row.config): row.config for row in rows}.values():
        places = [place for place, row in enumerate(rows) if row.config is config]
        ids = [rows[place].ids for place in places]
        said = [len(rows[place].ids) - rows[place].prompt_length for place in places]
        scores[places] = next_token_scores(logits[places], config, ids, said)
    return scores
