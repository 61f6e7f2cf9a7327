"""Speculative decoding: whatever the draft, tokens, scores, errors and samples equal those of plain decoding."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogpt import Chat, DialogueError, Draft, GenerationConfig, Tokenizer, generate, generate_batch
from dialogpt.candidates import candidates
from dialogpt.cli.main import main
from dialogpt.decoding.sequence import GenerationError
from dialogpt.decoding.speculative import SpeculativeDecoder
from dialogpt.decoding.stop import Stopped
from dialogpt.model import GPT2, KVCache
from dialogpt.model.precision.packed import PackedEmbedding
from dialogpt.weights import load
from tests.helpers import counted_reads, random_model, seeded
from tests.parity.test_settings import V, chosen_settings

SAMPLED = GenerationConfig(do_sample=True, top_k=10, max_new_tokens=12)


@pytest.fixture(scope="module")
def network() -> GPT2:
    """Its end token comes up now and then."""
    return random_model(vocab_size=V, eos_token_id=V - 1, n_positions=64)


def near(network: GPT2, deviation: float) -> GPT2:
    """A network that often repeats itself."""
    other = random_model(vocab_size=V, eos_token_id=V - 1, n_positions=64)
    generator = seeded(5)
    with torch.no_grad():
        for mine, parameter in zip(other.parameters(), network.parameters(), strict=True):
            mine.copy_(parameter + deviation * torch.empty_like(parameter).normal_(generator=generator))
    return other


@pytest.fixture(scope="module")
def drafts(network: GPT2) -> list[Draft]:
    """Guesses that are always right, often, hardly ever; and by a network of another shape, with fewer positions."""
    other = random_model(seed=9, vocab_size=V, eos_token_id=V - 1, n_positions=16, n_layer=1, n_embd=8, n_head=2)
    return [Draft(model) for model in (network, near(network, 0.05), near(network, 1.0), other)]


def outcome(network: GPT2, prompt: list[int], config: GenerationConfig, seed: int, draft: Draft | None) -> Any:
    """Everything that can be seen of one reply: its tokens one by one, how it ended, its score, and the next draw."""
    generator, said = seeded(seed), []
    try:
        for step in generate(network, prompt, config, generator=generator, draft=draft):
            said.append(
                (step.id, round(step.log_probability, 5), step.sequence.finish_reason, generator.get_state().sum())
            )
        ((reply,),) = generate_batch(network, [prompt], config, generator=seeded(seed), draft=draft)
        end: Any = (reply.ids, reply.finish_reason, round(reply.score, 4))
    except DialogueError as error:
        end = str(error)
    return said, end, torch.rand(1, generator=generator).item()


def test_random_settings_say_the_same_with_every_draft(network: GPT2, drafts: list[Draft]) -> None:
    counts: Counter[str] = Counter()

    @given(
        values=chosen_settings(),
        prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
        seed=st.integers(0, 99),
        draft=st.integers(0, len(drafts) - 1),
    )
    @settings(max_examples=300)
    def judge(values: dict[str, Any], prompt: list[int], seed: int, draft: int) -> None:
        values |= {"num_beams": 1, "num_return_sequences": 1}
        try:
            config = GenerationConfig(
                **{k: v for k, v in values.items() if k not in ("length_penalty", "early_stopping")}
            )
        except DialogueError:
            return
        plain = outcome(network, prompt, config, seed, None)
        assert outcome(network, prompt, config, seed, drafts[draft]) == plain
        counts["a sentence" if isinstance(plain[1], str) else plain[1][1]] += 1

    judge()
    assert counts["stop"] > 20
    assert counts["length"] > 50
    rates = [draft.accepted / draft.proposed for draft in drafts]
    assert rates[0] == 1
    assert 0.9 > rates[1] > 2 * rates[2] > 0


def test_replies_have_the_probabilities_of_the_network_alone(network: GPT2) -> None:
    """2,000 replies of three tokens, two of them drafted by a poor network, against their exact probabilities."""
    config = GenerationConfig(do_sample=True, top_k=3, max_new_tokens=3, eos_token_id=V, temperature=2.0)
    draft = Draft(near(network, 0.3))
    generator, said = seeded(1), Counter[tuple[int, ...]]()
    number = 2000
    for _ in range(number):
        said[tuple(step.id for step in generate(network, [1, 2], config, generator=generator, draft=draft))] += 1

    def continued(ids: list[int]) -> list[tuple[int, float]]:
        with torch.inference_mode():
            best = network(torch.tensor([ids]))[0, -1].float().topk(3)
        return list(zip(best.indices.tolist(), (best.values / 2.0).softmax(-1).tolist(), strict=True))

    expected = {
        (a, b, c): p * q * r
        for a, p in continued([1, 2])
        for b, q in continued([1, 2, a])
        for c, r in continued([1, 2, a, b])
    }
    assert len(expected) == 27
    assert set(said) <= set(expected)
    square = sum((said[ids] - number * p) ** 2 / (number * p) for ids, p in expected.items())
    assert square < 54.1  # a chi-square of 26 degrees of freedom is larger in one of a thousand cases
    assert 0.2 < draft.accepted / draft.proposed < 0.9


def test_right_guesses_save_passes(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """No draft precedes the first token; then 4 draft tokens and one beyond them, 6 and one, 8 and one."""
    draft = Draft(near(network, 0.0))
    reads = counted_reads(network, monkeypatch)
    config = GenerationConfig(max_new_tokens=1 + 5 + 7 + 9 + 3, eos_token_id=V)
    assert len(list(generate(network, [1, 2, 3], config, draft=draft))) == 25
    assert reads == [3, 5, 7, 9, 3]  # nothing is drafted beyond the last token
    assert (draft.proposed, draft.accepted) == (20, 20)


def test_wrong_guesses_become_few(network: GPT2) -> None:
    draft = Draft(near(network, 5.0))
    list(generate(network, [1, 2, 3], GenerationConfig(max_new_tokens=40, eos_token_id=V), draft=draft))
    assert draft.proposed - draft.accepted < 45


def test_a_draft_remembers_the_dialogue(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    model = near(network, 0.0)
    draft, cache = Draft(model), KVCache.for_model(network)
    config = GenerationConfig(max_new_tokens=4, eos_token_id=V)
    prompt = list(range(20))
    prompt += [step.id for step in generate(network, prompt, config, cache=cache, draft=draft)]
    reads = counted_reads(model, monkeypatch)
    list(generate(network, [*prompt, 7, 8, 9], config, cache=cache, draft=draft))
    assert reads[0] <= 6


@pytest.mark.parametrize(
    "settings", [GenerationConfig(max_new_tokens=40), GenerationConfig.chat()], ids=["greedy", "chat"]
)
def test_trained_networks_say_the_same(settings: GenerationConfig) -> None:
    """Tiny in float64, with tiny in int4 as its draft, which often disagrees."""
    tokenizer, model = Tokenizer.load("tiny"), load("tiny", dtype="float64")
    draft = Draft.load("tiny", tokenizer, dtype="int4")
    for seed, text in enumerate(["Hi! How are you?", "What did you do today?", "I am tired.", "Tell me a story."]):
        prompt = [*tokenizer.encode(text), tokenizer.eos_id]
        assert outcome(model, prompt, settings, seed, draft) == outcome(model, prompt, settings, seed, None)
    assert draft.proposed > 30
    assert draft.accepted > 0.1 * draft.proposed


def test_a_conversation_is_the_same_with_a_draft() -> None:
    """Turns, another draw of a reply, one that is part of no conversation, and an interruption."""
    tokenizer, model = Tokenizer.load("tiny"), load("tiny", dtype="float64")
    heard = []
    for draft in (None, Draft.load("tiny", tokenizer, dtype="int4")):
        chat = Chat(model, tokenizer, seed=3, draft=draft)
        said = [chat.reply("Hi! How are you?"), chat.retry(), chat.reply("What is your name?")]
        found = [reply.ids for reply in candidates(chat, ["Hello!"], 1)]
        stream = chat.stream("What did you do today?")
        said.append(next(stream))
        stream.close()
        said += [chat.reply("Where do you live?"), chat.retry()]
        heard.append([said, found, chat.history.turns])
    assert heard[0] == heard[1]
    assert draft is not None
    assert draft.accepted > 10


def test_errors_come_where_they_come_without_guesses(network: GPT2) -> None:
    """At the third token every candidate is banned; two tokens are generated before that."""
    config = GenerationConfig(
        do_sample=True, max_new_tokens=9, eos_token_id=V, suppress_tokens=tuple(range(2, V)), no_repeat_ngram_size=1
    )
    for draft in (None, Draft(near(network, 0.0))):
        stream = generate(network, [5], config, generator=seeded(), draft=draft)
        assert sorted(step.id for step in itertools.islice(stream, 2)) == [0, 1]
        with pytest.raises(GenerationError, match="bans all of them"):
            next(stream)


def test_a_damaged_draft_guesses_nothing(network: GPT2, caplog: pytest.LogCaptureFixture) -> None:
    damaged = near(network, 0.0)
    with torch.no_grad():
        damaged.final_norm.bias[0] = torch.nan
    draft = Draft(damaged)
    assert outcome(network, [1, 2], SAMPLED, 0, draft) == outcome(network, [1, 2], SAMPLED, 0, None)
    assert [record.message for record in caplog.records] == [
        "the draft's logits contain NaN or infinity; it proposes nothing from here on"
    ]


def test_a_damaged_network_says_so_with_a_draft_too(network: GPT2) -> None:
    damaged = near(network, 0.0)
    with torch.no_grad():
        damaged.token_embedding.weight[3, 0] = torch.inf
    for config in (SAMPLED, replace(SAMPLED, remove_invalid_values=True)):
        plain, speculative = (outcome(damaged, [1, 2], config, 0, draft) for draft in (None, Draft(network)))
        assert plain == speculative
        assert isinstance(plain[1], str) == (config is SAMPLED)


def test_decoding_is_stopped_between_any_two_tokens(network: GPT2) -> None:
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 6

    config = GenerationConfig(max_new_tokens=20, eos_token_id=V)
    with pytest.raises(Stopped):
        generate_batch(network, [[1, 2]], config, draft=Draft(network), stop=stop)
    assert len(asked) == 7


def test_what_cannot_guess_is_refused(network: GPT2, published: Path) -> None:
    with pytest.raises(DialogueError, match="the draft has 97 embedding rows and the network 31"):
        generate(network, [1], SAMPLED, draft=Draft(random_model()))
    with pytest.raises(DialogueError, match="the draft is on cpu and the network on meta"):
        Draft(network).require_fits(GPT2(network.config).to("meta"))
    with pytest.raises(DialogueError, match="has another vocabulary"):
        Draft.load("tiny", Tokenizer.load(published))
    assert isinstance(Draft.load("tiny", Tokenizer.load("tiny")).model.token_embedding, PackedEmbedding)
    decoder = SpeculativeDecoder(network, Draft(network))
    decoder.add([1], SAMPLED)
    with pytest.raises(DialogueError, match="one sequence"):
        decoder.add([2], SAMPLED)


@pytest.mark.parametrize("more", [2, -2])
@pytest.mark.parametrize("config", [SAMPLED, GenerationConfig(max_new_tokens=12, no_repeat_ngram_size=2)])
def test_a_draft_may_have_rows_for_other_tokens_at_the_end(network: GPT2, more: int, config: GenerationConfig) -> None:
    """One vocabulary extends the other by a fine-tune's special tokens; the draft was refused for its rows."""
    sizes = network.config.vocab_size
    model = GPT2(replace(network.config, vocab_size=sizes + more)).double().eval()
    state = dict(network.state_dict())
    rows = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.cat([rows, rows[:2] * 3])[: sizes + more]
    model.load_state_dict(state)
    draft = Draft(model, compared=True)
    prompt = [5, sizes - 1, sizes - 2, 7]
    for seed in range(4):
        assert outcome(network, prompt, config, seed, draft) == outcome(network, prompt, config, seed, None)
    assert draft.proposed > 0
    with pytest.raises(DialogueError, match="embedding rows and the network"):
        Draft(model).require_fits(network)


def test_several_rows_and_beams_are_decoded_without_guesses(network: GPT2, drafts: list[Draft]) -> None:
    for config in (SAMPLED, GenerationConfig(num_beams=3, max_new_tokens=5)):
        for prompts in ([[1, 2], [3]], [[1, 2]])[: 1 + (config.num_beams > 1)]:
            plain, speculative = (
                generate_batch(
                    network, prompts, config, generator=[seeded(k) for k in range(len(prompts))], draft=draft
                )
                for draft in (None, drafts[1])
            )
            assert plain == speculative


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--draft-model", "tiny", "--num-replies", "2"], 2, "one reply at a time"),
        (["--draft-model", "tiny", "--num-beams", "2", "--greedy"], 2, "one reply at a time"),
        (["--draft-model", "nowhere"], 1, "nowhere"),
    ],
)
def test_flags_that_contradict_a_draft_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    assert main(["reply", "Hi!", *flags]) == status
    assert sentence in capsys.readouterr().err


def test_the_command_line_says_the_same_with_a_draft(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for flags in ([], ["--draft-model", "tiny"]):
        assert main(["reply", "Hi!", "--seed", "5", "--dtype", "float64", *flags]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
