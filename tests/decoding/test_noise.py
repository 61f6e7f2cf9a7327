"""The noise of sampling: number for number that of `exponential_`, however it is drawn."""

from __future__ import annotations

import pytest
import torch

from dialogpt.decoding import noise
from dialogpt.decoding.noise import exponential_noise, fresh_generator
from dialogpt.decoding.sampling import NOTHING_LEFT, choose_tokens
from dialogpt.decoding.sequence import GenerationError, SequenceFactory
from dialogpt.generation_config import GenerationConfig
from dialogpt.weights import load


@pytest.mark.parametrize("from_uniform", [None, False])
def test_noise_is_that_of_exponential(from_uniform: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed gives the replies of transformers, which draws by `exponential_`: its numbers, and as many of them."""
    if from_uniform is not None:
        monkeypatch.setattr(noise, "_uniform_gives_exponential", lambda: from_uniform)
    generators = [fresh_generator(seed=seed) for seed in (1, 2)]
    groups = [(generators[0], 3, [0, 2]), (generators[1], 1, [0])]
    for _ in range(2):
        found = exponential_noise(groups, torch.empty(3, 40_000))
    again = [fresh_generator(seed=seed) for seed in (1, 2)]
    for _ in range(2):
        shared, alone = (
            torch.empty(rows, 40_000).exponential_(generator=each) for rows, each in zip((3, 1), again, strict=True)
        )
    assert torch.equal(found, torch.cat([shared[[0, 2]], alone]))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(generators, again, strict=True))


@pytest.mark.parametrize("banned", ["none", "one row", "all"])
def test_a_row_without_a_token_to_choose_is_named(banned: str) -> None:
    """NaN is looked for in a sum first, which minus infinity of banned tokens leaves at minus infinity."""
    factory = SequenceFactory(load("tiny"), None, True)
    config = GenerationConfig(do_sample=True, top_k=0)
    rows = [factory.create([5], config, fresh_generator(seed=row)) for row in range(3)]
    scores = torch.full((3, 100), -torch.inf)
    scores[:, 7] = 1.0
    if banned == "none":
        assert choose_tokens(scores, rows, rows) == [7, 7, 7]
        return
    lost = [1] if banned == "one row" else [0, 1, 2]
    scores[lost] = -torch.inf
    with pytest.raises(GenerationError, match=NOTHING_LEFT[:40]) as raised:
        choose_tokens(scores, rows, rows)
    assert [rows.index(each) for each in raised.value.sequences] == lost
