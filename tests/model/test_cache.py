"""The cache as the decoder uses it: full, cut back, reordered, copied, joined."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dialogpt.model import GPT2, CacheFull, KVCache
from dialogpt.model.cache import SLOTS_PER_GROWTH
from dialogpt.model.cache_rows import add_rows, copied, joined, select_rows
from dialogpt.model.gpt2 import attention_mask
from tests.helpers import random_model, seeded


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(n_positions=300)


def ids_of(seed: int, length: int) -> Tensor:
    return torch.randint(0, 97, (1, length), generator=seeded(seed))


def filled(network: GPT2, *rows: Tensor) -> KVCache:
    caches = []
    for row in rows:
        caches.append(KVCache.for_model(network))
        network.hidden(row, caches[-1])
    return joined(caches)


def follows(network: GPT2, cache: KVCache) -> Tensor:
    """The next hidden state of each row after reading token 5: what a cache is for."""
    return network.hidden(torch.full((len(cache.ids), 1), 5), cache)[:, 0]


@torch.no_grad()
def test_it_says_in_a_sentence_when_it_is_full_and_stays_as_it_was() -> None:
    network = random_model(n_positions=10)
    cache = KVCache.for_model(network)
    network.hidden(ids_of(0, 8), cache)
    with pytest.raises(CacheFull, match=r"holds 8 tokens and 3 more were asked for.*10 positions; drop"):
        network.hidden(ids_of(1, 3), cache)
    assert cache.lengths.tolist() == [8]
    network.hidden(ids_of(1, 2), cache)
    assert cache.lengths.tolist() == [10]


def test_without_a_cache_a_prompt_that_is_too_long_is_a_sentence_too() -> None:
    with pytest.raises(CacheFull, match="11 new tokens and the network 10 positions"):
        random_model(n_positions=10).hidden(ids_of(0, 11))


@pytest.mark.parametrize("lengths", [[3], [3, 9], [-1, 3]])
def test_lengths_that_do_not_fit_the_ids_are_refused(network: GPT2, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 2 numbers from 0 to 4"):
        network.hidden(torch.zeros(2, 4, dtype=torch.long), lengths=torch.tensor(lengths))


@torch.no_grad()
def test_it_grows_in_blocks_and_keeps_what_it_holds(network: GPT2) -> None:
    cache = KVCache.for_model(network)
    ids = ids_of(0, 2 * SLOTS_PER_GROWTH + 3)
    network.hidden(ids[:, :5], cache)
    assert cache.capacity == SLOTS_PER_GROWTH
    network.hidden(ids[:, 5:], cache)
    assert cache.capacity == 3 * SLOTS_PER_GROWTH
    cache.make_room(299)
    assert cache.capacity == 300  # no more than the network has positions
    assert torch.allclose(follows(network, cache), follows(network, filled(network, ids)), atol=1e-12)


@torch.no_grad()
def test_what_is_cut_off_leaves_no_trace(network: GPT2) -> None:
    left, right = ids_of(0, 20), ids_of(1, 15)
    cache = filled(network, left, right)
    cache.crop(0, 7)
    assert cache.lengths.tolist() == [7, 15]
    assert not cache.buffer[:, :, 0, :, 7:].any()
    expected = filled(network, left[:, :7], right)
    assert torch.allclose(follows(network, cache), follows(network, expected), atol=1e-12)
    with pytest.raises(ValueError, match="holds 8 tokens and cannot be cropped to 9"):
        cache.crop(0, 9)


@torch.no_grad()
def test_rows_are_reordered_dropped_and_copied(network: GPT2) -> None:
    rows = [ids_of(seed, length) for seed, length in enumerate((4, 9, 6))]
    cache = filled(network, *rows)
    select_rows(cache, [2, 0, 2])
    expected = filled(network, rows[2], rows[0], rows[2])
    assert cache.ids == expected.ids
    assert torch.allclose(follows(network, cache), follows(network, expected), atol=1e-12)
    network.hidden(torch.tensor([[1], [2], [3]]), cache)
    assert cache.ids[0] != cache.ids[2]  # copies, not aliases


@torch.no_grad()
def test_a_joining_row_is_a_copy(network: GPT2) -> None:
    one, other = filled(network, ids_of(0, 5)), filled(network, ids_of(1, 200))
    both = joined([one, other])
    network.hidden(torch.tensor([[1], [2]]), both)
    assert one.lengths.tolist() == [5]
    assert other.lengths.tolist() == [200]
    assert torch.allclose(follows(network, other), follows(network, filled(network, ids_of(1, 200))), atol=1e-12)


@torch.no_grad()
def test_an_interrupted_pass_leaves_the_cache_as_it_was(network: GPT2) -> None:
    """A pass that stops in the middle has written slots that nothing counts, and no copy of the cache may keep them."""
    ids = ids_of(0, 12)
    cache = filled(network, ids)
    last = network.blocks[1]
    hook = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        network.hidden(ids_of(3, 4), cache)
    hook.remove()
    assert cache.lengths.tolist() == [12]
    assert cache.buffer[..., :12, :].count_nonzero() > 0
    assert cache.buffer[..., 12:, :].count_nonzero() == 0
    assert torch.allclose(follows(network, cache), follows(network, filled(network, ids)), atol=1e-12)


@torch.no_grad()
def test_slots_beyond_a_row_are_zero(network: GPT2) -> None:
    """As documented in cache.py: after a ragged prefill, cropping, and joining where a longer row was."""
    cache = filled(network, ids_of(0, 9), ids_of(1, 4))
    network.hidden(torch.cat([ids_of(2, 5), ids_of(3, 5)]), cache, torch.tensor([2, 5]))
    cache.crop(1, 3)
    select_rows(cache, [1])
    add_rows(cache, filled(network, ids_of(4, 2)))
    for row, ids in enumerate(cache.ids):
        assert cache.buffer[:, :, row, :, : len(ids)].count_nonzero() > 0
        assert cache.buffer[:, :, row, :, len(ids) :].count_nonzero() == 0


def test_a_mask_is_made_only_where_model_readme_says_so() -> None:
    """It used to name a ragged batch among the cases; from an empty cache that needs none."""
    for held, T, masked in [([0], 5, False), ([0, 0], 5, False), ([3, 3], 1, False), ([3], 2, True), ([3, 1], 1, True)]:
        positions = torch.tensor(held)[:, None] + torch.arange(T)
        assert (attention_mask(held, positions, max(held) + T) is not None) == masked


@torch.no_grad()
def test_one_model_serves_many_caches(network: GPT2) -> None:
    left, right = ids_of(0, 8), ids_of(1, 8)
    first, second = KVCache.for_model(network), KVCache.for_model(network)
    for start in range(0, 8, 2):
        network.hidden(left[:, start : start + 2], first)
        network.hidden(right[:, start : start + 2], second)
    assert torch.allclose(follows(network, first), follows(network, filled(network, left)), atol=1e-12)


@torch.no_grad()
def test_rows_join_where_others_left(network: GPT2) -> None:
    """One after the other, longer and shorter than what is there, in memory that others used before."""
    rows = [ids_of(seed, length) for seed, length in enumerate((4, 70, 6, 9, 130, 2))]
    cache, held = filled(network, rows[0]), [rows[0]]
    memories = set()
    for step, row in enumerate(rows[1:]):
        add_rows(cache, filled(network, row))
        held.append(row)
        memories.add(cache.buffer.untyped_storage().data_ptr())
        if step in (1, 3):
            select_rows(cache, [2, 1])
            held = [held[2], held[1]]
        expected = filled(network, *held)
        assert cache.ids == expected.ids
        assert torch.allclose(follows(network, copied(cache)), follows(network, expected), atol=1e-12)
    assert len(memories) < len(rows) - 1  # not every row that joins takes new memory


@pytest.mark.parametrize("name", ["dropout", "blocks.1.attention.dropout", "blocks.1.mlp.dropout"])
def test_each_dropout_acts_in_training_alone(name: str) -> None:
    """Its module is called in training only: a step of generation calls no module that does nothing."""
    model, ids = random_model(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0), torch.tensor([[1, 2, 3]])
    model.get_submodule(name).p = 0.5
    assert torch.equal(model(ids), model(ids))
    assert not torch.equal(model.train()(ids), model.eval()(ids))
