"""The screened head: no token that could be chosen is ever missing, and what it returns is exact."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dialogpt import GenerationConfig
from dialogpt.decoding.loop import Decoder
from dialogpt.decoding.screened import RAISES, READS_ALL, count_needed
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2, GPT2Config
from dialogpt.model.precision import packed, prepare, screen
from dialogpt.model.precision.kernels import Float16
from dialogpt.model.precision.screen import ScreenedHead
from dialogpt.sampler import next_token_scores
from tests.helpers import random_model, seeded

pytestmark = pytest.mark.skipif(not Float16.runs_here(), reason="products of float16 do not run here")
V, C = 4096, 64
PARTS = 4  # of the network's head


def a_weight(seed: int) -> Tensor:
    """Rows of all sizes, many of which differ by less than float16 can tell, and some of which are equal."""
    generator = seeded(seed)
    weight = torch.randn(V, C, generator=generator) * 10 ** torch.empty(V, 1).uniform_(-6, 1, generator=generator)
    weight[1000:2000] = weight[:1000] * (1 + 1e-5 * torch.randn(1000, C, generator=generator))
    weight[3000:3500] = weight[:500]
    return weight


def prepared(weight: Tensor) -> ScreenedHead:
    """A screened head, all parts of which are prepared."""
    head = ScreenedHead(weight)
    while not head.prepare():
        pass
    return head


@given(seed=st.integers(0, 2**16), count=st.integers(1, V // 32), size=st.floats(1e-6, 1e3))
@settings(max_examples=60, deadline=None)
@torch.inference_mode()
def test_no_contender_is_missing(seed: int, count: int, size: float) -> None:
    weight = a_weight(seed)
    hidden = size * torch.randn(1, C, generator=seeded(seed + 1))
    exact = hidden.double() @ weight.double().T  # (1, V)
    found = prepared(weight)(hidden, count)
    assert found is not None
    highest = exact >= exact.topk(count).values[:, -1:]  # with ties
    assert bool(found[highest].isfinite().all())
    kept = found.isfinite()
    assert float((found - exact)[kept].abs().max()) <= C * 2.0**-23 * float(hidden.norm() * weight.norm(dim=1).max())
    assert int(kept.sum()) < V // 4  # it does leave most of them out


@torch.inference_mode()
def test_without_the_bound_contenders_are_missed() -> None:
    missed = 0
    for seed in range(20):
        weight, hidden = a_weight(seed), torch.randn(1, C, generator=seeded(seed + 1))
        exact = hidden.double() @ weight.double().T
        blind = prepared(weight)
        for _, error in blind.parts.values():
            error.zero_()
        found = blind(hidden, 20)
        assert found is not None
        missed += not bool(found[exact >= exact.topk(20).values[:, -1:]].isfinite().all())
    assert missed


@torch.inference_mode()
def test_numbers_that_are_none_are_left_to_the_full_head() -> None:
    weight, hidden = a_weight(0), torch.randn(1, C)
    assert prepared(weight)(hidden * torch.nan, 1) is None
    assert prepared(weight)(hidden, V // 2) is None  # nothing would be saved
    for number in (torch.inf, torch.nan, 1e5):  # the last is beyond float16, whose packing changes the weight itself
        weight[7, 7] = number
        head = ScreenedHead(weight)
        assert not any(head.prepare() for _ in range(3))
        assert not head.parts
        assert str(float(weight[7, 7])) == str(float(number))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.floats(0.1, 3),
        "top_k": st.integers(0, 60),
        "top_p": st.floats(0.1, 1),
        "min_p": st.floats(0, 0.5),
        "typical_p": st.floats(0.1, 1),
        "repetition_penalty": st.floats(0.5, 3),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "no_repeat_ngram_size": st.integers(0, 3),
        "min_new_tokens": st.integers(0, 20),
        "no_repeat_reply": st.booleans(),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 199), min_size=1, max_size=2), min_size=1, max_size=30),
        "suppress_tokens": st.lists(st.integers(7, 199), min_size=1, max_size=30),
        "sequence_bias": st.just((((3,), 2.0),)),
        "exponential_decay_length_penalty": st.just((1, 1.5)),
        "forced_eos_token_id": st.just(5),
        "renormalize_logits": st.booleans(),
        "top_h": st.floats(0.1, 0.9),
    },
)


@given(given_settings=SETTINGS, seed=st.integers(0, 2**16))
@settings(max_examples=200, deadline=None)
def test_the_next_token_depends_on_the_contenders_only(given_settings: dict[str, object], seed: int) -> None:
    draw = random.Random(seed)
    config = GenerationConfig(eos_token_id=(5, 6), max_new_tokens=30, **given_settings)  # type: ignore[arg-type]
    ids = [draw.randrange(200) for _ in range(draw.randint(1, 40))]
    seen = Seen(ids, draw.randint(1, len(ids)), own_turns=[ids[1:4]])
    count = count_needed(config, seen)
    if count is None or count > 200:
        return
    logits = torch.randn(1, 200, generator=seeded(seed)).mul(2).round(decimals=1)  # with ties
    cut = logits.masked_fill(logits < logits.topk(count).values[:, -1:], -torch.inf)
    expected, found = (next_token_scores(each.clone(), config, [seen]) for each in (logits, cut))
    if config.do_sample:
        torch.testing.assert_close(found.softmax(dim=-1), expected.softmax(dim=-1))
    else:
        assert found.argmax() == expected.argmax()


@pytest.fixture(scope="module")
def network() -> GPT2:
    """One whose head is large enough to be screened, in float32."""
    model = random_model(vocab_size=PARTS * screen.PART, n_embd=512, n_layer=1, n_head=4, n_positions=128).float()
    weights = {name: (lambda tensor=tensor: tensor) for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        prepare(model, "float32", weights)
    model.eval()
    return model


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_new_tokens=40),
        GenerationConfig(max_new_tokens=40, repetition_penalty=1.3, no_repeat_ngram_size=2),
        GenerationConfig.chat(),
        GenerationConfig(max_new_tokens=40, do_sample=True, top_k=1, top_p=0.5),
    ],
)
def test_replies_are_those_of_the_full_head(
    network: GPT2, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int | None] = []
    screened_logits = packed.screened_logits

    def counted(model: GPT2, hidden: Tensor, count: int) -> Tensor | None:
        found = screened_logits(model, hidden, count)
        counts.append(None if found is None else int(found.isfinite().sum()))
        return found

    monkeypatch.setattr("dialogpt.decoding.screened.screened_logits", counted)
    monkeypatch.setattr(packed, "SCREEN_AFTER", 0)
    replies = []
    for screened in (False, True):
        decoder = Decoder(network, screened=screened)
        sequence = decoder.add([3, 1, 4, 1, 5], config, generator=seeded(1))
        steps = []
        while sequence.finish_reason is None:
            steps += decoder.step()
        replies.append((sequence.new_ids, torch.stack([step.logits for step in steps])))
    assert replies[0][0] == replies[1][0]
    torch.testing.assert_close(replies[0][1], replies[1][1])  # all logits, computed when they are read
    counts = [count for count in counts if count is not None]  # parts of the head are prepared at the first steps
    assert len(counts) >= len(replies[1][0]) - PARTS
    assert all(count < 2_000 for count in counts)


@torch.inference_mode()
def test_it_begins_when_it_pays(network: GPT2) -> None:
    fresh, hidden = copy.deepcopy(network), torch.randn(1, 512)
    assert isinstance(fresh.token_embedding, packed.PackedEmbedding)
    fresh.token_embedding.screened, fresh.token_embedding.decoded = None, 0
    before = packed.SCREEN_AFTER + PARTS - 1  # one part is prepared a token, and at the last one it begins
    found = [packed.screened_logits(fresh, hidden, 1) is not None for _ in range(before + 2)]
    assert found == [False] * before + [True] * 2


def test_two_threads_that_prepare_one_head_agree(network: GPT2) -> None:
    """Both may round the same part; which step screening begins at changes no token."""
    weight, hidden = network.token_embedding.weight, torch.randn(1, 512)
    shared = ScreenedHead(weight)
    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(lambda _: shared.prepare(), range(4 * PARTS))]
    assert done[-1]
    assert list(shared.parts) == [screen.PART * part for part in range(PARTS)]
    found, expected = shared(hidden, 5), prepared(weight)(hidden, 5)
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_damaged_weights_are_refused_as_ever(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SCREEN_AFTER", 0)
    damaged = copy.deepcopy(network)
    damaged.final_norm.weight = torch.nn.Parameter(damaged.final_norm.weight * torch.nan)
    decoder = Decoder(damaged, screened=True)
    decoder.add([3, 1, 4], GenerationConfig())
    with pytest.raises(Exception, match="the logits contain NaN or infinity"):
        decoder.step()


def test_a_network_that_is_not_packed_has_no_screened_head() -> None:
    config = GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    assert packed.screened_logits(GPT2(config), torch.randn(1, 8), 1) is None


def test_settings_that_raise_scores_need_all_logits() -> None:
    seen = Seen([1, 2, 3, 2], 2)
    for name in (*RAISES, *READS_ALL):
        value = {"sequence_bias": (((3,), 2.0),), "exponential_decay_length_penalty": (1, 1.5), "top_h": 0.5}.get(name)
        value = value or (True if name in ("remove_invalid_values", "renormalize_logits") else 5)
        assert count_needed(GenerationConfig(eos_token_id=5, **{name: value}), seen) is None
    assert count_needed(GenerationConfig(), seen) == 1 + 3
    assert count_needed(GenerationConfig(do_sample=True, top_k=0), seen) is None
    assert count_needed(GenerationConfig(do_sample=True, top_k=7, eos_token_id=5), seen) == 7 + 3 + 1
