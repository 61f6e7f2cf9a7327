"""The engine: each request receives what it would receive alone, whichever others join, leave or fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, permutations, zip_longest
from queue import Queue
from typing import Any

import pytest
import torch

from dialogpt import DialogueError, GenerationConfig, Tokenizer, generate, generate_batch
from dialogpt.decoding import batch
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.replies import Dialogue, Plan, Seeds
from dialogpt.serve.engine import (
    Busy,
    Closed,
    End,
    Engine,
    Event,
    Failed,
    GenerationTask,
    PrefixCache,
    TimedOut,
    Token,
    TooLong,
    admissible,
)
from dialogpt.weights import load
from tests.helpers import WAIT_SECONDS, counted_reads, random_model, seeded, small_vocabulary

NEVER = 10_000  # an end token that no network says
SAMPLED = GenerationConfig(do_sample=True, top_k=20, temperature=2.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(vocab_size=557, n_positions=128, eos_token_id=556)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(small_vocabulary())


@pytest.fixture
def engine(network: GPT2, tokenizer: Tokenizer) -> Iterator[Engine]:
    engine = Engine(network, tokenizer, max_sequences=4, max_waiting=40, prefill_budget=16)
    yield engine
    engine.close(0)


class SubmittedTask:
    """A request, and the events that it receives."""

    def __init__(self, prompt: list[int], config: GenerationConfig, seed: int = 0, **settings: Any) -> None:
        self.events: Queue[Event] = Queue()
        number = config.num_return_sequences
        tries, reranker = settings.pop("tries", 1), settings.pop("reranker", None)
        plan = Plan(config, number if reranker is None else 1, number, tries, tries > 1, reranker)
        dialogue = Dialogue(Prompt(prompt, 0, 0), [], Seeds("cpu", seed))
        settings.setdefault("seconds", 60)
        self.task = GenerationTask(dialogue, plan, self.events.put, **settings)

    def all(self) -> list[Event]:
        """Everything until all replies are over, or an error."""
        events: list[Event] = []
        while sum(isinstance(event, End) for event in events) < self.task.plan.num_replies:
            events.append(self.events.get(timeout=WAIT_SECONDS))
            if isinstance(events[-1], DialogueError):
                break
        return events

    def ids(self, choice: int = 0) -> list[int]:
        return [event.id for event in self.all() if isinstance(event, Token) and event.choice == choice]


def prompt_of(seed: int, length: int) -> list[int]:
    return torch.randint(0, 556, (length,), generator=seeded(seed)).tolist()


def test_every_request_hears_what_it_would_hear_alone(engine: Engine, network: GPT2) -> None:
    """30 requests from three threads, each with its own prompt, settings and seed, four at a time; exact in float64."""
    configs = [
        GenerationConfig(max_new_tokens=9),
        SAMPLED,
        GenerationConfig(do_sample=True, top_p=0.9, repetition_penalty=1.3, max_new_tokens=30),
        GenerationConfig(max_new_tokens=15, no_repeat_ngram_size=2, min_new_tokens=4),
    ]
    requests = [(prompt_of(k, 1 + (k * 17) % 90), configs[k % 4], k) for k in range(30)]
    heard = [SubmittedTask(*request) for request in requests]

    def submit(some: list[SubmittedTask]) -> None:
        for each in some:
            engine.submit(each.task)
            time.sleep(0.01)

    threads = [threading.Thread(target=submit, args=(heard[k::3],)) for k in range(3)]
    for thread in threads:
        thread.start()
    for each, (prompt, config, seed) in zip(heard, requests, strict=True):
        alone = [step.id for step in generate(network, prompt, config, generator=seeded(seed))]
        assert each.ids() == alone
    assert engine.running == 0
    for thread in threads:
        thread.join()


def test_in_float32_what_differs_is_a_tie() -> None:
    """Products of several rows add in another order than those of one; a token may differ only where two are as likely.

    Both tokens' logits are compared in float64, after the prefix that was generated alone.
    """
    network, exact, tokenizer = load("tiny"), load("tiny", dtype="float64"), Tokenizer.load("tiny")
    config = GenerationConfig(max_new_tokens=24)
    prompts = [[*tokenizer.encode(text), tokenizer.eos_id] for text in ("Hi!", "How are you?", "I like tea.", "Why?")]
    prompts = [[token for turn in order for token in turn] for order in permutations(prompts, 3)]
    engine = Engine(network, tokenizer, max_sequences=8, prefill_budget=16)
    heard = [SubmittedTask(prompt, config) for prompt in prompts]
    for each in heard:
        engine.submit(each.task)
    ties = 0
    for prompt, each in zip(prompts, heard, strict=True):
        alone = [step.id for step in generate(network, prompt, config)]
        together = each.ids()
        if together == alone:
            continue
        place = next(k for k, pair in enumerate(zip_longest(alone, together)) if pair[0] != pair[1])
        with torch.inference_mode():
            logits = exact(torch.tensor([prompt + alone[:place]]))[0, -1]
        said = [ids[place] if place < len(ids) else tokenizer.eos_id for ids in (alone, together)]
        assert logits[said[0]] == pytest.approx(float(logits[said[1]]), abs=1e-4)
        ties += 1
    assert ties <= 2
    engine.close(0)


def test_several_replies_to_one_prompt(engine: Engine, network: GPT2) -> None:
    config = GenerationConfig(do_sample=True, num_return_sequences=3, max_new_tokens=8)
    heard = SubmittedTask(prompt_of(1, 40), config, seed=5)
    engine.submit(heard.task)
    events = heard.all()
    for choice in range(3):
        said = [event.id for event in events if isinstance(event, Token) and event.choice == choice]
        alone = GenerationConfig(do_sample=True, max_new_tokens=8)
        assert said == [step.id for step in generate(network, prompt_of(1, 40), alone, generator=seeded(5 + choice))]


def test_a_reply_of_white_space_is_drawn_again_as_in_a_chat(
    engine: Engine, network: GPT2, tokenizer: Tokenizer
) -> None:
    """The end token is likely from the start; sampling continues with the same generators, four replies at a time."""
    config = GenerationConfig(do_sample=True, max_new_tokens=4, sequence_bias=[[[556], 7.0]])

    def alone(seed: int, tries: int) -> list[list[int]]:
        generator, draws = seeded(seed), []
        while len(draws) < tries and not any(tokenizer.decode(ids).strip() for ids in draws):
            draws.append([step.id for step in generate(network, prompt_of(8, 20), config, generator=generator)])
        return draws

    drawn = []
    for tries in (1, 2, 5):
        heard = [SubmittedTask(prompt_of(8, 20), config, seed=k, tries=tries) for k in range(12)]
        for each in heard:
            engine.submit(each.task)
        for seed, each in enumerate(heard):
            draws = alone(seed, tries)
            drawn.append(len(draws))
            assert each.ids() == draws[-1]
            assert each.events.empty()
    assert set(drawn) >= {1, 2, 3}
    assert engine.running == 0


def test_beams_are_those_of_generate_batch(engine: Engine, network: GPT2) -> None:
    config = GenerationConfig(num_beams=3, num_return_sequences=2, max_new_tokens=8)
    beside, heard = SubmittedTask(prompt_of(3, 9), SAMPLED), SubmittedTask(prompt_of(2, 9), config)
    for each in (beside, heard):
        engine.submit(each.task)
    events = heard.all()
    (expected,) = generate_batch(network, [prompt_of(2, 9)], config)
    for choice, reply in enumerate(expected):
        assert [e.id for e in events if isinstance(e, Token) and e.choice == choice] == reply.ids
        assert End(choice, reply.finish_reason) in events
    assert len(beside.all()) > 1


def test_probabilities_are_the_networks_own(engine: Engine, network: GPT2) -> None:
    prompt = prompt_of(4, 12)
    heard = SubmittedTask(prompt, SAMPLED, alternatives=3)
    engine.submit(heard.task)
    tokens = [event for event in heard.all() if isinstance(event, Token)]
    with torch.inference_mode():
        logits = network(torch.tensor([[*prompt, *(token.id for token in tokens)]]))[0].float().log_softmax(dim=-1)
    for place, token in enumerate(tokens, len(prompt) - 1):
        assert token.log_probability == pytest.approx(float(logits[place, token.id]), abs=1e-5)
        assert [n for n, _ in token.alternatives] == logits[place].topk(3).indices.tolist()


def test_the_next_turn_reads_only_what_is_new(engine: Engine, network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(max_new_tokens=5, eos_token_id=NEVER)
    heard = SubmittedTask(prompt_of(5, 60), config)
    engine.submit(heard.task)
    said = heard.ids()
    reads = counted_reads(network, monkeypatch)
    prompt = [*prompt_of(5, 60), *said, 556, 7, 8, 9]
    turn = SubmittedTask(prompt, config)
    engine.submit(turn.task)
    assert turn.ids() == [step.id for step in generate(network, prompt, config)]
    assert sum(reads[:1]) <= 5  # the last token of the reply, which was not read; its end; and the turn


def test_a_request_that_fails_takes_no_other_with_it(engine: Engine, network: GPT2) -> None:
    """Its settings ban every token; the other request continues, and samples the same tokens."""
    banned = GenerationConfig(do_sample=True, suppress_tokens=tuple(range(557)), max_new_tokens=5)
    config = GenerationConfig(do_sample=True, top_k=20, max_new_tokens=30, eos_token_id=NEVER)
    other, failing = SubmittedTask(prompt_of(6, 9), config, seed=3), SubmittedTask(prompt_of(7, 9), banned)
    engine.submit(other.task)
    engine.submit(failing.task)
    (error,) = failing.all()
    assert "bans all of them" in str(error)
    assert other.ids() == [step.id for step in generate(network, prompt_of(6, 9), config, generator=seeded(3))]


def test_a_prompt_that_is_too_long_is_a_sentence(engine: Engine) -> None:
    heard = SubmittedTask(prompt_of(8, 127), GenerationConfig(max_new_tokens=5))
    engine.submit(heard.task)
    (error,) = heard.all()
    assert "to fit the network's 128 positions: a prompt of 127 tokens and 5 new" in str(error)


def test_after_a_fault_the_next_request_is_answered(
    engine: Engine, network: GPT2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = network.hidden
    monkeypatch.setattr(network, "hidden", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    heard = SubmittedTask(prompt_of(9, 5), SAMPLED)
    engine.submit(heard.task)
    (error,) = heard.all()
    assert str(error) == "the server failed (RuntimeError); its log says more"
    assert "all running replies are lost" in caplog.text
    monkeypatch.setattr(network, "hidden", honest)
    again = SubmittedTask(prompt_of(9, 5), SAMPLED)
    engine.submit(again.task)
    assert isinstance(again.all()[-1], End)


def test_no_memory_for_keeping_or_joining_is_no_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Running replies finish; the request that could not be admitted receives an error; the thread continues."""
    first = SubmittedTask(prompt_of(9, 30), SAMPLED)
    with monkeypatch.context() as full:
        full.setattr(batch, "copied", lambda _: (_ for _ in ()).throw(RuntimeError("no memory")))
        engine.submit(first.task)
        assert isinstance(first.all()[-1], End)
        time.sleep(0.1)
    assert "could not be kept" in caplog.text
    with monkeypatch.context() as full:
        full.setattr(PrefixCache, "take", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
        second = SubmittedTask(prompt_of(9, 30), SAMPLED)
        engine.submit(second.task)
        (error,) = second.all()
        assert isinstance(error, Failed)
    third = SubmittedTask(prompt_of(9, 30), SAMPLED)
    engine.submit(third.task)
    assert isinstance(third.all()[-1], End)
    assert engine.alive


def test_who_cannot_be_told_is_let_go(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    deaf, other = SubmittedTask([1, 2], LONG), SubmittedTask([3, 4], SAMPLED)
    deaf.task.on_event = lambda _: (_ for _ in ()).throw(RuntimeError("nobody listens"))
    engine.submit(deaf.task)
    engine.submit(other.task)
    assert isinstance(other.all()[-1], End)
    time.sleep(0.1)
    assert engine.running == 0
    assert "the callback of a request failed" in caplog.text


def test_cached_prefixes_are_shared_with_nobody_else(network: GPT2) -> None:
    """Response times of 17 ms against 83 ms revealed other clients' dialogues."""
    caches = PrefixCache(1 << 30)
    ids = prompt_of(5, 40)

    def filled() -> KVCache:
        cache = KVCache.for_model(network)
        network.hidden(torch.tensor([ids]), cache)
        return cache

    caches.put(filled(), "key alice")
    assert caches.take([*ids, 1], "key bob") is caches.take([*ids, 1]) is None
    longer = caches.take([*ids, 1], "key alice")
    assert longer is not None
    assert longer.ids[0] == ids
    assert caches.take([*ids, 1], "key alice") is None  # it was handed over


@pytest.mark.parametrize(
    "config",
    [GenerationConfig(do_sample=True, num_return_sequences=5), GenerationConfig(num_beams=5)],
    ids=["replies", "beams"],
)
def test_more_than_there_are_places_is_refused(engine: Engine, config: GenerationConfig) -> None:
    """Candidates count too, although one is returned: all are decoded together."""
    for reranker in (None, RankForEver()):
        with pytest.raises(DialogueError, match="5 replies, candidates or beams .* decodes at most 4 together"):
            engine.submit(SubmittedTask([1], config, reranker=reranker).task)


LONG = GenerationConfig(max_new_tokens=100, eos_token_id=NEVER)


@pytest.fixture
def slow(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = network.hidden
    monkeypatch.setattr(network, "hidden", lambda *arguments: (time.sleep(0.02), honest(*arguments))[1])


def test_who_goes_away_leaves_no_place_behind(engine: Engine, slow: None) -> None:
    heard = [SubmittedTask([1, 2, k], LONG) for k in range(4)]
    for each in heard:
        engine.submit(each.task)
    for each in heard:
        each.events.get(timeout=WAIT_SECONDS)
        engine.cancel(each.task)
    late = SubmittedTask([1, 2, 3], GenerationConfig(max_new_tokens=2, eos_token_id=NEVER))
    engine.submit(late.task)
    assert len(late.ids()) == 2
    assert engine.running == 0


def test_a_request_for_one_reply_does_not_wait_for_those_for_several(
    network: GPT2, tokenizer: Tokenizer, slow: None
) -> None:
    """Eight streams of 16 long replies, which nobody read, kept 32 clients waiting for 41 s, all of the time."""
    long = GenerationConfig(max_new_tokens=60, eos_token_id=NEVER, do_sample=True, num_return_sequences=2)
    engine = Engine(network, tokenizer, max_sequences=4, max_waiting=40)
    several = [SubmittedTask([1, k], long) for k in range(4)]
    one = [SubmittedTask([2, k], GenerationConfig(max_new_tokens=2, eos_token_id=NEVER)) for k in range(6)]
    for each in (*several, *one):
        engine.submit(each.task)
    for each in one:
        assert len(each.ids()) == 2
    assert sum(isinstance(event, End) for each in several for event in [*each.events.queue]) == 0
    for each in several:
        engine.cancel(each.task)
    engine.close(0)


@pytest.mark.parametrize(
    ("waiting", "single", "several", "chosen"),
    [
        ([1, 1, 1], 0, 0, [0, 1, 2]),
        ([1] * 10, 0, 0, list(range(8))),
        ([4, 4, 1, 1], 0, 0, [0, 2, 3]),  # the second would take more than half
        ([4, 1], 4, 4, []),
        ([4, 1], 3, 4, [1]),
        ([4, 1, 2], 6, 0, []),  # a reply's room is left to the first request for four
        ([4, 1], 3, 0, [0, 1]),
        ([3, 1, 1], 4, 2, [1, 2]),  # more than half together: those for one go on
        ([2, 1], 7, 0, []),
        ([8, 1], 0, 0, [0]),  # one alone may take all
        ([8, 1], 1, 0, []),  # and is not kept waiting for ever
        ([4, 2, 1], 1, 2, [2]),  # nor overtaken by a smaller one
    ],
)
def test_who_is_admitted(waiting: list[int], single: int, several: int, chosen: list[int]) -> None:
    assert admissible(waiting, single, several, 8) == chosen


def test_a_full_queue_refuses(network: GPT2, tokenizer: Tokenizer, slow: None) -> None:
    engine = Engine(network, tokenizer, max_sequences=1, max_waiting=2)
    heard = [SubmittedTask([1, k], LONG) for k in range(3)]
    engine.submit(heard[0].task)
    heard[0].events.get(timeout=WAIT_SECONDS)
    for each in heard[1:]:
        engine.submit(each.task)
    with pytest.raises(Busy, match="2 requests are waiting already; retry"):
        engine.submit(SubmittedTask([1], LONG).task)
    engine.cancel(heard[1].task)  # one that waits
    time.sleep(0.2)
    engine.submit(SubmittedTask([1], LONG).task)
    engine.close(0)


def test_time_limits_hold_for_waiting_and_for_speaking(network: GPT2, tokenizer: Tokenizer, slow: None) -> None:
    engine = Engine(network, tokenizer, max_sequences=1)
    first, second = SubmittedTask([1], LONG, seconds=0.6), SubmittedTask([2], LONG, seconds=0.3)
    engine.submit(first.task)
    first.events.get(timeout=WAIT_SECONDS)
    engine.submit(second.task)
    (error,) = second.all()
    assert isinstance(error, TimedOut)
    events = first.all()
    assert events[-1] == End(0, "length")
    assert 5 < len(events) < 90
    engine.close(0)


@pytest.mark.parametrize("grace", [0.0, 30.0])
def test_closing_finishes_or_cuts(network: GPT2, tokenizer: Tokenizer, slow: None, grace: float) -> None:
    engine = Engine(network, tokenizer, max_sequences=1)
    config = GenerationConfig(max_new_tokens=20, eos_token_id=NEVER)
    first, second = SubmittedTask([1], config), SubmittedTask([2], config)
    for each in (first, second):
        engine.submit(each.task)
    said = [first.events.get(timeout=WAIT_SECONDS)]
    engine.close(grace)
    said += first.all()
    assert said[-1] == End(0, "length")
    assert (len(said) == 21) == bool(grace)
    last = second.all()[-1]
    assert last == End(0, "length") if grace else isinstance(last, Closed)
    with pytest.raises(Closed):
        engine.submit(SubmittedTask([3], config).task)


def test_white_space_that_is_held_back_is_told_when_it_is_cut(
    network: GPT2, tokenizer: Tokenizer, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(network, tokenizer, max_sequences=1)
    (space,) = tokenizer.encode(" ")
    config = GenerationConfig(do_sample=True, sequence_bias=[[[space], 1000.0]], max_new_tokens=50)
    heard, other = SubmittedTask([1], config, tries=5), SubmittedTask([2], SAMPLED)
    for each in (heard, other):
        engine.submit(each.task)
    while not engine.running:
        time.sleep(0.01)
    time.sleep(0.2)
    assert heard.events.empty()
    engine.close(0)
    *said, end = heard.all()
    assert end == End(0, "length")
    assert 0 < len(said) < 50
    assert all(isinstance(event, Token) and event.id == space for event in said)


class RankForEver:
    """A reranker that is never done."""

    def scores(self, _: Any, __: Any, stop: Stop | None = None) -> list[float]:
        assert stop is not None
        while not stop():
            time.sleep(0.01)
        raise Stopped


@pytest.mark.parametrize(
    ("config", "reranker"),
    [
        (GenerationConfig(num_beams=3, max_new_tokens=100, eos_token_id=NEVER), None),
        (GenerationConfig(do_sample=True, num_return_sequences=3, max_new_tokens=2), RankForEver()),
    ],
    ids=["beams", "candidates"],
)
def test_what_is_answered_beside_ends_when_nobody_waits_or_time_is_over(
    network: GPT2, tokenizer: Tokenizer, slow: None, config: GenerationConfig, reranker: Any
) -> None:
    """In the middle of a search, of two seconds, and in the middle of choosing; the next one can begin at once."""
    engine = Engine(network, tokenizer, max_sequences=4)
    gone = SubmittedTask([1, 2], config, reranker=reranker)
    engine.submit(gone.task)
    time.sleep(0.3)
    assert engine.waiting == 1
    engine.cancel(gone.task)
    deadline = time.monotonic() + WAIT_SECONDS
    while engine.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.waiting == 0
    assert gone.events.empty()
    late, closed = (
        SubmittedTask([1, 2], config, seconds=0.3, reranker=reranker),
        SubmittedTask([1, 2], config, reranker=reranker),
    )
    behind = SubmittedTask([1, 2], config, seconds=0.1, reranker=reranker)  # its time is over before it begins
    for each in (late, behind, closed):
        engine.submit(each.task)
    (error,) = late.all()
    assert isinstance(error, TooLong)
    (error,) = behind.all()
    assert isinstance(error, TimedOut)
    engine.close(0)
    (error,) = closed.all()
    assert isinstance(error, Closed)


def test_a_stop_string_is_sought_in_what_is_said(network: GPT2, tokenizer: Tokenizer, engine: Engine) -> None:
    """As OpenAI has it; transformers' criterion, which `generate` follows, looks into the prompt too."""
    letters = [tokenizer.encode(letter)[0] for letter in "abcdefg"]
    follows = [[[here, there], 1000.0] for here, there in pairwise(letters)]
    plain = GenerationConfig(max_new_tokens=4, eos_token_id=NEVER, sequence_bias=follows)  # "cdef", after "ab"
    over_the_edge, inside = (replace(plain, stop_strings=[text]) for text in ("bc", "de"))
    assert len(list(generate(network, letters[:2], over_the_edge, tokenizer=tokenizer))) == 1
    heard = [SubmittedTask(letters[:2], over_the_edge), SubmittedTask(letters[:2], inside)]
    for each in heard:
        engine.submit(each.task)
    assert [tokenizer.decode(each.ids()) for each in heard] == ["cdef", "cde"]
    beams = SubmittedTask(letters[:2], replace(over_the_edge, num_beams=2))
    engine.submit(beams.task)
    assert tokenizer.decode(beams.ids()) == "cdef"


def test_kept_caches_are_few(network: GPT2) -> None:
    def read(ids: list[int]) -> KVCache:
        cache = KVCache.for_model(network)
        with torch.inference_mode():
            network.hidden(torch.tensor([ids]), cache)
        return cache

    one = read(prompt_of(1, 40))
    prefixes = PrefixCache(3 * one.buffer.nbytes)
    for seed in range(1, 6):
        prefixes.put(read(prompt_of(seed, 40)))
    assert prefixes.take([*prompt_of(1, 40), 5]) is None  # the oldest went
    taken = prefixes.take([*prompt_of(4, 40), 5])
    assert taken is not None
    assert taken.ids == [prompt_of(4, 40)]
    assert prefixes.take([*prompt_of(4, 40), 5]) is None  # it was given away
    other = [*prompt_of(5, 40)[:20], 1, 2, 3]  # another conversation that began in the same way
    copy = prefixes.take(other)
    assert copy is not None
    assert copy.ids == [prompt_of(5, 40)[:20]]
    assert prefixes.take([*prompt_of(5, 40), 5]) is not None
