"""Beam search beyond parity: batches, reasons to end, what is refused; parity/test_settings.py has transformers."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from dialogpt import DialogueError, GenerationConfig, generate, generate_batch
from dialogpt.decoding.loop import Decoder, GenerationError
from dialogpt.model import GPT2
from tests.helpers import random_model, seeded


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(vocab_size=23, eos_token_id=22, n_positions=64)


def ragged(number: int) -> list[list[int]]:
    return [torch.randint(0, 22, (1 + 7 * n % 20,), generator=seeded(n)).tolist() for n in range(number)]


@pytest.mark.parametrize(
    "values", [{}, {"num_beams": 4, "num_return_sequences": 2}, {"num_beams": 3, "do_sample": True}]
)
def test_64_ragged_dialogues_are_each_as_alone(network: GPT2, values: dict[str, int]) -> None:
    """Greedy, beams, and beam sampling with a generator for each: no row's tokens depend on its neighbours."""
    prompts, config = ragged(64), GenerationConfig(max_new_tokens=15, **values)  # type: ignore[arg-type]
    together = generate_batch(network, prompts, config, generator=[seeded(n) for n in range(64)])
    for number, prompt in enumerate(prompts):
        (alone,) = generate_batch(network, [prompt], config, generator=[seeded(number)])
        assert [reply.ids for reply in together[number]] == [reply.ids for reply in alone]
        assert [reply.score for reply in together[number]] == pytest.approx([reply.score for reply in alone], abs=1e-5)
    assert len({len(replies[0].ids) for replies in together}) > 3  # they end at different steps


def test_beams_are_sorted_and_say_why_they_ended(network: GPT2) -> None:
    config = GenerationConfig(num_beams=5, num_return_sequences=5, max_new_tokens=6)
    for prompt in ragged(8):
        (beams,) = generate_batch(network, [prompt], config)
        assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
        for beam in beams:
            assert (beam.finish_reason == "length") == (len(beam.ids) == 6)
            assert 22 not in beam.ids


def test_more_beams_find_likelier_replies(network: GPT2) -> None:
    """What beam search is for: with length_penalty 0 its score is the sum of the log-probabilities."""

    def best(beams: int) -> float:
        config = GenerationConfig(num_beams=beams, length_penalty=0.0, early_stopping="never", max_new_tokens=8)
        return sum(replies[0].score for replies in generate_batch(network, ragged(20), config))

    assert best(8) > best(2) > sum(
        replies[0].score for replies in generate_batch(network, ragged(20), GenerationConfig(max_new_tokens=8))
    )  # fmt: skip


def test_the_prompt_is_read_once_for_all_beams(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    honest = GPT2.hidden
    monkeypatch.setattr(
        GPT2, "hidden", lambda self, ids, *rest: (read.append(tuple(ids.shape)), honest(self, ids, *rest))[1]
    )
    generate_batch(network, [[1, 2, 3, 4, 5]], GenerationConfig(num_beams=6, max_new_tokens=4, eos_token_id=99))
    assert read == [(1, 5), (6, 1), (6, 1), (6, 1)]


def test_rows_that_leave_move_as_few_others_as_possible() -> None:
    """Each that left had all rows behind it copied, which cost more than computing them."""
    from dialogpt.decoding.loop import _closed_up

    assert _closed_up([True, False, True, True, True]) == [0, 4, 2, 3]
    assert _closed_up([True] * 4) == [0, 1, 2, 3]
    assert _closed_up([False] * 3) == []
    assert _closed_up([False, True, False, True, False]) == [3, 1]


def test_what_beams_cannot_do_is_a_sentence(network: GPT2) -> None:
    with pytest.raises(DialogueError, match="num_beams must be a positive integer, got 0"):
        GenerationConfig(num_beams=0)
    with pytest.raises(DialogueError, match="num_return_sequences must be at most num_beams, 2, got 3"):
        GenerationConfig(num_beams=2, num_return_sequences=3)
    with pytest.raises(DialogueError, match='early_stopping must be true, false or "never", got .soon.'):
        GenerationConfig(num_beams=2, early_stopping="soon")
    with pytest.raises(DialogueError, match="beams are known at the end only; call generate_batch"):
        next(generate(network, [1], GenerationConfig(num_beams=2)))
    with pytest.raises(DialogueError, match="more end tokens than other tokens"):
        generate_batch(network, [[1]], GenerationConfig(num_beams=2, eos_token_id=tuple(range(23))))


@pytest.mark.parametrize("penalty", [5000.0, -5000.0, 1e15, 300.0])
def test_a_length_penalty_beyond_numbers_is_no_traceback(network: GPT2, penalty: float) -> None:
    config = GenerationConfig(num_beams=2, length_penalty=penalty, early_stopping="never", max_new_tokens=8)
    with suppress(GenerationError):
        generate_batch(network, [[1, 2]], config)


def test_a_decoder_that_is_used_up_is_empty(network: GPT2) -> None:
    assert Decoder(network).step() == []
    assert generate_batch(network, [], GenerationConfig(num_beams=2)) == []
