"""API keys from a file, and limits for each client."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from dialogpt import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.serve.access import Access, Client, ClientLimits, Keys, read_keys
from dialogpt.serve.errors import RequestError
from dialogpt.serve.metrics import Metrics
from dialogpt.serve.schemas import Limits
from dialogpt.serve.service import Service
from tests.serve.helpers import HELLO, Served, serve


def test_keys_are_read_with_their_names(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice  s3cret\n\nbob-2\tother!key\n")
    keys = Keys(read_keys(file))
    assert [keys.owner(key) for key in ("s3cret", "other!key", "", "alice", "S3cret", "s\xe9")] == [
        "alice", "bob-2", None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no keys"),
        ("alice\n", "line 1: expected a new name"),
        ("alice a b\n", "line 1"),
        ("alice a\nalice b\n", "line 2"),
        ("alice a\nbob a\n", "line 2"),
        ("al ice\x00 a\n", "line 1"),
        ("x" * (2 << 20), "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(DialogueError, match=sentence):
        read_keys(file)
    with pytest.raises(DialogueError, match="is not a file"):
        read_keys(tmp_path)


def test_a_bucket_refills() -> None:
    now = 0.0
    limits = ClientLimits(per_minute=2, concurrent=5, clock=lambda: now)
    for _ in range(2):
        limits.acquire("a")
    with pytest.raises(RequestError, match="2 requests per minute are allowed; retry in 31 s") as refused:
        limits.acquire("a")
    assert refused.value.headers == {"Retry-After": "31"}
    limits.acquire("b")
    now = 31.0
    limits.acquire("a")
    with pytest.raises(RequestError):
        limits.acquire("a")


def test_so_many_at_a_time() -> None:
    limits = ClientLimits(concurrent=1)
    limits.acquire("a")
    limits.acquire("b")
    with pytest.raises(RequestError, match="1 of your requests are running already, at most 1 may"):
        limits.acquire("a")
    limits.release("a")
    limits.acquire("a")


def test_named_keys_are_limited_and_counted_each(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """With one shared key, clients could not be told apart."""
    access = Access(Keys({"alice": "a1", "bob": "b2"}), limits=ClientLimits(per_minute=2))
    body = {"messages": HELLO, "max_tokens": 2}
    with serve(served.engine, access=access) as limited, caplog.at_level("INFO", "dialogpt.serve.access"):
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in ("a1", "b2"))
        assert [limited.post(body, headers=alice).status_code for _ in range(3)] == [200, 200, 429]
        refused = limited.post(body, headers=alice)
        assert int(refused.headers["retry-after"]) > 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert limited.post(body, headers=bob).status_code == 200
        assert limited.post(body).status_code == 401
        metrics = httpx.get(f"{limited.url}/metrics", headers=bob).text
        assert 'dialogpt_key_requests_total{key="alice"} 4.0' in metrics
        assert 'dialogpt_key_requests_total{key="bob"} 1.0' in metrics
    assert "alice POST /v1/chat/completions 429" in caplog.text
    assert "127.0.0.1 POST /v1/chat/completions 401" in caplog.text
    assert "a1" not in caplog.text
    with serve(served.engine, access=Access(Keys({"a": "k"}), public_metrics=True)) as public:
        assert httpx.get(f"{public.url}/metrics").status_code == httpx.get(f"{public.url}/health").status_code == 200
        assert httpx.get(f"{public.url}/v1/models").status_code == 401


def test_whose_cached_prefixes_a_request_may_use(served: Served) -> None:
    limits = Limits(GenerationConfig(), 512, 64, 30, 256)
    named, alone = Client("alice", "1.2.3.4:5", True), Client("1.2.3.4", "1.2.3.4:5", False)
    for isolate, owners in ((False, ["key alice", "", ""]), (True, ["key alice", "user me", "user 1.2.3.4:5"])):
        service = Service(served.engine, "tiny", limits, Metrics(served.engine), isolate)
        found = [service.cache_owner(client, user) for client, user in ((named, "me"), (alone, "me"), (alone, None))]
        assert found == owners


def test_a_clients_cache_owner_reaches_the_engine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []
    submit = served.engine.submit
    monkeypatch.setattr(served.engine, "submit", lambda task: (owners.append(task.cache_owner), submit(task)))
    with serve(served.engine, isolate_cache=True) as isolated:
        isolated.post({"messages": HELLO, "max_tokens": 1, "user": "me"})
        isolated.post({"messages": HELLO, "max_tokens": 1})
    assert owners[0] == "user me"
    assert owners[1].startswith("user 127.0.0.1:")
