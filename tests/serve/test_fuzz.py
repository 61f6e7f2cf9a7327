"""Requests made from the server's own description of itself, good and bad: each is answered, and none with a fault."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from dialogpt import GenerationConfig, Tokenizer
from dialogpt.serve.app import create_app
from dialogpt.serve.engine import Engine
from dialogpt.serve.schemas import Limits
from dialogpt.weights import load


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    engine = Engine(load("tiny"), Tokenizer.load("tiny"))
    yield create_app(engine, "tiny", Limits(GenerationConfig.chat(), 512, 3, 5.0, 64))
    engine.close(0)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat", "/api/generate", "/inspect"]
)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_makes_a_fault(app: Any, path: str, mode: Any) -> None:
    statuses: Counter[int] = Counter()
    described = schemathesis.openapi.from_asgi("/openapi.json", app)

    @given(case=described[path]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def judge(case: Any) -> None:
        answer = case.call()
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case.body, answer.text)
        assert '"server_error"' not in answer.text  # in the middle of a stream

    judge()
    if path != "/inspect":  # hardly any random dialogue ends with a reply
        assert statuses[200 if mode is schemathesis.GenerationMode.POSITIVE else 400] > 3, statuses


strange = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
NAMES = [
    *GenerationConfig.__dataclass_fields__,
    "n",
    "stop",
    "seed",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stream",
]


def test_no_setting_makes_a_fault(app: Any) -> None:
    """Any JSON in the place of any setting, and what Python's JSON has beyond it."""
    answered: Counter[int] = Counter()

    @given(body=st.dictionaries(st.sampled_from(NAMES), strange, min_size=1, max_size=3), text=st.text(max_size=20))
    @settings(max_examples=250, suppress_health_check=list(HealthCheck))
    def judge(body: dict[str, Any], text: str) -> None:
        content = json.dumps({"messages": [{"role": "user", "content": text}], **body})
        headers = {"content-type": "application/json"}
        answer = TestClient(app).post("/v1/chat/completions", content=content, headers=headers)
        answered[answer.status_code] += 1
        assert answer.status_code in (200, 400), (body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    judge()
    assert min(answered[200], answered[400]) > 10, answered
