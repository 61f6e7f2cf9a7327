"""Many requests, one network: they join and leave a running batch at every step.

A thread of its own runs the loop of `dialogpt.decoding.loop`. Requests come from any thread; each gives a function
that receives every token and must not block. Each sequence has its own settings and its own generator, so that its
result does not depend on the others. What may be asked is left to `dialogpt.serve.schemas`, HTTP to
`dialogpt.serve.app`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dialogpt.decoding.loop import Decoder, GenerationError, Row, Step, Stopped
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2, KVCache, shared_prefix
from dialogpt.replies import Dialogue, Plan, ReplyStream, generate_replies
from dialogpt.tokenizer import Tokenizer

MOST_ROWS = 32  # decoded together; a step of small in float32 takes 25 ms for one row and 130 ms for 32
MOST_WAITING = 64  # requests
PROMPT_TOKENS = 256  # read in a step, beside the rows that run: 0.3 s for small in float32
KEPT_BYTES = 512 << 20  # of caches of replies that ended, for the next turn of their conversation
LOGITS_TOGETHER = 64  # positions of a scored prompt; of GPT-2's vocabulary they take 13 MB
WORTH_COPYING = 16  # tokens that a prompt shares with a kept cache of another conversation
STOPPED = "the server is being stopped; ask another one, or again when it is back"
logger = logging.getLogger(__name__)


class Busy(DialogueError):
    """Too many requests wait already; this one may be made again later."""


class Closed(DialogueError):
    """No request is taken any more."""


class OutOfTime(DialogueError):
    """A request waited for longer than one may take."""


class TooLong(DialogueError):
    """What a request asks for takes longer than one may take; asking again will not help."""


class Failed(DialogueError):
    """Something is wrong with the server, and not with the request."""


@dataclass(frozen=True)
class Token:
    """One token was said.

    Attributes:
        choice: by which reply of the request.
        id: the token.
        log_probability: the network's own, if it was asked for.
        alternatives: the likeliest tokens at this place with theirs, as many as were asked for.
        echoed: whether it is a token of the prompt.
    """

    choice: int
    id: int
    log_probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    echoed: bool = False


@dataclass(frozen=True)
class End:
    """One reply is over: "stop" or "length"."""

    choice: int
    finish_reason: str


Event = Token | End | DialogueError  # an error is the last that a request hears


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        dialogue: what is answered.
        plan: how; see `dialogpt.replies`.
        tell: receives every event, in the thread of the engine.
        seconds: what it may take, waiting included.
        alternatives: how many are sent with each token; None: not even its own probability.
    """

    dialogue: Dialogue
    plan: Plan
    tell: Callable[[Event], None]
    seconds: float
    alternatives: int | None = None
    deadline: float = field(init=False, default=0.0)
    cancelled: bool = field(init=False, default=False)
    rows: list[Row] = field(init=False, default_factory=list, repr=False)  # those that are not finished


@dataclass(frozen=True, eq=False)
class Running:
    """A reply that is being generated in the batch: which one of which request."""

    job: Job
    choice: int
    stream: ReplyStream[Event]


class Engine:
    """Decodes all requests together, as many as fit, in the order in which they came.

    Beams, and what is chosen among candidates, are known at the end only: such requests are answered unbatched, one
    after the other. Both kinds reuse what was computed of earlier turns.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        *,
        most_rows: int = MOST_ROWS,
        most_waiting: int = MOST_WAITING,
        prompt_tokens: int = PROMPT_TOKENS,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """Start the thread.

        Args:
            model: the network.
            tokenizer: of the same checkpoint.
            most_rows: how many replies are decoded together.
            most_waiting: how many requests may wait for a place.
            prompt_tokens: how many tokens of prompts are read in a step.
            kept_bytes: memory for what was read of conversations that may go on.
        """
        self.model, self.tokenizer = model, tokenizer
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self._prompt_tokens = prompt_tokens
        self._decoder = self._fresh()
        self._prefixes = Prefixes(kept_bytes)
        self._running: dict[int, Running] = {}  # of each row, by its identity
        self._condition = threading.Condition()  # for what follows, which other threads change
        self._waiting: deque[Job] = deque()
        self._cancelled: list[Job] = []
        self._searches: dict[int, Future[Any]] = {}  # of each request that is answered unbatched, by its identity
        self._cut: float | None = None  # when all ends, once it is being closed
        self._search = ThreadPoolExecutor(1, thread_name_prefix="unbatched")
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    # ---- called from any thread ----

    def submit(self, job: Job) -> None:
        """Take a request.

        Raises:
            Busy: too many wait already.
            Closed: the engine is being closed, or its thread has ended.
            DialogueError: it asks for more replies than are decoded together.
        """
        together = max(job.plan.num_samples, job.plan.config.num_beams)
        if together > self.most_rows:
            raise DialogueError(
                f"{together} replies, candidates or beams were asked for; this server decodes {self.most_rows} together"
            )
        job.deadline = time.monotonic() + job.seconds
        with self._condition:
            if self._cut is not None or not self.alive:
                raise Closed(STOPPED)
            waiting = len(self._waiting) if job.plan.streams else len(self._searches)
            if waiting >= self.most_waiting:
                raise Busy(f"{waiting} requests wait already; ask again in a moment")
            if job.plan.streams:
                self._waiting.append(job)
                self._condition.notify()
            else:
                self._searches[id(job)] = self._search.submit(self._run_unbatched, job)

    def score_prompts(
        self, prompts: Sequence[Sequence[int]], alternatives: int, seconds: float, keep: bool
    ) -> Future[list[list[Token]]]:
        """Score the tokens of prompts that are echoed, unbatched.

        Args:
            prompts: token ids.
            alternatives: how many of the likeliest tokens are returned beside each.
            seconds: what it may take, waiting included.
            keep: whether what was computed is kept, for continuations that follow.

        Returns:
            What raises `TooLong` or `Closed` if it did not get that far.

        Raises:
            Busy, Closed: see `submit`.
        """
        deadline = time.monotonic() + seconds

        def work() -> list[list[Token]]:
            scored = []
            for ids in prompts:
                if self._cut is not None and time.monotonic() > self._cut:
                    raise Closed(STOPPED)
                if time.monotonic() > deadline:
                    raise TooLong(f"the prompts were not scored within {seconds:g} s; send fewer at a time")
                cache = KVCache.for_model(self.model)
                scored.append(score_prompt(self.model, ids, alternatives, cache))
                if keep:
                    self._prefixes.put(cache)
            return scored

        def forget(_: Future[list[list[Token]]]) -> None:
            with self._condition:
                del self._searches[id(work)]

        with self._condition:
            if self._cut is not None or not self.alive:
                raise Closed(STOPPED)
            if len(self._searches) >= self.most_waiting:
                raise Busy(f"{len(self._searches)} requests wait already; ask again in a moment")
            future = self._searches[id(work)] = self._search.submit(work)
            future.add_done_callback(forget)
        return future

    def cancel(self, job: Job) -> None:
        """Let go of a request, finished or not; after the step that is under way it hears nothing more."""
        job.cancelled = True
        with self._condition:
            search = self._searches.get(id(job))
            if search is not None and search.cancel():
                del self._searches[id(job)]
            self._cancelled.append(job)
            self._condition.notify()

    def close(self, seconds: float) -> None:
        """Take no more requests, wait so long for those that were taken, then cut them at their step, and end."""
        with self._condition:
            self._cut = time.monotonic() + seconds
            self._condition.notify()
        self._thread.join()
        self._search.shutdown()

    @property
    def running(self) -> int:
        """How many replies are being said."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place; one that is answered unbatched counts until it is done."""
        return len(self._waiting) + len(self._searches)

    @property
    def alive(self) -> bool:
        """Whether there is a thread that decodes."""
        return self._thread.is_alive()

    # ---- in the thread ----

    def _fresh(self) -> Decoder:
        # Only what is said ends a reply, as OpenAI has it.
        return Decoder(self.model, self.tokenizer, prompt_tokens=self._prompt_tokens, stops_in_prompt=False)

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._take_changes()
                self._step()
            except Exception as error:  # memory that is full, a fault of ours: the next request may fare better
                logger.exception("decoding failed; all replies that were being said are lost")
                lost = {id(running.job): running.job for running in self._running.values()}
                self._decoder, self._running = self._fresh(), {}
                for job in lost.values():
                    job.rows = []
                    self._tell(job, _failed(error))

    def _take_changes(self) -> bool:
        """Wait until there is something to do, and let requests leave and join; false when all is over."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._running or self._cancelled or self._cut is not None)
            now = time.monotonic()
            leaving, self._cancelled = self._cancelled, []
            late = [job for job in self._waiting if now > job.deadline]
            cut = self._cut is not None and now > self._cut
            closed = list(self._waiting) if cut else []
            gone = {id(job) for job in (*leaving, *late, *closed)}
            self._waiting = deque(job for job in self._waiting if id(job) not in gone)
            joining, free = [], self.most_rows - len(self._running)
            while self._waiting and self._waiting[0].plan.num_samples <= free:
                joining.append(self._waiting.popleft())
                free -= joining[-1].plan.num_samples
        for job in leaving:
            self._leave(job)
        for job in late:
            self._tell(job, _out_of_time(job))
        for job in closed:
            self._tell(job, Closed(STOPPED))
        for job in joining:
            self._join(job)
        if cut:
            for row in list(self._decoder.rows):
                self._end(row, "length")
        return bool(self._running) or self._cut is None or bool(self._waiting)

    def _join(self, job: Job) -> None:
        try:
            prompt, generators = job.dialogue.prompt, job.dialogue.generators.take(job.plan.num_samples)
            cache = self._prefixes.take(prompt.ids)
            for choice, generator in enumerate(generators):
                describe = partial(_token, choice, job.alternatives)
                stream: ReplyStream[Event] = ReplyStream(
                    self._decoder, self.tokenizer, job.plan, prompt, generator, describe, None if choice else cache
                )
                stream.row.deadline = min(stream.row.deadline, job.deadline)
                job.rows.append(stream.row)
                self._running[id(stream.row)] = Running(job, choice, stream)
        except DialogueError as error:
            self._fail(job, error)
        except Exception as error:
            logger.exception("a request could not join")
            self._fail(job, _failed(error))

    def _step(self) -> None:
        try:
            steps = self._decoder.step()
        except GenerationError as error:
            rows = error.rows or self._decoder.rows
            failed = {id(job): job for job in (self._running[id(row)].job for row in rows)}
            for job in failed.values():
                self._fail(job, error)
            return
        for step in steps:
            running = self._running.get(id(step.row))
            if running is None:  # another reply of its request has failed just now
                continue
            for event in running.stream.advance(step):
                self._tell(running.job, event)
            if step.row.finish_reason is not None:
                self._end(step.row, step.row.finish_reason)

    def _end(self, row: Row, reason: str) -> None:
        """One reply is over; what was read of it is kept for the next turn."""
        running = self._running.pop(id(row))
        running.job.rows.remove(row)
        for event in (*running.stream.release(), End(running.choice, reason)):
            self._tell(running.job, event)
        try:
            cache = self._decoder.cache_of(row)
            if cache is not None:
                self._prefixes.put(cache)
        except RuntimeError:  # memory is full; the next turn is read anew
            logger.exception("what was read of a reply could not be kept")
        self._decoder.drop(row)

    def _leave(self, job: Job) -> None:
        for row in job.rows:
            self._decoder.drop(row)
            del self._running[id(row)]
        job.rows = []

    def _fail(self, job: Job, error: DialogueError) -> None:
        self._leave(job)
        self._tell(job, error)

    def _tell(self, job: Job, event: Event) -> None:
        """Tell a request something; if that fails, it is alone in failing."""
        try:
            job.tell(event)
        except Exception:
            logger.exception("a request could not be told, and is let go")
            self.cancel(job)

    # ---- in a thread of its own ----

    def _run_unbatched(self, job: Job) -> None:
        def stop() -> bool:
            now = time.monotonic()
            return job.cancelled or now > job.deadline or (self._cut is not None and now > self._cut)

        try:
            if time.monotonic() > job.deadline:
                raise _out_of_time(job)
            cache = self._prefixes.take(job.dialogue.prompt.ids) or KVCache.for_model(self.model)
            try:
                (replies,) = generate_replies(
                    self.model,
                    self.tokenizer,
                    job.plan,
                    [job.dialogue],
                    cache=cache,
                    stop=stop,
                    stops_in_prompt=False,
                )
            finally:
                if cache.ids[0]:
                    self._prefixes.put(cache)
        except Stopped:
            late = TooLong(f"the replies were not there within {job.seconds:g} s; ask for fewer, or for less")
            if not job.cancelled:
                self._tell(job, late if time.monotonic() > job.deadline else Closed(STOPPED))
        except DialogueError as error:
            self._tell(job, error)
        except Exception as error:
            logger.exception("a request that is answered unbatched failed")
            self._tell(job, _failed(error))
        else:
            for choice, reply in enumerate(replies):
                for token in reply.ids:
                    self._tell(job, Token(choice, token))
                self._tell(job, End(choice, reply.finish_reason))
        finally:
            with self._condition:
                self._searches.pop(id(job), None)


class Prefixes:
    """Caches of conversations whose next turn may come; the oldest go first. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        """Begin empty, for so many bytes."""
        self.most_bytes = most_bytes
        self._caches: list[KVCache] = []  # the oldest first
        self._lock = threading.Lock()

    def take(self, ids: Sequence[int]) -> KVCache | None:
        """A cache that holds a beginning of these ids, to be changed by who takes it.

        The conversation's own is given away, as it will come back longer; of another's, a copy is made if it is worth
        it.
        """
        with self._lock:
            if not self._caches:
                return None
            shared, place = max((shared_prefix(cache.ids[0], ids), place) for place, cache in enumerate(self._caches))
            cache = self._caches[place]
            if shared == len(cache.ids[0]):
                return self._caches.pop(place)
            if shared < WORTH_COPYING:
                return None
            copy = cache.copy()
            copy.crop(0, shared)
            return copy

    def put(self, cache: KVCache) -> None:
        """Keep a cache of one row."""
        with self._lock:
            self._caches.append(cache)
            while self._caches and sum(each.buffer.nbytes for each in self._caches) > self.most_bytes:
                self._caches.pop(0)


def _out_of_time(job: Job) -> OutOfTime:
    return OutOfTime(f"no place was free within {job.seconds:g} s; ask again in a moment")


def _failed(error: Exception) -> Failed:
    return Failed(f"the server failed ({type(error).__name__}); its log says more")


def _token(choice: int, alternatives: int | None, step: Step) -> Event:
    if alternatives is None:
        return Token(choice, step.id)
    return _described(choice, step.id, step.logits, alternatives)


def _described(choice: int, token: int, logits: torch.Tensor, alternatives: int, echoed: bool = False) -> Token:
    """A token with its log-probability and the likeliest ones at its place, from the logits there, (V,)."""
    log_probabilities = logits.log_softmax(dim=-1)  # (V,)
    best = log_probabilities.topk(min(alternatives, len(log_probabilities)))
    found = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(choice, token, float(log_probabilities[token]), found, echoed)


@torch.inference_mode()
def score_prompt(model: GPT2, ids: Sequence[int], alternatives: int, cache: KVCache) -> list[Token]:
    """Score each token of a prompt but the first, which nothing precedes.

    Args:
        model: the network.
        ids: at least one token, and no more than the network has positions.
        alternatives: how many of the likeliest tokens are returned beside each.
        cache: of one row, empty; it holds the prompt afterwards.
    """
    hidden = model.hidden(torch.tensor([list(ids)], device=model.device), cache)[0]  # (T, C)
    scored = [Token(0, ids[0], echoed=True)]
    for place in range(0, len(ids) - 1, LOGITS_TOGETHER):
        logits = model.logits(hidden[place : min(place + LOGITS_TOGETHER, len(ids) - 1)]).float()  # (chunk, V)
        for row, token in zip(logits, ids[place + 1 :], strict=False):  # the last chunk ends before the ids do
            scored.append(_described(0, token, row, alternatives, echoed=True))
    return scored
