"""Many clients at once against `dialogpt serve`, as its users are: each talks, waits, and some go away in the middle.

    python scripts/load_test.py [--model tiny] [--clients 32] [--seconds 60] [--vanish 0.0]

Every client holds a conversation of its own, streams each reply, and begins anew after six turns. First one client
talks alone for a quarter of the time: what serving them one after the other would give. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from dialogpt.cli.main import guarded
from dialogpt.errors import DialogueError
from scripts.benchmark import require_proc

ROOT = Path(__file__).parents[1]
SAYINGS = ("Hi! How are you?", "What did you do today?", "I like music.", "Where do you live?", "Why?", "That is nice.")
NEW_TOKENS = 24  # at least so many, so that replies are of like length


@dataclass
class Tally:
    """What the clients saw.

    Attributes:
        tokens: how many were said.
        first: seconds until each first token.
        gaps: seconds between two tokens of a stream.
        errors: what went wrong, in words.
        conversations: how many were begun.
        memory: bytes of the server, every second.
    """

    tokens: int = 0
    conversations: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load; returns 0 if there was no error and every place is free afterwards."""
    parser = argparse.ArgumentParser(description="Many clients at once against dialogpt serve.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--vanish", type=float, default=0.0, help="the share of replies that are not read to the end")
    options = parser.parse_args(argv)
    require_proc()
    with _server(options.model, options.dtype) as (url, process):
        alone = asyncio.run(_talk(url, process.pid, 1, options.seconds / 4, 0.0))
        together = asyncio.run(_talk(url, process.pid, options.clients, options.seconds, options.vanish))
        time.sleep(1)
        left = httpx.get(f"{url}/health").json()["running"]
    memory = [together.memory[(len(together.memory) - 1) * part // 10] >> 20 for part in (1, 2, 4, 6, 8, 10)]
    speed, speed_alone = together.tokens / options.seconds, alone.tokens / (options.seconds / 4)
    print(f"one client: {speed_alone:.0f} tokens/s, first token after {statistics.median(alone.first):.3f} s")
    print(
        f"{options.clients} clients: {speed:.0f} tokens/s, {speed / speed_alone:.2f} x; first token after "
        f"{statistics.median(together.first):.3f} s, at most {max(together.first):.2f}; between tokens at most "
        f"{max(together.gaps):.2f} s; {len(together.first)} replies of {together.conversations} conversations, "
        f"{len(together.errors)} errors, {left} places left behind"
    )
    print(f"memory of the server after 10, 20, 40, 60, 80, 100 % of the time: {', '.join(map(str, memory))} MiB")
    for error in together.errors[:5]:
        print(error)
    result = {
        "what": "load",
        "model": options.model,
        "clients": options.clients,
        "seconds": options.seconds,
        "tokens_per_s": round(speed),
        "alone_tokens_per_s": round(speed_alone),
        "longest_gap_s": round(max(together.gaps), 2),
        "conversations": together.conversations,
        "memory_mib": memory,
        "errors": len(together.errors),
        "left": left,
    }
    print(json.dumps(result))
    return int(bool(together.errors or left))


@contextmanager
def _server(model: str, dtype: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--model", model, "--dtype", dtype]
    with (
        tempfile.TemporaryFile("a+") as log,
        subprocess.Popen(command, cwd=ROOT, stderr=log, text=True) as process,
    ):
        try:
            while " answers at " not in (said := _content(log)):
                if process.poll() is not None:
                    raise DialogueError(f"the server did not begin: {said}")
                time.sleep(0.1)
            yield said.split(" answers at ")[1].split("/ ")[0], process
        finally:
            process.terminate()


def _content(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


async def _talk(url: str, pid: int, clients: int, seconds: float, vanish: float) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            tally.memory.append(_memory(pid))
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=clients * 2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(watch(), *(_one(client, number, end, vanish, tally) for number in range(clients)))
    return tally


async def _one(client: httpx.AsyncClient, number: int, end: float, vanish: float, tally: Tally) -> None:
    """One client: conversations of six turns, until the time is over."""
    chance = random.Random(number)
    messages: list[dict[str, str]] = []
    while time.monotonic() < end:
        if len(messages) >= 12:
            messages = []
        tally.conversations += not messages
        messages.append({"role": "user", "content": chance.choice(SAYINGS)})
        try:
            messages.append(
                {"role": "assistant", "content": await _reply(client, messages, chance, vanish, end, tally)}
            )
        except (httpx.HTTPError, RuntimeError) as error:
            tally.errors.append(f"{type(error).__name__}: {error}")
            messages = []


async def _reply(
    client: httpx.AsyncClient,
    messages: list[dict[str, str]],
    chance: random.Random,
    vanish: float,
    end: float,
    tally: Tally,
) -> str:
    body = {
        "messages": messages,
        "stream": True,
        "min_new_tokens": NEW_TOKENS,
        "max_tokens": NEW_TOKENS,
        "logprobs": True,
    }
    text: str = ""
    reason, start = None, time.monotonic()
    leaves_after = chance.randrange(1, NEW_TOKENS) if chance.random() < vanish else None
    said, last = 0, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {(await answer.aread()).decode()[:200]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            content = json.loads(line.removeprefix("data: "))
            if "error" in content:
                raise RuntimeError(content["error"]["message"])
            choice = content["choices"][0]
            reason = choice["finish_reason"]
            text += choice["delta"].get("content", "")
            if choice["logprobs"] is None:
                continue
            now = time.monotonic()
            if last is None:
                tally.first.append(now - start)
            else:
                tally.gaps.append(now - last)
            said, last = said + 1, now
            tally.tokens += now < end
            if said == leaves_after:
                return text
    if reason is None or said != NEW_TOKENS:
        raise RuntimeError(f"a stream ended after {said} tokens with {reason}")
    return text


def _memory(pid: int) -> int:
    """What a process holds, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(guarded(main))
