"""The decoding loop: what it computes, where it stops, and rows that join, leave and share."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from dialogpt import Decoder, DialogueError, GenerationConfig, generate, generate_batch
from dialogpt.decoding import noise, sampling
from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.sequence import GenerationError, NotFinite, TokenSequence
from dialogpt.model import GPT2, KVCache, shared_prefix
from tests.helpers import WAIT_SECONDS, counted_reads, needs_fork, random_model, seeded

SAMPLED = GenerationConfig(do_sample=True, top_k=10, max_new_tokens=12)


@pytest.fixture(scope="module")
def network() -> GPT2:
    """23 tokens, so that the end token comes up now and then."""
    return random_model(vocab_size=23, eos_token_id=22, n_positions=64)


@pytest.fixture
def read(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_reads(network, monkeypatch)


def prompts(lengths: list[int]) -> list[list[int]]:
    return [torch.randint(0, 22, (length,), generator=seeded(length)).tolist() for length in lengths]


def test_a_batch_of_ragged_rows_equals_each_row_alone(network: GPT2) -> None:
    batch = prompts([3, 17, 1, 9, 30, 17])
    config = GenerationConfig(max_new_tokens=20)
    together = generate_batch(network, batch, config)
    for prompt, (reply,) in zip(batch, together, strict=True):
        alone = [step.id for step in generate(network, prompt, config)]
        assert reply.ids == alone


def test_sampled_rows_with_their_own_generators_do_not_depend_on_each_other(network: GPT2) -> None:
    batch = prompts([3, 17, 1, 9])
    together = generate_batch(network, batch, SAMPLED, generator=[seeded(k) for k in range(4)])
    for k, (prompt, (reply,)) in enumerate(zip(batch, together, strict=True)):
        assert reply.ids == [step.id for step in generate(network, prompt, SAMPLED, generator=seeded(k))]


FORKED = """
import os, torch
from dialogpt import GenerationConfig, generate_batch
from dialogpt.model import GPT2, PRESETS

network = GPT2(PRESETS["tiny"]).double().eval()
config = GenerationConfig(max_new_tokens=3, do_sample=True, eos_token_id=9000)
torch.set_num_threads(1)  # with more, torch itself hangs in a child
generate_batch(network, [[1], [2], [3]], config)
child = os.fork()
generate_batch(network, [[1], [2], [3]], config)
if child:
    print("status", os.waitpid(child, 0)[1])
"""


@needs_fork
def test_a_child_draws_with_threads_of_its_own() -> None:
    """Draws of several generators use threads, which a forked process does not inherit: it waited for them for ever."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.stdout == "status 0\n", done.stderr


def test_nothing_is_computed_after_the_last_token(network: GPT2, read: list[int]) -> None:
    steps = list(generate(network, [1, 2, 3], GenerationConfig(max_new_tokens=5, eos_token_id=99)))
    assert len(steps) == 5
    assert read == [3, 1, 1, 1, 1]  # the fifth token is chosen and never read


def test_nothing_is_computed_for_a_token_that_nobody_asks_for(network: GPT2, read: list[int]) -> None:
    stream = generate(network, [1, 2, 3], GenerationConfig(eos_token_id=99))
    assert read == []
    next(stream)
    assert read == [3]


def test_candidates_read_their_prompt_once(network: GPT2, read: list[int]) -> None:
    config = GenerationConfig(do_sample=True, num_return_sequences=5, max_new_tokens=2, eos_token_id=99)
    (replies,) = generate_batch(network, [[1, 2, 3, 4]], config, generator=seeded())
    assert len(replies) == 5
    assert read == [4, 5]


def test_finished_rows_are_not_computed_any_more(network: GPT2, read: list[int]) -> None:
    decoder = Decoder(network)
    for length in (2, 6, 3):
        decoder.add([1] * length, GenerationConfig(max_new_tokens=length, eos_token_id=99))
    while decoder.step():
        pass
    assert read == [18, 3, 2, 1, 1, 1]


def test_a_cache_keeps_the_longest_shared_prefix(network: GPT2, read: list[int]) -> None:
    cache = KVCache.for_model(network)
    config = GenerationConfig(max_new_tokens=3, eos_token_id=99)
    first = [step.id for step in generate(network, [1, 2, 3, 4], config, cache=cache)]
    assert cache.ids == [[1, 2, 3, 4, *first[:2]]]
    read.clear()
    again = [step.id for step in generate(network, [1, 2, 3, 4], config, cache=cache)]
    assert again == first
    assert read == [1, 1, 1]  # one token of the prompt is read again, for its logits
    read.clear()
    list(generate(network, [1, 2, 9, 9, 9], config, cache=cache))
    assert read[0] == 3
    assert cache.ids[0][:5] == [1, 2, 9, 9, 9]


def test_rows_join_and_leave_without_changing_the_others(network: GPT2) -> None:
    config = GenerationConfig(max_new_tokens=10, eos_token_id=99)
    batch = prompts([5, 11, 2])
    alone = [[step.id for step in generate(network, prompt, config)] for prompt in batch]
    decoder = Decoder(network)
    first = decoder.add(batch[0], config)
    decoder.step()
    second = decoder.add(batch[1], config)
    decoder.step()
    third = decoder.add(batch[2], config)
    for _ in range(3):
        decoder.step()
    decoder.drop(second)
    assert second.new_ids == alone[1][:4]
    while decoder.step():
        pass
    assert (first.new_ids, third.new_ids) == (alone[0], alone[2])


@pytest.mark.parametrize("budget", [1, 4, 7, 16, 100])
def test_prompts_read_in_pieces_change_no_token(network: GPT2, read: list[int], budget: int) -> None:
    """Rows join while others run, and leave; no step reads more of prompts than it may."""
    batch = prompts([5, 40, 17, 3, 9, 44])
    alone = [[step.id for step in generate(network, p, SAMPLED, generator=seeded(k))] for k, p in enumerate(batch)]
    decoder, rows = Decoder(network, prefill_budget=budget), []
    waiting = list(enumerate(batch))
    while waiting or any(row.finish_reason is None for row in decoder.sequences):
        if waiting and len(decoder.sequences) < 3:
            k, prompt = waiting.pop(0)
            rows.append(decoder.add(prompt, SAMPLED, generator=seeded(k)))
        read.clear()
        decoder.step()
        assert sum(read) <= 3 * budget + 3  # padding is counted, and a token of each row that runs
        for row in list(decoder.sequences):
            if row.finish_reason is not None:
                decoder.drop(row)
    assert [row.new_ids for row in rows] == alone


def test_rows_with_one_prompt_read_it_once_in_pieces_too(network: GPT2, read: list[int]) -> None:
    decoder = Decoder(network, prefill_budget=8)
    config = GenerationConfig(do_sample=True, max_new_tokens=2, eos_token_id=99)
    rows = [decoder.add(list(range(20)), config, generator=seeded(k)) for k in range(3)]
    assert [len(decoder.step()) for _ in range(4)] == [0, 0, 3, 3]
    assert read == [8, 8, 4, 3]
    assert rows[2].new_ids == [s.id for s in generate(network, list(range(20)), config, generator=seeded(2))]


def test_rows_may_have_settings_of_their_own(network: GPT2) -> None:
    settings = [GenerationConfig(), SAMPLED, GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=2)]
    decoder = Decoder(network)
    rows = [decoder.add([4, 5, 6], config, generator=seeded(1)) for config in settings]
    while decoder.step():
        pass
    for row, config in zip(rows, settings, strict=True):
        assert row.new_ids == [step.id for step in generate(network, [4, 5, 6], config, generator=seeded(1))]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.5}], ids=str)
def test_replies_say_why_they_ended_and_how_likely_they_were(network: GPT2, settings: dict[str, Any]) -> None:
    """The score is the network's own opinion, whatever the processors made of it."""
    for prompt in prompts(list(range(1, 12))):
        config = GenerationConfig(max_new_tokens=15, **settings)
        ((reply,),) = generate_batch(network, [prompt], config, generator=seeded())
        said = [*reply.ids, 22] if reply.finish_reason == "stop" else reply.ids
        assert reply.finish_reason == ("length" if len(reply.ids) == 15 else "stop")
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *said]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logits.gather(1, torch.tensor(said)[:, None]).sum().item()
        assert reply.score == pytest.approx(expected, rel=1e-5)


def test_without_a_seed_every_call_draws_anew(network: GPT2) -> None:
    """A fresh torch.Generator always starts at the same number; ours must not."""
    config = GenerationConfig(do_sample=True, top_k=0, temperature=5.0, max_new_tokens=20, eos_token_id=99)
    said = {tuple(step.id for step in generate(network, [1], config)) for _ in range(5)}
    assert len(said) == 5
    assert fresh_generator(seed=3).initial_seed() == 3


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "empty"),
        ([23], "outside the vocabulary of 23"),
        ([-1], "outside"),
        ([1] * 50, "max_new_tokens must be smaller .* 50 tokens and 20 new"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_a_sentence(network: GPT2, prompt: list[int], sentence: str) -> None:
    with pytest.raises(DialogueError, match=sentence):
        generate(network, prompt, GenerationConfig())  # at the call, not at the first token


def test_a_prompt_may_fill_the_window_to_the_last_position(network: GPT2) -> None:
    config = GenerationConfig(max_new_tokens=10, eos_token_id=99)
    assert len(list(generate(network, [1] * 54, config))) == 10
    with pytest.raises(DialogueError, match="the network's 64 positions: a prompt of 55 tokens and 10 new"):
        generate(network, [1] * 55, config)
    # It blamed max_new_tokens.
    with pytest.raises(DialogueError, match=r"^max_length must be smaller .* 55 tokens and 10 new"):
        generate(network, [1] * 55, GenerationConfig(max_length=65))


def test_rows_that_run_together_leave_their_callers_caches_alone(network: GPT2, read: list[int]) -> None:
    """And of rows with the same prompt, the one whose cache holds most of it reads it."""
    config = GenerationConfig(max_new_tokens=2, eos_token_id=99)
    warm = KVCache.for_model(network)
    list(generate(network, [1, 2, 3, 4, 5], config, cache=warm))
    held = warm.ids
    for rows in ([warm, None], [None, warm]):
        read.clear()
        decoder = Decoder(network)
        for cache in rows:
            decoder.add([1, 2, 3, 4, 9], config, cache=cache)
        decoder.step()
        assert read == [1]
        assert warm.ids == held


def test_a_long_row_that_left_takes_its_room_along(network: GPT2) -> None:
    """Every row has as many slots as the longest; on a server that is never empty they stayed for ever."""
    wide = random_model(n_positions=512)
    decoder = Decoder(wide)
    short = decoder.add([1, 2, 3], GenerationConfig(max_new_tokens=40, eos_token_id=99))
    long = decoder.add(prompts([400])[0], GenerationConfig(max_new_tokens=2, eos_token_id=99))
    alone = [step.id for step in generate(wide, [1, 2, 3], GenerationConfig(max_new_tokens=40, eos_token_id=99))]
    sizes = []
    while short.finish_reason is None:
        decoder.step()
        assert decoder._batch.cache is not None
        sizes.append(decoder._batch.cache.capacity)
    assert long.finish_reason == "length"
    assert (max(sizes), sizes[-1]) == (448, 64)
    assert short.new_ids == alone


def test_a_row_that_takes_damage_for_ordinary_has_strict_neighbours() -> None:
    broken = random_model()
    broken.final_norm.bias.data[0] = torch.nan
    decoder = Decoder(broken)
    strict = decoder.add([1], GenerationConfig(eos_token_id=99))
    decoder.add([2], GenerationConfig(remove_invalid_values=True, eos_token_id=99))
    with pytest.raises(NotFinite) as error:
        decoder.step()
    assert error.value.sequences == [strict]


@pytest.mark.parametrize("damage", ["everywhere", "one word"])
def test_a_damaged_network_is_a_sentence(damage: str) -> None:
    broken = random_model()
    if damage == "everywhere":
        broken.final_norm.bias.data[0] = torch.nan
    else:
        broken.token_embedding.weight.data[50] = torch.inf
    with pytest.raises(GenerationError, match="NaN or infinity"):
        next(generate(broken, [1], GenerationConfig()))


def test_a_row_whose_tokens_are_all_banned_is_a_sentence(network: GPT2) -> None:
    config = GenerationConfig(do_sample=True, no_repeat_ngram_size=1, max_new_tokens=40, eos_token_id=99)
    with pytest.raises(GenerationError, match="leave no token to choose"):
        list(generate(network, [1, 2], config))


def test_a_step_that_failed_leaves_the_other_rows_right(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache had read a token for which none was chosen, and the next step read it a second time, in silence."""
    config = GenerationConfig(max_new_tokens=8, eos_token_id=99)
    alone = [[step.id for step in generate(network, prompt, config)] for prompt in ([1, 2, 3], [4, 5])]
    decoder = Decoder(network)
    rows = [decoder.add([1, 2, 3], config), decoder.add([4, 5], config)]
    banned = GenerationConfig(do_sample=True, no_repeat_ngram_size=1, max_new_tokens=30, eos_token_id=99)
    full = decoder.add(list(range(22)), banned)
    honest = network.logits
    for step in range(3):
        try:
            decoder.step()
        except GenerationError:
            decoder.drop(full)
        if step == 1:
            monkeypatch.setattr(network, "logits", lambda hidden: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                decoder.step()
            monkeypatch.setattr(network, "logits", honest)
    while decoder.step():
        pass
    assert [row.new_ids for row in rows] == alone


def test_a_callers_cache_keeps_its_row_whoever_joins(network: GPT2) -> None:
    config = GenerationConfig(max_new_tokens=4, eos_token_id=99)
    cache = KVCache.for_model(network)
    decoder = Decoder(network)
    decoder.add([1, 2, 3], config, cache=cache)
    decoder.step()
    decoder.add([4], config)
    while decoder.step():
        pass
    decoder.add([5], config)
    decoder.step()
    assert [row[:3] for row in cache.ids] == [[1, 2, 3]]
    with torch.no_grad():
        network.hidden(torch.tensor([[7]]), cache)  # and it can be used outside
    with pytest.raises(DialogueError, match="cache has 2 rows; expected one"):
        generate(network, [1], config, cache=KVCache.for_model(network, rows=2))


def test_generators_must_be_as_many_as_rows(network: GPT2) -> None:
    with pytest.raises(DialogueError, match="2 generators were given for 3 sequences"):
        generate_batch(network, [[1], [2], [3]], SAMPLED, generator=[seeded(), seeded()])
    with pytest.raises(DialogueError, match="generate returns one reply"):
        generate(network, [1], GenerationConfig(do_sample=True, num_return_sequences=2))
    assert generate_batch(network, [], SAMPLED) == []


def test_shared_prefix() -> None:
    assert [shared_prefix([1, 2, 3], other) for other in ([], [1, 2], [1, 9, 3], [1, 2, 3, 4])] == [0, 2, 1, 3]


@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_off_the_cpu_a_zero_among_the_noise_draws_no_banned_token(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...]
) -> None:
    """MPS draws exact zeros (pytorch#192577): 0/0 is NaN, which argmax takes. With "cpu" the test sees the fault."""
    honest = torch.Tensor.exponential_

    def with_a_zero(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        honest(tensor, **options)[:, 3] = 0
        return tensor

    monkeypatch.setattr(noise, "DEVICES_WITH_RARE_ZEROS", devices)
    monkeypatch.setattr(torch.Tensor, "exponential_", with_a_zero)
    monkeypatch.setattr(noise, "_uniform_gives_exponential", lambda: False)
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    row = TokenSequence([1], 1, GenerationConfig(do_sample=True, eos_token_id=3), seeded())
    drawn = {sampling.choose_tokens(scores, [row], [row])[0] for _ in range(50)}
    assert drawn == ({3} if devices else {0, 1, 2})
    if not devices:
        found = [noise.sample_without_replacement(scores.softmax(-1), 2, seeded(n)) for n in range(50)]
        assert all(3 not in each.tolist()[0] for each in found)


def test_without_zeros_the_draws_are_those_of_multinomial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor moves no draw, neither on the CPU, which has none, nor elsewhere."""
    probabilities = torch.rand(4, 600, generator=seeded()).softmax(-1)
    expected = [torch.multinomial(probabilities, 3, generator=seeded(n)) for n in range(20)]
    drawn = torch.empty(4, 600).exponential_(generator=seeded(1))
    assert torch.equal(noise.without_zeros(drawn.clone()), drawn)
    monkeypatch.setattr(noise, "DEVICES_WITH_RARE_ZEROS", ())
    assert torch.equal(noise.without_zeros(drawn.clone()), drawn)
    found = [noise.sample_without_replacement(probabilities, 3, seeded(n)) for n in range(20)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
