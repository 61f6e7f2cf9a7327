"""Continuous batching: requests are admitted to a running batch, and evicted from it, at every step.

One thread runs the loop of `dialogpt.decoding.loop`. Any thread may submit a task; its callback receives every token in
the decoding thread and must not block. Each sequence has its own settings and generator, so that its result does not
depend on the others. Request bodies are left to `dialogpt.serve.schemas`, HTTP to `dialogpt.serve.routes`.
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
from typing import Any, TypeVar

import torch

from dialogpt.decoding.loop import Decoder
from dialogpt.decoding.sequence import GenerationError, TokenSequence
from dialogpt.decoding.step import Step
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2, KVCache, shared_prefix
from dialogpt.model.cache_rows import copied
from dialogpt.replies import Dialogue, Plan, Sample
from dialogpt.tokenizer import Tokenizer
from dialogpt.whole_replies import generate_replies

MAX_SEQUENCES = 32  # sequences decoded together; a step of small in float32 takes 25 ms for one row and 130 ms for 32
MAX_WAITING = 64  # requests
PREFILL_BUDGET = 256  # tokens of prompts prefilled in a step, while others are decoded: 0.3 s for small in float32
PREFIX_CACHE_BYTES = 512 << 20  # of finished replies, for the next turn of their conversation
SCORING_CHUNK = 64  # positions of a scored prompt; of GPT-2's vocabulary they take 13 MB
MIN_SHARED_TOKENS = 16  # tokens that a prompt shares with a kept cache of another conversation
SHUTTING_DOWN = "the server is shutting down; retry later"
logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Busy(DialogueError):
    """The queue is full; the request may be retried later."""


class Closed(DialogueError):
    """The server is shutting down and accepts no requests."""


class TimedOut(DialogueError):
    """A request timed out in the queue."""


class TooLong(DialogueError):
    """A request took longer than the time limit; retrying will not help."""


class Failed(DialogueError):
    """The server failed; the request is not at fault."""


@dataclass(frozen=True)
class Token:
    """One token was generated.

    Attributes:
        choice: the index of the reply within the request.
        id: the token.
        log_probability: the network's own, if the request asks for it.
        alternatives: the likeliest tokens at this position with their log-probabilities, as many as requested.
        echoed: whether it is a token of the prompt.
    """

    choice: int
    id: int
    log_probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    echoed: bool = False


@dataclass(frozen=True)
class End:
    """One reply is complete, with finish reason "stop" or "length"."""

    choice: int
    finish_reason: str


Event = Token | End | DialogueError  # an error is the last event of a request


@dataclass(eq=False)
class GenerationTask:
    """One request as the engine sees it.

    Attributes:
        dialogue: the dialogue that is answered.
        plan: its resolved settings; see `dialogpt.replies`.
        on_event: receives every event, in a thread of the engine.
        seconds: its time limit, the queue included.
        alternatives: how many alternatives each event has; None omits its own log-probability too.
        cache_owner: only requests with the same owner share cached prefixes.
    """

    dialogue: Dialogue
    plan: Plan
    on_event: Callable[[Event], None]
    seconds: float
    alternatives: int | None = None
    cache_owner: str = ""
    deadline: float = field(init=False, default=0.0)
    cancelled: bool = field(init=False, default=False)
    sequences: list[TokenSequence] = field(init=False, default_factory=list, repr=False)  # its unfinished sequences


@dataclass(frozen=True, eq=False)
class RunningReply:
    """A reply that is being generated in the batch, and its index within its request."""

    task: GenerationTask
    choice: int
    sample: Sample[Event]


class Engine:
    """Decodes requests together, first come, first served, as many as fit.

    The results of beam search and reranking are known only at the end, so such requests run unbatched, one at a time.
    Both kinds reuse cached prefixes.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        *,
        max_sequences: int = MAX_SEQUENCES,
        max_waiting: int = MAX_WAITING,
        prefill_budget: int = PREFILL_BUDGET,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    ) -> None:
        """Start the decoding thread.

        Args:
            model: the network.
            tokenizer: the tokenizer of the same checkpoint.
            max_sequences: maximum sequences that are decoded together.
            max_waiting: maximum requests in the queue.
            prefill_budget: maximum prompt tokens that are prefilled per step.
            prefix_cache_bytes: maximum memory for the caches of finished replies.
        """
        self.model, self.tokenizer = model, tokenizer
        self.max_sequences, self.max_waiting = max_sequences, max_waiting
        self._prefill_budget = prefill_budget
        self._decoder = self._new_decoder()
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._running: dict[int, RunningReply] = {}  # by the identity of the sequence
        self._condition = threading.Condition()  # guards what follows
        self._waiting: deque[GenerationTask] = deque()
        self._cancelled: list[GenerationTask] = []
        self._unbatched: dict[int, Future[Any]] = {}  # unbatched requests, by identity
        self._hard_deadline: float | None = None  # of a shutdown, in seconds of time.monotonic
        self._unbatched_pool = ThreadPoolExecutor(1, thread_name_prefix="unbatched")
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    # ---- called from any thread ----

    def submit(self, task: GenerationTask) -> None:
        """Queue a request.

        Raises:
            Busy: the queue is full.
            Closed: the engine is shutting down, or its thread has ended.
            DialogueError: it needs more sequences than are decoded together.
        """
        together = max(task.plan.num_samples, task.plan.config.num_beams)
        if together > self.max_sequences:
            raise DialogueError(
                f"{together} replies, candidates or beams were requested; "
                f"this server decodes at most {self.max_sequences} together"
            )
        task.deadline = time.monotonic() + task.seconds
        with self._condition:
            if self._hard_deadline is not None or not self.alive:
                raise Closed(SHUTTING_DOWN)
            waiting = len(self._waiting) if task.plan.streams else len(self._unbatched)
            if waiting >= self.max_waiting:
                raise Busy(f"{waiting} requests are waiting already; retry in a moment")
            if task.plan.streams:
                self._waiting.append(task)
                self._condition.notify()
            else:
                self._unbatched[id(task)] = self._unbatched_pool.submit(self._run_unbatched, task)

    def score_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        alternatives: int,
        seconds: float,
        keep: bool,
        cache_owner: str = "",
    ) -> Future[list[list[Token]]]:
        """Score the tokens of prompts that are echoed, unbatched.

        Args:
            prompts: token ids.
            alternatives: how many of the most probable tokens are returned with each.
            seconds: the time limit, the queue included.
            keep: whether the caches are kept for continuations that follow.
            cache_owner: see `GenerationTask`.

        Returns:
            A future with the scored tokens; it raises `TooLong` or `Closed` if scoring was stopped.

        Raises:
            Busy, Closed: see `submit`.
        """

        def work(stop: Stop) -> list[list[Token]]:
            scored = []
            for ids in prompts:
                if stop():
                    raise Stopped
                cache = KVCache.for_model(self.model)
                scored.append(score_prompt(self.model, ids, alternatives, cache))
                if keep:
                    self._prefixes.put(cache, cache_owner)
            return scored

        return self.run_unbatched(work, seconds)

    def run_unbatched(self, work: Callable[[Stop], Result], seconds: float) -> Future[Result]:
        """Queue other work with the network behind unbatched requests.

        Args:
            work: receives a function that returns whether to stop; it then raises `Stopped`.
            seconds: the time limit, the queue included.

        Returns:
            A future with the result; it raises `TooLong` or `Closed` if the work was stopped.

        Raises:
            Busy, Closed: see `submit`.
        """
        deadline = time.monotonic() + seconds

        def stop() -> bool:
            now = time.monotonic()
            return now > deadline or (self._hard_deadline is not None and now > self._hard_deadline)

        def run() -> Result:
            try:
                if stop():
                    raise Stopped
                return work(stop)
            except Stopped:
                if time.monotonic() > deadline:
                    raise TooLong(f"this took longer than {seconds:g} s; ask for less at a time") from None
                raise Closed(SHUTTING_DOWN) from None

        def forget(_: Future[Result]) -> None:
            with self._condition:
                del self._unbatched[id(run)]

        with self._condition:
            if self._hard_deadline is not None or not self.alive:
                raise Closed(SHUTTING_DOWN)
            if len(self._unbatched) >= self.max_waiting:
                raise Busy(f"{len(self._unbatched)} requests are waiting already; retry in a moment")
            future = self._unbatched_pool.submit(run)
            self._unbatched[id(run)] = future
        future.add_done_callback(forget)
        return future

    def cancel(self, task: GenerationTask) -> None:
        """Cancel a request, finished or not; it receives nothing after the current step."""
        task.cancelled = True
        with self._condition:
            search = self._unbatched.get(id(task))
            if search is not None and search.cancel():
                del self._unbatched[id(task)]
            self._cancelled.append(task)
            self._condition.notify()

    def close(self, seconds: float) -> None:
        """Refuse new requests, give running ones a number of seconds to finish, then end them at their current step."""
        with self._condition:
            self._hard_deadline = time.monotonic() + seconds
            self._condition.notify()
        self._thread.join()
        self._unbatched_pool.shutdown()

    @property
    def running(self) -> int:
        """How many replies are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait in the queue; an unbatched one counts until it is done."""
        return len(self._waiting) + len(self._unbatched)

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.alive and self._hard_deadline is None

    @property
    def alive(self) -> bool:
        """Whether the decoding thread runs."""
        return self._thread.is_alive()

    # ---- in the thread ----

    def _new_decoder(self) -> Decoder:
        # As in OpenAI's interface, a stop string in the prompt ends nothing.
        return Decoder(self.model, self.tokenizer, prefill_budget=self._prefill_budget, stops_in_prompt=False)

    def _run(self) -> None:
        open_for_work = True
        while open_for_work:
            try:
                open_for_work = self._admit_and_evict()
                self._step()
            except Exception as error:  # out of memory, or a bug: the next request may succeed
                logger.exception("decoding failed; all running replies are lost")
                lost = {id(running.task): running.task for running in self._running.values()}
                self._decoder, self._running = self._new_decoder(), {}
                for task in lost.values():
                    task.sequences = []
                    self._send(task, _failed(error))

    def _admit_and_evict(self) -> bool:
        """Wait for work, then evict cancelled requests and admit waiting ones; return false after the shutdown."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._waiting or self._running or self._cancelled or self._hard_deadline is not None
            )
            now = time.monotonic()
            cancelled, self._cancelled = self._cancelled, []
            timed_out = [task for task in self._waiting if now > task.deadline]
            expired = self._hard_deadline is not None and now > self._hard_deadline
            closed = list(self._waiting) if expired else []
            gone = {id(task) for task in (*cancelled, *timed_out, *closed)}
            self._waiting = deque(task for task in self._waiting if id(task) not in gone)
            running = [reply.task.plan.num_samples for reply in self._running.values()]
            several = sum(number > 1 for number in running)
            numbers = [task.plan.num_samples for task in self._waiting]
            chosen = admissible(numbers, len(running) - several, several, self.max_sequences)
            admitted = [self._waiting[place] for place in chosen]
            self._waiting = deque(task for place, task in enumerate(self._waiting) if place not in chosen)
        for task in cancelled:
            self._evict(task)
        for task in timed_out:
            self._send(task, _timed_out(task))
        for task in closed:
            self._send(task, Closed(SHUTTING_DOWN))
        for task in admitted:
            self._admit_task(task)
        if expired:
            for sequence in list(self._decoder.sequences):
                self._end(sequence, "length")
        return bool(self._running) or self._hard_deadline is None or bool(self._waiting)

    def _admit_task(self, task: GenerationTask) -> None:
        try:
            prompt, generators = task.dialogue.prompt, task.dialogue.seeds.generators(task.plan.num_samples)
            cache = self._prefixes.take(prompt.ids, task.cache_owner)
            for choice, generator in enumerate(generators):
                describe = partial(_token, choice, task.alternatives)
                sample: Sample[Event] = Sample(
                    self._decoder, self.tokenizer, task.plan, prompt, generator, describe, None if choice else cache
                )
                sample.sequence.deadline = min(sample.sequence.deadline, task.deadline)
                task.sequences.append(sample.sequence)
                self._running[id(sample.sequence)] = RunningReply(task, choice, sample)
        except DialogueError as error:
            self._fail(task, error)
        except Exception as error:
            logger.exception("a request could not be admitted")
            self._fail(task, _failed(error))

    def _step(self) -> None:
        try:
            steps = self._decoder.step()
        except GenerationError as error:
            sequences = error.sequences or self._decoder.sequences
            failed = {id(task): task for task in (self._running[id(each)].task for each in sequences)}
            for task in failed.values():
                self._fail(task, error)
            return
        for step in steps:
            running = self._running.get(id(step.sequence))
            if running is None:  # its request failed in this step
                continue
            for event in running.sample.advance(step):
                self._send(running.task, event)
            if step.sequence.finish_reason is not None:
                self._end(step.sequence, step.sequence.finish_reason)

    def _end(self, sequence: TokenSequence, reason: str) -> None:
        """Complete one reply, and keep its cache for the next turn."""
        running = self._running.pop(id(sequence))
        running.task.sequences.remove(sequence)
        for event in (*running.sample.release(), End(running.choice, reason)):
            self._send(running.task, event)
        try:
            cache = self._decoder.cache_of(sequence)
            if cache is not None:
                self._prefixes.put(cache, running.task.cache_owner)
        except RuntimeError:  # memory is full; the next turn is prefilled from its start
            logger.exception("the cache of a reply could not be kept")
        self._decoder.drop(sequence)

    def _evict(self, task: GenerationTask) -> None:
        for sequence in task.sequences:
            self._decoder.drop(sequence)
            del self._running[id(sequence)]
        task.sequences = []

    def _fail(self, task: GenerationTask, error: DialogueError) -> None:
        self._evict(task)
        self._send(task, error)

    def _send(self, task: GenerationTask, event: Event) -> None:
        """Send an event; a callback that fails cancels its own request only."""
        try:
            task.on_event(event)
        except Exception:
            logger.exception("the callback of a request failed; the request is cancelled")
            self.cancel(task)

    # ---- in a thread of its own ----

    def _run_unbatched(self, task: GenerationTask) -> None:
        def stop() -> bool:
            now = time.monotonic()
            return (
                task.cancelled or now > task.deadline or (self._hard_deadline is not None and now > self._hard_deadline)
            )

        try:
            if time.monotonic() > task.deadline:
                raise _timed_out(task)
            cache = self._prefixes.take(task.dialogue.prompt.ids, task.cache_owner) or KVCache.for_model(self.model)
            try:
                (replies,) = generate_replies(
                    self.model,
                    self.tokenizer,
                    task.plan,
                    [task.dialogue],
                    cache=cache,
                    stop=stop,
                    stops_in_prompt=False,
                )
            finally:
                if cache.ids[0]:
                    self._prefixes.put(cache, task.cache_owner)
        except Stopped:
            late = TooLong(f"the replies took longer than {task.seconds:g} s; ask for fewer or shorter ones")
            if not task.cancelled:
                self._send(task, late if time.monotonic() > task.deadline else Closed(SHUTTING_DOWN))
        except DialogueError as error:
            self._send(task, error)
        except Exception as error:
            logger.exception("an unbatched request failed")
            self._send(task, _failed(error))
        else:
            for choice, reply in enumerate(replies):
                for token in reply.ids:
                    self._send(task, Token(choice, token))
                self._send(task, End(choice, reply.finish_reason))
        finally:
            with self._condition:
                self._unbatched.pop(id(task), None)


def admissible(waiting: Sequence[int], single: int, several: int, most: int) -> list[int]:
    """Return which waiting requests begin now, first come, first served among those of one kind.

    Requests for several replies share half of the sequences, so that those for one do not wait for them: with 16 long
    replies to each of eight requests, nobody else was answered for 41 s. One request alone may take more than half.

    Args:
        waiting: how many replies each waiting request is for, the oldest first.
        single: how many replies run of requests for one.
        several: how many replies run of requests for several.
        most: how many may run together.
    """
    chosen, room_for_single, may_begin = [], most, True
    for place, number in enumerate(waiting):
        free = most - single - several
        if number == 1:
            if free and single < room_for_single:
                chosen.append(place)
                single += 1
        elif may_begin and (not several or several + number <= most // 2):
            if number <= free:
                chosen.append(place)
                several += number
            else:  # the next replies that end leave it their room
                may_begin, room_for_single = False, most - several - number
        else:
            may_begin = False
    return chosen


class PrefixCache:
    """The caches of finished replies, for the next turns of their conversations; the oldest are evicted first.

    Threads may share it.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache of at most so many bytes."""
        self.max_bytes = max_bytes
        self._caches: list[tuple[str, KVCache]] = []  # with their owners, the oldest first
        self._lock = threading.Lock()

    def take(self, ids: Sequence[int], owner: str = "") -> KVCache | None:
        """Return a cache that holds a prefix of these ids, for the caller to change; None if there is none.

        A whole cache is handed over, as the conversation will bring it back longer; one that shares only a prefix is
        copied if the prefix is long enough. Response times reveal what is cached, so the caches of other
        owners are not used.
        """
        with self._lock:
            shared, index = max(
                (
                    (shared_prefix(cache.ids[0], ids), index)
                    for index, (cache_owner, cache) in enumerate(self._caches)
                    if cache_owner == owner
                ),
                default=(0, -1),
            )
            if index < 0:
                return None
            _, cache = self._caches[index]
            if shared == len(cache.ids[0]):
                del self._caches[index]
                return cache
            if shared < MIN_SHARED_TOKENS:
                return None
            copy = copied(cache)
            copy.crop(0, shared)
            return copy

    def put(self, cache: KVCache, owner: str = "") -> None:
        """Keep a cache of one sequence."""
        with self._lock:
            self._caches.append((owner, cache))
            while self._caches and sum(each.buffer.nbytes for _, each in self._caches) > self.max_bytes:
                self._caches.pop(0)


def _timed_out(task: GenerationTask) -> TimedOut:
    return TimedOut(f"no slot was free within {task.seconds:g} s; retry in a moment")


def _failed(error: Exception) -> Failed:
    return Failed(f"the server failed ({type(error).__name__}); its log says more")


def _token(choice: int, alternatives: int | None, step: Step) -> Event:
    if alternatives is None:
        return Token(choice, step.id)
    return _scored_token(choice, step.id, step.logits, alternatives)


def _scored_token(choice: int, token: int, logits: torch.Tensor, alternatives: int, echoed: bool = False) -> Token:
    """A token with its log-probability and the likeliest ones at its position, from the logits there, (V,)."""
    log_probabilities = logits.log_softmax(dim=-1)  # (V,)
    best = log_probabilities.topk(min(alternatives, len(log_probabilities)))
    found = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(choice, token, float(log_probabilities[token]), found, echoed)


@torch.inference_mode()
def score_prompt(model: GPT2, ids: Sequence[int], alternatives: int, cache: KVCache) -> list[Token]:
    """Score each token of a prompt but the first, which has no context.

    Args:
        model: the network.
        ids: at least one token, and no more than the network has positions.
        alternatives: how many of the most probable tokens are returned with each.
        cache: an empty cache of one row; it holds the prompt afterwards.
    """
    hidden = model.hidden(torch.tensor([list(ids)], device=model.device), cache)[0]  # (T, C)
    scored = [Token(0, ids[0], echoed=True)]
    for position in range(0, len(ids) - 1, SCORING_CHUNK):
        logits = model.logits(hidden[position : min(position + SCORING_CHUNK, len(ids) - 1)]).float()  # (chunk, V)
        for row, token in zip(logits, ids[position + 1 :], strict=False):  # the last chunk ends before the ids do
            scored.append(_scored_token(0, token, row, alternatives, echoed=True))
    return scored
