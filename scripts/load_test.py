"""Many clients at once against `dialogpt serve`: each talks and waits, some disconnect, others only hold connections.

    python scripts/load_test.py [--model tiny] [--clients 32] [--seconds 60] [--vanish 0.0]
                                [--idle 0] [--slow 0] [--unread 0]

Every client holds a conversation of its own, streams each reply, and begins anew after six turns. First one client
talks alone, for a minute at most: what serving them one after the other would give. Beside them, --idle connections
send nothing, --slow ones send a body byte by byte, and --unread ones ask for a long stream and read none of it; each is
opened again when the server closes it. An hour of mixed load is `--seconds 3600 --vanish 0.1 --idle 500 --slow 20
--unread 8`. The table has twelve parts of the time: what keeps growing after the prefix cache is full (512 MB) leaks.
The last line is JSON.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from dialogpt.cli.main import guarded
from dialogpt.errors import DialogueError
from scripts.benchmark import require_proc

ROOT = Path(__file__).parents[1]
SAYINGS = ("Hi! How are you?", "What did you do today?", "I like music.", "Where do you live?", "Why?", "That is nice.")
MOST_ALONE_S = 60
PARTS = 12  # of the time, each a row of the table
NEW_TOKENS = 24  # at least so many, so that replies are of like length


@dataclass(frozen=True)
class Sample:
    """What the server holds at a moment.

    Attributes:
        time: of `time.monotonic`.
        memory: bytes.
        descriptors: open files and connections.
        errors: how many the clients have seen so far.
    """

    time: float
    memory: int
    descriptors: int
    errors: int


@dataclass
class Tally:
    """What the clients saw.

    Attributes:
        tokens: how many were said.
        first: when each first token came, and how many seconds it took.
        gaps: seconds between two tokens of a stream.
        errors: what went wrong, in words.
        conversations: how many were begun.
        samples: every second, what the server holds.
        closed: how many of the connections that stand still the server has closed.
    """

    tokens: int = 0
    conversations: int = 0
    first: list[tuple[float, float]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    closed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load; returns 0 if there was no error and every place is free afterwards."""
    parser = argparse.ArgumentParser(description="Many clients at once against dialogpt serve.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--vanish", type=float, default=0.0, help="the share of replies that are not read to the end")
    for name, does in (
        ("idle", "send nothing"),
        ("slow", "send a body byte by byte"),
        ("unread", "read nothing of a stream"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, help=f"connections that {does}")
    options = parser.parse_args(argv)
    require_proc()
    with _server(options.model, options.dtype) as (url, process):
        still = {"idle": options.idle, "slow": options.slow, "unread": options.unread}
        seconds_alone = min(options.seconds / 4, MOST_ALONE_S)
        alone = asyncio.run(_talk(url, process.pid, 1, seconds_alone, 0.0, {}))
        together = asyncio.run(_talk(url, process.pid, options.clients, options.seconds, options.vanish, still))
        time.sleep(1)
        left = httpx.get(f"{url}/health").json()["running"]
    seconds = [waited for _, waited in together.first]
    rows = _over_time(together)
    speed, speed_alone = together.tokens / options.seconds, alone.tokens / seconds_alone
    first_alone = statistics.median(waited for _, waited in alone.first)
    print(f"one client: {speed_alone:.0f} tokens/s, first token after {first_alone:.3f} s")
    print(
        f"{options.clients} clients: {speed:.0f} tokens/s, {speed / speed_alone:.2f} x; first token after "
        f"{statistics.median(seconds):.3f} s, at most {max(seconds):.2f}; between tokens at most "
        f"{max(together.gaps):.2f} s; {len(together.first)} replies of {together.conversations} conversations, "
        f"{len(together.errors)} errors, {left} places left behind"
    )
    print("| until s | replies | first token, median s | 95 % s | at most s | memory MiB | descriptors | errors |")
    print("| --- " * 8 + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(f"still connections that the server closed: {together.closed}")
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
        "first_token_s": round(statistics.median(seconds), 3),
        "longest_first_token_s": round(max(seconds), 2),
        "over_time": rows,
        "closed": together.closed,
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


def _over_time(tally: Tally) -> list[dict[str, float | None]]:
    """Return a row for each part of the time: latency within it, and what the server holds at its end."""
    rows, samples = [], tally.samples
    start, errors = samples[0].time, 0
    for part in range(1, PARTS + 1):
        last = samples[(len(samples) - 1) * part // PARTS]
        waited = sorted(seconds for came, seconds in tally.first if start <= came < last.time)
        rows.append(
            {
                "until_s": round(last.time - samples[0].time),
                "replies": len(waited),
                "median_s": round(statistics.median(waited), 3) if waited else None,
                "p95_s": round(waited[len(waited) * 95 // 100], 3) if waited else None,
                "most_s": round(waited[-1], 2) if waited else None,
                "memory_mib": last.memory >> 20,
                "descriptors": last.descriptors,
                "errors": last.errors - errors,
            }
        )
        start, errors = last.time, last.errors
    return rows


async def _talk(url: str, pid: int, clients: int, seconds: float, vanish: float, still: Mapping[str, int]) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            tally.samples.append(Sample(time.monotonic(), _memory(pid), descriptors, len(tally.errors)))
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=clients * 2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        standing = (_stand_still(url, kind, end, tally) for kind, count in still.items() for _ in range(count))
        talking = (_one(client, number, end, vanish, tally) for number in range(clients))
        await asyncio.gather(watch(), *talking, *standing)
    return tally


async def _stand_still(url: str, kind: str, end: float, tally: Tally) -> None:
    """Hold a connection that is idle, slow or unread until the server closes it, and open the next."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": SAYINGS[0]}],
            "stream": True,
            "n": 16,
            "min_new_tokens": 200,
            "max_tokens": 200,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
            if kind != "idle":
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            if kind == "unread":
                writer.write(body)
                transport: Any = writer.transport  # typed as one that writes only
                transport.pause_reading()
            for byte in body:
                if time.monotonic() >= end or writer.transport.is_closing() or reader.at_eof():
                    break
                if kind == "slow":
                    writer.write(bytes([byte]))
                await asyncio.sleep(0.5)
            tally.closed += time.monotonic() < end
            writer.transport.abort()
        except OSError:
            tally.closed += 1
            await asyncio.sleep(0.1)


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
                tally.first.append((now, now - start))
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
