"""Every setting of `GenerationConfig` against transformers: random settings, prompts and scores.

Settings where transformers raises, or its scores become NaN, must end in a sentence here; they are counted apart.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig as TheirGenerationConfig
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import DialogueError, GenerationConfig, Tokenizer, generate_batch
from dialogpt.decoding import beam_search, loop
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.sampler import next_token_scores
from dialogpt.weights import load
from tests.helpers import pair, seeded, write_published

V, END = 31, 30
ids = st.integers(0, V - 1)
sequences = st.lists(ids, min_size=1, max_size=3)
factors = st.sampled_from([1.5, -2.0, 5.0, -torch.inf, torch.inf])
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "sequence_bias": st.lists(st.tuples(sequences, factors).map(list), min_size=1, max_size=4),
    "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
    "no_repeat_ngram_size": st.integers(1, 4),
    "bad_words_ids": st.lists(sequences, min_size=1, max_size=4),
    "min_new_tokens": st.integers(0, 3),
    "min_length": st.integers(1, 12),
    "forced_bos_token_id": ids,
    "forced_eos_token_id": st.one_of(ids, st.lists(ids, min_size=1, max_size=2)),
    "remove_invalid_values": st.just(True),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.sampled_from([0.5, 1.01, 1.5, 3.0])).map(list),
    "suppress_tokens": st.lists(ids, min_size=1, max_size=6),
    "begin_suppress_tokens": st.lists(ids, min_size=1, max_size=6),
    "renormalize_logits": st.just(True),
    "eos_token_id": st.one_of(st.just(END), st.lists(ids, min_size=2, max_size=3, unique=True)),
}
SAMPLED: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    "top_h": st.sampled_from([0.2, 0.7, 1.0]),
    "top_k": st.sampled_from([0, 1, 2, 5, V, 50]),
    "top_p": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    "typical_p": st.sampled_from([0.2, 0.9, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 0.01, 0.1, 0.9]),
    "eta_cutoff": st.sampled_from([0.0, 0.01, 0.3]),
}
BEAMS: dict[str, st.SearchStrategy[Any]] = {
    "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    "early_stopping": st.sampled_from([True, False, "never"]),
}


@st.composite
def chosen_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Random settings for all kinds of decoding; most samples omit most of them."""
    names = draw(st.sets(st.sampled_from(sorted(SETTINGS)), max_size=4))
    values = {name: draw(SETTINGS[name]) for name in sorted(names)}
    values["max_new_tokens"] = draw(st.sampled_from([3, 8, 20]))
    values["do_sample"] = draw(st.booleans())
    values["num_beams"] = draw(st.sampled_from([1, 1, 2, 3, 5]))
    if values["do_sample"]:
        values |= {
            name: draw(SAMPLED[name]) for name in sorted(draw(st.sets(st.sampled_from(sorted(SAMPLED)), max_size=4)))
        }
    if values["num_beams"] > 1:
        values |= {name: draw(strategy) for name, strategy in BEAMS.items()}
        values["num_return_sequences"] = draw(st.integers(1, values["num_beams"]))
    elif values["do_sample"]:
        values["num_return_sequences"] = draw(st.integers(1, 4))
    return values


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    """A network whose end token comes often enough to end replies."""
    return pair(tmp_path_factory.mktemp("pair"), vocab_size=V, n_positions=64)


def theirs_say(theirs: Any, prompt: list[int], values: dict[str, Any], seed: int) -> Any:
    """Transformers' output with scores."""
    end = values.get("eos_token_id", END)
    prompt_ids = torch.tensor([prompt])
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lengths that contradict each other, which are settings like others
        return theirs.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            pad_token_id=end[0] if isinstance(end, list) else end,
            return_dict_in_generate=True,
            output_scores=True,
            **values,
        )


def without_end(output: Any, prompt: list[int], values: dict[str, Any]) -> list[list[int]]:
    end = values.get("eos_token_id", END)
    ends = end if isinstance(end, list) else [end]
    rows = output.sequences[:, len(prompt) :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]


def test_random_settings_say_the_same_tokens(networks: tuple[GPT2, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 400 that transformers takes: tokens, and without beams the distribution at every step, to 1e-6."""
    ours, theirs = networks
    counts: Counter[str] = Counter()
    steps: list[Tensor] = []
    honest = loop.process_logits

    def recorded(logits: Tensor, rows: Any) -> Tensor:
        scores = honest(logits, rows)
        steps.append(scores.clone())
        return scores

    monkeypatch.setattr(loop, "process_logits", recorded)
    monkeypatch.setattr(beam_search, "process_logits", recorded)

    @given(values=chosen_settings(), prompt=st.lists(ids, min_size=1, max_size=12), seed=st.integers(0, 99))
    @settings(max_examples=900)
    def judge(values: dict[str, Any], prompt: list[int], seed: int) -> None:
        try:
            expected = theirs_say(theirs, prompt, values, seed)
        except Exception:  # whatever its settings run into
            expected = None
        steps.clear()
        try:
            replies = generate_batch(ours, [prompt], GenerationConfig(**values), generator=seeded(seed))[0]
        except DialogueError:
            strange = expected is None or any(torch.isnan(s).any() for s in expected.scores)
            strange = strange or (values["num_beams"] > 1 and bool(expected.sequences_scores.isnan().any()))
            assert strange, values
            counts["refused"] += 1
            return
        assert expected is not None, values
        assert [reply.ids for reply in replies] == without_end(expected, prompt, values), values
        if values["num_beams"] == 1:
            for mine, other in zip(steps, expected.scores, strict=False):
                if len(mine) == len(other):  # else rows of ours have left
                    torch.testing.assert_close(mine.softmax(-1), other.softmax(-1), rtol=0, atol=1e-6, equal_nan=True)
        else:
            mine = torch.tensor([reply.score for reply in replies])
            torch.testing.assert_close(mine, expected.sequences_scores, rtol=1e-5, atol=1e-5)
        counts["beams" if values["num_beams"] > 1 else "rows"] += 1

    judge()
    assert counts["rows"] > 400
    assert counts["beams"] > 200
    assert counts["refused"] < 100


values_of_scores = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([0.0, 1.0, -1.0, -torch.inf]))


@given(
    rows=st.lists(values_of_scores, min_size=V, max_size=V),
    prompt=st.lists(ids, min_size=1, max_size=6),
    said=st.lists(ids, max_size=6),
    values=chosen_settings(),
)
@settings(max_examples=400)
def test_scores_equal_those_of_transformers_processors(
    networks: tuple[GPT2, Any], rows: list[float], prompt: list[int], said: list[int], values: dict[str, Any]
) -> None:
    """Ties, infinities, k above V and p on its bounds, to the bit: both compute in float32."""
    values = {name: value for name, value in values.items() if name != "num_return_sequences"}
    values.setdefault("eos_token_id", END)
    values.setdefault("top_k", 50)
    try:
        config = GenerationConfig(**values)
    except DialogueError:
        return
    other = TheirGenerationConfig(**values)
    other._eos_token_tensor = torch.tensor(config.end_ids)
    other.max_length = len(prompt) + values["max_new_tokens"]
    if "min_new_tokens" in values:
        other.min_length = 0
    logits, held = torch.tensor([rows]), torch.tensor([[*prompt, *said]])
    try:
        processors = networks[1]._get_logits_processor(
            other, input_ids_seq_length=len(prompt), device="cpu", model_kwargs={}
        )
        expected = processors(held, logits.clone())
    except ValueError:  # NaN in its distributions, or only end tokens as bad words
        return
    found = next_token_scores(logits, config, [Seen([*prompt, *said], len(prompt))])
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), values


@pytest.mark.parametrize("fault", ["order", "strict top_k", "bias twice"])
def test_the_judge_sees_faults(networks: tuple[GPT2, Any], monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Deliberate faults in the sampler: another order, ties cut, a bias added twice."""
    from dialogpt import sampler

    if fault == "order":
        monkeypatch.setattr(sampler, "WARPERS", sampler.WARPERS[::-1])
    elif fault == "strict top_k":
        cut = lambda scores, config: scores.masked_fill(scores <= scores.topk(3).values[:, -1:], -torch.inf)  # noqa: E731
        monkeypatch.setattr(sampler, "WARPERS", ((cut, "top_k"),))
    else:
        monkeypatch.setattr(sampler, "PROCESSORS", (sampler.PROCESSORS[0], *sampler.PROCESSORS))
    values = {"max_new_tokens": 20, "do_sample": True, "temperature": 2.5, "top_p": 0.7, "top_k": 3}
    values |= {"sequence_bias": [[[token], 0.4 * (token % 5)] for token in range(V)]}
    wrong = 0
    for seed in range(30):
        expected = without_end(theirs_say(networks[1], [1, 2, seed], values, seed), [1, 2, seed], values)
        replies = generate_batch(networks[0], [[1, 2, seed]], GenerationConfig(**values), generator=seeded(seed))[0]
        wrong += [reply.ids for reply in replies] != expected
    assert wrong


@pytest.mark.parametrize("num_beams", [1, 3])
def test_min_new_tokens_of_zero_is_set(networks: tuple[GPT2, Any], num_beams: int) -> None:
    """Beside `min_length` it takes precedence, as every other number does; 0 used to count as unset."""
    lengths = set()
    for seed in range(10):
        for least in ({}, {"min_new_tokens": 0}):
            values = {"min_length": 12, "max_new_tokens": 20, "do_sample": True, "num_beams": num_beams, **least}
            expected = without_end(theirs_say(networks[1], [1, 2, seed], values, seed), [1, 2, seed], values)
            replies = generate_batch(networks[0], [[1, 2, seed]], GenerationConfig(**values), generator=seeded(seed))
            assert [reply.ids for reply in replies[0]] == expected, values
            lengths.add((bool(least), len(expected[0]) < 9))
    assert lengths >= {(True, True), (False, False)}


# ---- texts that end a reply ----


@pytest.mark.parametrize("text", ["e", "st", " you", "ab", "and the", "...", "ü", "🙂", ["zzz", "in"], "|>", "t"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_stop_strings_end_where_transformers_does(
    tmp_path_factory: pytest.TempPathFactory, text: str | list[str], num_beams: int
) -> None:
    """Inside a token, across tokens, across the prompt's end; the text stays in the reply.

    A bias leads to its tokens, as random weights would hardly ever say it.
    """
    folder = tmp_path_factory.mktemp("stops")
    write_published(folder, n_positions=64)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    ours, tokenizer = load(folder, dtype="float64"), Tokenizer.load(folder)
    their_tokenizer = GPT2Tokenizer.from_pretrained(folder)
    texts = [text] if isinstance(text, str) else text
    led = [tokenizer.encode(one) for one in texts]
    stopped = 0
    for seed in range(8):
        prompt = [*torch.randint(0, 556, (4,), generator=seeded(seed)).tolist(), *(led[0][:1] if seed % 2 else [])]
        bias = {tuple(ids[: end + 1]): 9.0 + 15 * end for ids in led for end in range(len(ids))}
        values: dict[str, Any] = {"max_new_tokens": 30, "do_sample": True, "top_k": 0, "num_beams": num_beams}
        values |= {"eos_token_id": 9999 if num_beams == 1 else 556, "sequence_bias": bias}
        torch.manual_seed(seed)
        output = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), pad_token_id=556,
            stop_strings=text, tokenizer=their_tokenizer, **values,
        )[0, len(prompt) :].tolist()  # fmt: skip
        config = GenerationConfig(stop_strings=text, **values)  # type: ignore[arg-type]
        (reply,) = generate_batch(ours, [prompt], config, generator=seeded(seed), tokenizer=tokenizer)[0]
        assert reply.ids == (output[: output.index(556)] if 556 in output else output)
        said = tokenizer.decode([*prompt, *reply.ids])
        stopped += reply.finish_reason == "stop" and any(one in said for one in texts)
    assert stopped >= 4


# ---- trained weights ----


def test_trained_weights_say_the_same(trained: Path) -> None:
    """Forty dialogues of several turns, greedy, beams, and sampled with many settings at once, in float64."""
    theirs = GPT2LMHeadModel.from_pretrained(trained, dtype=torch.float64).eval()
    theirs.generation_config = TheirGenerationConfig()
    ours, tokenizer = load(trained, dtype="float64"), Tokenizer.load(trained)
    end = tokenizer.eos_id
    said = [
        "Hi!",
        "How are you?",
        "I am fine, and you?",
        "What do you do?",
        "I work a lot.",
        "Do you like music?",
        "yes :)",
    ]
    chosen: list[dict[str, Any]] = [
        {"no_repeat_ngram_size": 3, "min_new_tokens": 2},
        {"num_beams": 4, "length_penalty": 0.5, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 40, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2},
        {"do_sample": True, "typical_p": 0.9, "min_p": 0.02, "eta_cutoff": 3e-4, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3, "early_stopping": True, "top_k": 20},
    ]
    for number in range(40):
        turns = [said[(number * 5 + place * (1 + number // 7)) % len(said)] for place in range(1 + number % 6)]
        prompt = [token for turn in turns for token in (*tokenizer.encode(turn), end)]
        values = {"max_new_tokens": 12, "eos_token_id": end, **chosen[number % len(chosen)]}
        expected = without_end(theirs_say(theirs, prompt, values, number), prompt, values)
        replies = generate_batch(ours, [prompt], GenerationConfig(**values), generator=seeded(number))[0]
        assert [reply.ids for reply in replies] == expected, (number, values)
