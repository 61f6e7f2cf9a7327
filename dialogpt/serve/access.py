"""Access control: named API keys, and rate limits for each client.

`dialogpt.serve.middleware` enforces them.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dialogpt.errors import DialogueError
from dialogpt.serve.errors import RequestError

MAX_KEYS_FILE_BYTES = 1 << 20
MAX_TRACKED_CLIENTS = 10_000  # clients with a token bucket; the least recently active are evicted
_KEY_LINE = re.compile(r"([\w.@-]{1,64})[ \t]+([\x21-\x7e]{1,512})")


@dataclass(frozen=True)
class Client:
    """The sender of a request.

    Attributes:
        name: the name of its API key or, without keys, its address.
        connection: its address and port.
        has_key: whether it sent a valid API key.
    """

    name: str
    connection: str
    has_key: bool


class Keys:
    """The API keys of a server, by owner."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {name: key.encode(errors="surrogateescape") for name, key in keys.items()}

    def owner(self, given: str) -> str | None:
        """Return the owner of a key, or None if it is unknown; comparisons take constant time."""
        found = None
        for name, key in self._keys.items():
            if hmac.compare_digest(given.encode("latin-1"), key):
                found = name
        return found


def read_keys(path: Path) -> dict[str, str]:
    """Read a file with a name and a key on each line; empty lines and lines that start with # are skipped.

    Raises:
        DialogueError: it cannot be read, or one of its lines is not a name and a key.
    """
    if not path.is_file():
        raise DialogueError(f"{path} is not a file; expected lines of a name and a key")
    if path.stat().st_size > MAX_KEYS_FILE_BYTES:
        raise DialogueError(f"{path} is larger than {MAX_KEYS_FILE_BYTES >> 20} MB; expected lines of a name and a key")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} cannot be read ({error})") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _KEY_LINE.fullmatch(line.strip())
        if match is None or match[1] in keys or match[2] in keys.values():
            raise DialogueError(f"{path}, line {number}: expected a new name (letters, digits, . _ @ -) and a new key")
        keys[match[1]] = match[2]
    if not keys:
        raise DialogueError(f"{path} has no keys; expected lines of a name and a key")
    return keys


class ClientLimits:
    """Limits each client to a number of requests per minute and of concurrent requests; None means no limit."""

    def __init__(
        self,
        per_minute: int | None = None,
        concurrent: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute, self.concurrent, self._clock = per_minute, concurrent, clock
        self._running: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and the time at which they were counted

    def acquire(self, client: str) -> None:
        """Admit a request of a client; the caller must call `release` afterwards.

        Raises:
            RequestError: the client has reached a limit.
        """
        running = self._running.get(client, 0)
        if self.concurrent is not None and running >= self.concurrent:
            raise _too_many(f"{running} of your requests are running already, at most {self.concurrent} may; retry", 1)
        if self.per_minute is not None:
            self._take_token(client, self.per_minute)
        self._running[client] = running + 1

    def release(self, client: str) -> None:
        """Mark a request that `acquire` admitted as finished."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def _take_token(self, client: str, per_minute: int) -> None:
        """Take a token from the client's bucket, which holds the requests of one minute and refills continuously."""
        now = self._clock()
        left, since = self._buckets.pop(client, (float(per_minute), now))
        left = min(float(per_minute), left + (now - since) * per_minute / 60)
        if left < 1:
            self._buckets[client] = left, now
            seconds = int((1 - left) * 60 / per_minute) + 1
            raise _too_many(f"{per_minute} requests per minute are allowed; retry in {seconds} s", seconds)
        self._buckets[client] = left - 1, now
        if len(self._buckets) > MAX_TRACKED_CLIENTS:
            del self._buckets[next(iter(self._buckets))]  # the least recently active


def _too_many(sentence: str, seconds: int) -> RequestError:
    return RequestError(429, sentence, "rate_limit_exceeded", headers={"Retry-After": str(seconds)})


@dataclass(frozen=True)
class Access:
    """Who may connect.

    Attributes:
        keys: accepted API keys; only the page and the probes are public then. None requires no key.
        hosts: accepted host names; None accepts any.
        public_metrics: whether /health, /metrics and /openapi.json need no key.
        limits: the rate limits of each client.
    """

    keys: Keys | None = None
    hosts: Sequence[str] | None = None
    public_metrics: bool = False
    limits: ClientLimits = field(default_factory=ClientLimits)
