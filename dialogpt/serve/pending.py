"""A request in progress: its events, and its choices so far.

The engine sends events from its own thread; this module receives them in the event loop. Formatting them is left to
`dialogpt.serve.responses`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request as HTTPRequest

from dialogpt.errors import DialogueError
from dialogpt.replies import Dialogue, Plan, Seeds
from dialogpt.serve.access import Client
from dialogpt.serve.engine import End, Event, GenerationTask, Token
from dialogpt.serve.responses import Choice, ResponseFormat, VisibleText
from dialogpt.serve.schemas import GenerationRequest, plan_of
from dialogpt.serve.service import Service

Result = TypeVar("Result")
MAX_UNREAD_EVENTS = 1024  # of a stream; with 20 alternatives each they take 3 MB
TOO_SLOW = "the client reads more slowly than the reply is generated; ask for fewer choices or alternatives"


class PendingResponse:
    """A request in the engine, and its choices so far."""

    @classmethod
    async def submitted(cls, service: Service, request: GenerationRequest, client: Client) -> PendingResponse:
        """Check a request, and submit it to the engine.

        Raises:
            DialogueError: it cannot be answered.
        """
        limits, tokenizer = service.limits, service.engine.tokenizer
        plan = plan_of(request, limits, tokenizer.eos_id)
        window = plan.config.prompt_room(limits.positions)
        # A long dialogue takes seconds to encode: in a thread, others are served meanwhile.
        prompt = await asyncio.to_thread(request.prompt, tokenizer, limits, window)
        turns = await asyncio.to_thread(request.turns, tokenizer, limits) if request.rerank else []
        dialogue = Dialogue(prompt, turns, Seeds(service.engine.model.device, request.seed))
        return cls(service, request, plan, dialogue, service.cache_owner(client, request.user))

    def __init__(
        self, service: Service, request: GenerationRequest, plan: Plan, dialogue: Dialogue, cache_owner: str
    ) -> None:
        """Submit a request; see `submitted`."""
        engine, self.prompt = service.engine, dialogue.prompt
        self.metrics, self.engine = service.metrics, engine
        self.bounded = bool(request.stream) and plan.streams  # unbatched replies come all at once, at their end
        self.start = time.perf_counter()
        self.choices = [Choice(VisibleText(engine.tokenizer, request.stops)) for _ in range(request.replies)]
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._receive, event)

        seconds = service.limits.seconds
        self.task = GenerationTask(dialogue, plan, on_event, seconds, request.alternatives, cache_owner)
        engine.submit(self.task)
        self.metrics.prompt.inc(len(self.prompt.ids))

    def _receive(self, event: Event) -> None:
        """Queue an event; a stream whose client does not read is cancelled before its events fill the memory."""
        if self.task.cancelled:
            return
        if self.bounded and self.events.qsize() >= MAX_UNREAD_EVENTS:
            self.cancel()
            event = DialogueError(TOO_SLOW)
        self.events.put_nowait(event)

    async def next(self) -> tuple[int, str, Token | End]:
        """Wait for the next event, and return the index of its choice, the text that it adds, and the event.

        Raises:
            DialogueError: the engine sent an error, after which there is nothing more.
        """
        event = await self.events.get()
        if isinstance(event, DialogueError):
            raise event
        choice = self.choices[event.choice]
        if isinstance(event, Token):
            if not any(each.tokens for each in self.choices):
                self.metrics.first.observe(time.perf_counter() - self.start)
            self.metrics.generated.inc()
            choice.tokens += 1
            added = choice.visible.feed(event.id)
        else:
            choice.finish_reason = event.finish_reason
            added = choice.visible.finish()
        choice.text += added
        return event.choice, added, event

    async def collect(self, form: ResponseFormat) -> bool:
        """Wait until all choices are complete, and record tokens with their probabilities; return true."""
        while not self.done:
            choice, _, event = await self.next()
            if isinstance(event, Token):
                form.record(choice, event)
        return True

    @property
    def done(self) -> bool:
        """Whether all choices are complete."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's count of tokens, and which part of the dialogue was dropped to fit the window."""
        generated = sum(choice.tokens for choice in self.choices)
        prompt = len(self.prompt.ids)
        dropped = {"turns_left_out": self.prompt.first_turn, "tokens_cut": self.prompt.cut}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            **dropped,
        }

    def cancel(self) -> None:
        """Stop generating; after the end this does nothing."""
        self.engine.cancel(self.task)


async def unless_disconnected(work: Coroutine[Any, Any, Result], request: HTTPRequest) -> Result | None:
    """Return the result of some work, or cancel it and return None if the client disconnects first."""

    async def disconnected() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)

    working, leaving = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
