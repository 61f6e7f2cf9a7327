"""Text completions as evaluation harnesses ask for them: echoed, scored, without tokens, many at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dialogpt import Tokenizer
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import score
from dialogpt.serve.engine import Engine
from dialogpt.weights import export, load
from tests.helpers import WAIT_SECONDS
from tests.serve.test_app import Served, serve

TEXTS = ["Hi! How are you?", "I am fine, thank you.", "no way"]


@pytest.fixture(scope="module")
def network() -> GPT2:
    return load("tiny", dtype="float64")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("tiny")


@pytest.fixture(scope="module")
def served(network: GPT2, tokenizer: Tokenizer) -> Iterator[Served]:
    engine = Engine(network, tokenizer)
    with serve(engine) as served:
        yield served
    engine.close(0)


def completed(served: Served, **body: Any) -> Any:
    answer = served.post(body, "/v1/completions")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echoed_tokens_have_the_scores_of_score(
    served: Served, network: GPT2, tokenizer: Tokenizer, as_ids: bool, max_tokens: int
) -> None:
    ids = [tokenizer.encode(text) for text in TEXTS]
    prompt = ids if as_ids else TEXTS
    answer = completed(served, prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for text, expected, found in zip(TEXTS, score(network, ids), answer["choices"], strict=True):
        told = found["logprobs"]
        assert found["text"].startswith(text)
        assert "".join(told["tokens"]) == found["text"]
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        length = 1 + len(expected.ids)
        assert len(told["tokens"]) == len(told["text_offset"]) == length + max_tokens or max_tokens == 3
        assert told["token_logprobs"][1:length] == pytest.approx(expected.log_probabilities, abs=1e-5)  # float32
        for value, others in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
            assert value in others.values()
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_several_prompts_are_continued_as_each_alone(served: Served) -> None:
    together = completed(served, prompt=TEXTS, seed=3, n=2, max_tokens=5)["choices"]
    alone = [completed(served, prompt=text, seed=3, n=2, max_tokens=5)["choices"] for text in TEXTS]
    assert [choice["text"] for choice in together] == [choice["text"] for part in alone for choice in part]
    assert [choice["index"] for choice in together] == list(range(6))


def test_a_reply_that_would_end_at_once_still_has_a_token(served: Served, tokenizer: Tokenizer) -> None:
    """lm-evaluation-harness drops the last token; an end token, which is never sent, cost it one of the prompt."""
    ids = [*tokenizer.encode("Hi!"), tokenizer.eos_id, *tokenizer.encode("Hello! How are you?")]
    answer = completed(served, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0, min_new_tokens=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids) + 1


def test_the_whole_window_can_be_scored_and_nothing_more(served: Served) -> None:
    asked: dict[str, Any] = {"echo": True, "logprobs": 0, "max_tokens": 0}
    assert len(completed(served, prompt=[5] * 512, **asked)["choices"][0]["logprobs"]["tokens"]) == 512
    one = completed(served, prompt=[5], **asked)["choices"][0]["logprobs"]
    assert one["token_logprobs"] == [None]
    for body, sentence in (
        ({"prompt": [5] * 513, **asked}, "the prompt has 513 tokens and the network 512 positions"),
        ({"prompt": [9999], **asked}, "ids outside the vocabulary"),
        ({"prompt": [-1], **asked}, "ids outside the vocabulary"),
        ({"prompt": ["a", "b"], "stream": True}, "are not streamed"),
        ({"prompt": ["a"] * 33}, "a list of up to 32 of either"),
        ({"prompt": ["a" * 9000], **asked}, "a text has 9,000 characters"),
        ({"prompt": ["a" * 7999] * 5, **asked}, "the prompts hold 39,995 characters together"),
        ({"prompt": ["a", "b"], "model": "gpt-4"}, "there is no model"),
        ({"prompt": ["a", "b"], "suffix": "c"}, "suffix is not implemented"),
    ):
        answer = served.post(body, "/v1/completions")
        assert answer.status_code in (400, 404)
        assert sentence in answer.json()["error"]["message"]
    assert served.engine.waiting == 0


def test_scoring_waits_no_longer_than_a_request_may(network: GPT2, tokenizer: Tokenizer) -> None:
    engine = Engine(network, tokenizer)
    future = engine.score_prompts([[5, 6]], 1, -1.0, keep=False)
    assert "were not scored within" in str(future.exception(WAIT_SECONDS))
    engine.close(0)
    with pytest.raises(Exception, match="shutting down|being stopped"):
        engine.score_prompts([[5, 6]], 1, 1.0, keep=False)


@pytest.mark.slow
def test_lm_evaluation_harness_runs_unchanged(
    served: Served, network: GPT2, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `local-completions` model on a task of our own, multiple choice; the same likelihoods as `score`."""
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    export("tiny", tmp_path / "hf")
    asked = [
        ("Hi! How are you?", [" I'm fine, thanks.", " purple of of the"], 0),
        ("My name is", [" Anna.", " sky."], 0),
    ]
    lines = [json.dumps({"said": said, "choices": choices, "right": right}) for said, choices, right in asked]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    task = {
        "task": "small_talk", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}, "doc_to_text": "{{said}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{right}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    arguments = (
        f"model=tiny,base_url={served.url}/v1/completions,tokenizer={tmp_path / 'hf'},"
        "tokenizer_backend=huggingface,max_length=512,num_concurrent=1"
    )
    found = lm_eval.simple_evaluate(
        model="local-completions", model_args=arguments, tasks=[task], batch_size=4, log_samples=True, bootstrap_iters=0
    )
    assert found["results"]["small_talk"]["acc,none"] == 1.0
    for sample, (said, choices, _) in zip(found["samples"]["small_talk"], asked, strict=True):
        for choice, ((likelihood, _greedy),) in zip(choices, sample["resps"], strict=True):
            before = len(tokenizer.encode(said))
            (expected,) = score(network, [tokenizer.encode(said + choice)], [before])
            assert float(likelihood) == pytest.approx(expected.total, abs=1e-4)
    assert httpx.get(f"{served.url}/health").json()["waiting"] == 0
