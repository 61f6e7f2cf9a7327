"""A conversation: what it computes, what it keeps when interrupted, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogpt import Chat, DialogueError, GenerationConfig, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.errors import SettingsError
from dialogpt.model import GPT2
from dialogpt.replies import MAX_ATTEMPTS
from dialogpt.weights import load
from tests.helpers import counted_reads, random_model, small_vocabulary

SIZES = {"vocab_size": 557, "eos_token_id": 556, "n_positions": 128}


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(**SIZES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(small_vocabulary())


@pytest.fixture
def chat(network: GPT2, tokenizer: Tokenizer) -> Chat:
    return Chat(network, tokenizer, GenerationConfig(do_sample=True, max_new_tokens=8, min_new_tokens=2), seed=1)


def test_every_change_of_settings_counts_for_the_next_reply(chat: Chat) -> None:
    """Plans were once kept, and two rerankers that hold tensors compared by them: the next reply was a RuntimeError."""

    @dataclass(frozen=True)
    class Reranked:
        bias: torch.Tensor

        def scores(self, _turns: object, replies: Sequence[Sequence[int]], _stop: object = None) -> list[float]:
            return [float(self.bias[len(reply) % 2]) for reply in replies]

    plain = chat.plan()
    assert chat.plan(3).num_replies == 3
    chat.generation = replace(chat.generation, top_k=7)
    assert chat.plan().config.top_k == 7
    for number, values in enumerate(([1.0, 0.0], [0.0, 1.0]), 2):
        chat.reranker, chat.num_candidates = Reranked(torch.tensor(values)), number
        chat.reply("Hello")
        assert (chat.plan().reranker, chat.plan().num_samples) == (chat.reranker, number)
    chat.num_candidates = 5
    assert chat.plan().num_samples == 5
    chat.reranker, chat.generation = None, replace(chat.generation, top_k=plain.config.top_k)
    assert chat.plan() == plain


def test_settings_are_resolved_when_they_are_set(chat: Chat) -> None:
    """Each reply validated all settings anew, three times."""
    chat.generation = replace(chat.generation, num_return_sequences=3, eos_token_id=(5, chat.tokenizer.eos_id))
    resolved = chat.plan().config
    chat.reply("Hello")
    assert chat.plan().config is resolved
    assert (resolved.num_return_sequences, {*resolved.end_ids}) == (1, {chat.tokenizer.eos_id, 5})


def test_tokens_of_a_reply_that_is_known_at_its_end_are_counted(chat: Chat) -> None:
    chat.generation = replace(chat.generation, do_sample=False, num_beams=2)
    chat.reply("Hello")
    assert chat.statistics.new_tokens == len(chat.history.turns[-1]) > 0


def test_a_conversation_is_pairs_of_turns(chat: Chat) -> None:
    first = chat.reply("Hello")
    second = chat.reply("And now?")
    assert chat.texts() == ["Hello", first, "And now?", second]


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), new=st.integers(1, 12))
@settings(max_examples=25)
def test_a_turn_costs_its_own_tokens_and_at_most_two_more(
    network: GPT2, tokenizer: Tokenizer, lengths: list[int], new: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        reads = counted_reads(network, monkeypatch)
        chat = Chat(network, tokenizer, GenerationConfig(do_sample=True, max_new_tokens=new), seed=0)
        chat.history_tokens = 10**6
        for place, length in enumerate(lengths):
            text = "a b c d e f g h i j k l m n o p q r s t"[: 2 * length - 1]
            own = len(tokenizer.encode(text)) + 1
            reads.clear()
            list(chat.stream(text))
            shown = chat.last_prompt
            if shown is not None and shown.first_turn == 0:
                assert reads[0] <= own + (2 if place else 0)
                assert chat.statistics.computed_tokens == reads[0]


def test_a_900_token_history_is_not_read_again(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_model(**{**SIZES, "n_positions": 1024})
    chat = Chat(network, tokenizer, GenerationConfig(max_new_tokens=20, min_new_tokens=20), history_tokens=1000)
    reads = counted_reads(network, monkeypatch)
    chat.reply("a" * 900)
    assert reads[0] > 850
    reads.clear()
    chat.reply("b c d")
    assert reads[0] <= len(tokenizer.encode("b c d")) + 1 + 2
    assert len(reads) == 20


def test_undo_retry_and_edit_read_only_what_is_new(chat: Chat, network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.reply("one")
    chat.reply("two")
    reads = counted_reads(network, monkeypatch)
    list(chat.stream_retry())
    assert reads[0] == 1
    reads.clear()
    list(chat.stream_edit("two more"))
    assert reads[0] <= len(chat.tokenizer.encode(" more")) + 2
    assert chat.undo() == "two more"
    reads.clear()
    chat.reply("three")
    assert reads[0] <= len(chat.tokenizer.encode("three")) + 1 + 2


def test_a_blank_attempt_that_ran_out_of_time_is_the_last(chat: Chat) -> None:
    """Each of the four further ones generated a token after `max_time`."""
    (space,) = chat.tokenizer.encode(" ")
    chat.generation = replace(chat.generation, min_new_tokens=None, sequence_bias=(((space,), 1000.0),))
    chat.reply("Hello")
    assert chat.statistics.new_tokens == MAX_ATTEMPTS * 8
    chat.generation = replace(chat.generation, max_time=1e-9)
    chat.reply("Hello")
    assert chat.statistics.new_tokens == 1


def test_undo_goes_back_to_what_the_reply_before_was_shown(chat: Chat) -> None:
    """`/history` marked turns by the prompt of a reply that was gone."""
    chat.history_tokens, shown = 12, []
    for text in ("Hello", "Who are you?", "Hello again, you!", "Hi"):
        chat.reply(text)
        shown.append(chat.last_prompt)
    assert shown[-1] != shown[-2]
    while chat.history.turns:
        assert chat.last_prompt == shown.pop()
        chat.undo()
    assert chat.last_prompt is None


@pytest.mark.parametrize(
    ("settings", "name"), [({"max_length": 1}, "max_length"), ({"max_new_tokens": 600}, "max_new_")]
)
def test_settings_without_room_for_a_prompt_are_refused_by_their_name(
    chat: Chat, settings: dict[str, int], name: str
) -> None:
    before = chat.generation
    with pytest.raises(SettingsError, match=f"^{name}"):
        chat.generation = GenerationConfig(**settings)
    assert chat.generation is before


def test_retry_draws_again_and_undo_takes_back(chat: Chat) -> None:
    first = chat.reply("Hello")
    replies = {first} | {chat.retry() for _ in range(4)}
    assert len(replies) > 1
    assert len(chat.texts()) == 2
    assert chat.undo() == "Hello"
    assert chat.texts() == []
    for nothing in (chat.undo, chat.retry):
        with pytest.raises(DialogueError, match="there is no exchange yet"):
            nothing()


def test_the_same_seed_gives_the_same_conversation(network: GPT2, tokenizer: Tokenizer) -> None:
    config = GenerationConfig(do_sample=True, max_new_tokens=10, eos_token_id=600)

    def talk(seed: int | None) -> list[str]:
        chat = Chat(network, tokenizer, config, seed=seed)
        return [chat.reply(text) for text in ("a", "a", "a")]

    assert talk(3) == talk(3)
    assert talk(3) != talk(4)
    assert talk(None) != talk(None)
    assert len(set(talk(3))) == 3  # seeded once, not once a turn


# ---- interruptions ----


def test_what_was_said_before_an_interruption_is_kept(chat: Chat) -> None:
    stream = chat.stream("Hello")
    shown = next(stream)
    stream.close()
    question, answer = chat.texts()
    assert question == "Hello"
    assert answer.startswith(shown)
    chat.reply("Go on")
    assert len(chat.texts()) == 4


def test_an_interruption_before_the_first_word_takes_the_turn_back(
    chat: Chat, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.reply("before")
    texts = chat.texts()

    def interrupt(*arguments: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "hidden", interrupt)
    for attempt in (lambda: chat.reply("Hello"), chat.retry, lambda: list(chat.stream_edit("other"))):
        with pytest.raises(KeyboardInterrupt):
            attempt()
        assert chat.texts() == texts
    monkeypatch.undo()
    chat.reply("after")
    assert len(chat.texts()) == 4


def test_a_stream_that_is_overtaken_counts_as_interrupted(chat: Chat) -> None:
    stream = chat.stream("one")
    shown = next(stream)
    chat.reply("two")
    assert list(stream) == []
    assert chat.texts()[0] == "one"
    assert chat.texts()[1].startswith(shown)
    assert chat.texts()[2] == "two"


def test_a_stream_that_nobody_holds_is_closed_at_once(chat: Chat) -> None:
    for _ in chat.stream("Hello"):
        break
    assert len(chat.history.turns) == 2


def test_looking_does_not_end_a_stream(chat: Chat) -> None:
    pieces = []
    for piece in chat.stream("Hello"):
        pieces.append(piece)
        assert chat.texts()[0] == "Hello"
        assert chat.last_prompt is not None
    assert chat.texts()[1] == "".join(pieces)


def test_a_stop_before_the_first_word_takes_the_turn_back(chat: Chat) -> None:
    assert list(chat.stream("Hello", stop=lambda: True)) == []
    assert (chat.texts(), chat.last_prompt) == ([], None)
    asked: list[int] = []
    pieces = list(chat.stream("Hello", stop=lambda: bool(asked.append(1)) or len(asked) > 3))
    assert chat.texts() == ["Hello", "".join(pieces)]


def test_half_a_character_is_not_kept(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that is cut inside an emoji is kept up to the character before."""
    word, *emoji = [*tokenizer.encode("a"), *tokenizer.encode("🤖")]
    say_in_turn(network, [word, *emoji[:2]], monkeypatch)
    chat.generation = GenerationConfig()
    assert list(chat.stream("Hello", stop=lambda: chat.statistics.new_tokens > 2)) == ["a"]
    assert chat.texts() == ["Hello", "a"]


def test_a_token_that_ends_one_character_and_begins_another_waits_for_it(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a token showed is lost with it, rather than half a character kept."""
    bytes_of = tokenizer.bytes_of
    monkeypatch.setattr(tokenizer, "bytes_of", lambda token: b" \xc2" if token == 7 else bytes_of(token))
    say_in_turn(network, [5, 7, 5], monkeypatch)
    chat.generation = GenerationConfig()
    assert len(list(chat.stream("Hello", stop=lambda: chat.statistics.new_tokens > 2))) == 2
    assert chat.history.turns[1] == [5]


def test_no_turn_holds_the_end_token_whatever_ends_a_reply(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.generation = GenerationConfig(eos_token_id=3)
    say_in_turn(network, [5, tokenizer.eos_id], monkeypatch)
    chat.reply("Hello")
    assert chat.history.turns[1] == [5]


def test_a_stream_that_is_never_read_says_nothing(chat: Chat) -> None:
    chat.stream("unheard").close()
    unread = chat.stream("unread")
    assert chat.texts() == []
    chat.reply("heard")
    assert chat.texts()[0] == "heard"
    assert list(unread) == []


@given(steps=st.lists(st.sampled_from(["say", "cut", "close", "retry", "undo", "edit", "bad"]), max_size=10))
@settings(max_examples=40)
def test_the_history_is_always_whole_exchanges(network: GPT2, tokenizer: Tokenizer, steps: list[str]) -> None:
    """Whatever a person does, the next prompt is the one that a fresh reading of the turns would give."""
    chat = Chat(network, tokenizer, GenerationConfig(do_sample=True, max_new_tokens=5), seed=0)
    for step in steps:
        try:
            if step == "say":
                chat.reply("Hi there")
            elif step == "cut":
                next(chat.stream("cut off"), None)
            elif step == "close":
                chat.stream("closed").close()
            elif step == "retry":
                chat.retry()
            elif step == "undo":
                chat.undo()
            elif step == "edit":
                list(chat.stream_edit("edited"))
            else:
                chat.reply("\ud800")
        except DialogueError:
            pass
        assert len(chat.history.turns) % 2 == 0
    expected = Chat(network, tokenizer, GenerationConfig(max_new_tokens=5))
    expected.restore(chat.history.turns)
    chat.generation = GenerationConfig(max_new_tokens=5)
    assert chat.reply("the end") == expected.reply("the end")


# ---- the preset, blanks, windows ----


def blank_first(network: GPT2, tokenizer: Tokenizer, blanks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network say only a space and the end for the first replies, then a word."""
    space, end, word = tokenizer.encode(" ")[0], tokenizer.eos_id, tokenizer.encode("a")[0]
    say_in_turn(network, [space, end] * blanks + [word, end], monkeypatch)


def say_in_turn(network: GPT2, plan: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network choose these tokens, one after the other."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        row = torch.full((*hidden.shape[:-1], 557), -50.0)
        row[..., plan.pop(0)] = 50.0
        return row

    monkeypatch.setattr(network, "logits", logits)


def test_a_reply_of_white_space_is_drawn_again(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.generation = GenerationConfig(do_sample=True, min_new_tokens=1)
    blank_first(network, tokenizer, 2, monkeypatch)
    assert list(chat.stream("Hello")) == ["a"]
    assert chat.texts() == ["Hello", "a"]
    blank_first(network, tokenizer, 2, monkeypatch)
    assert [tokenizer.decode(reply.ids) for reply in candidates(chat, ["Hello"], 1)] == ["a"]


def test_a_network_that_says_nothing_is_believed_in_the_end(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.generation = GenerationConfig(do_sample=True, min_new_tokens=1)
    blank_first(network, tokenizer, MAX_ATTEMPTS, monkeypatch)
    assert chat.reply("Hello") == " "
    assert chat.texts() == ["Hello", " "]


def test_a_turn_that_is_too_long_is_cut_and_the_user_is_told(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    tokens = len(chat.tokenizer.encode("x y z " * 100)) + 1
    chat.reply("x y z " * 100)
    assert f"its first {tokens - (128 - 8)} tokens were truncated" in caplog.text
    assert chat.texts()[0] == "x y z " * 100  # the whole history is kept
    chat.reply("short")
    assert len(chat.texts()) == 4
    caplog.clear()
    candidates(chat, ["x y z " * 100], 2)
    assert f"its first {tokens - (128 - 8)} tokens were truncated" in caplog.text


def test_other_end_tokens_end_a_reply_too(
    chat: Chat, network: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.generation = GenerationConfig(eos_token_id=3)
    say_in_turn(network, [5, 3], monkeypatch)
    chat.reply("Hello")
    assert chat.history.turns[1] == [5]


def test_the_preset_is_what_the_readme_says() -> None:
    assert GenerationConfig.chat() == GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        max_new_tokens=64,
        min_new_tokens=1,
        no_repeat_ngram_size=4,
        repetition_scope="own",
        no_repeat_reply=True,
    )


def test_candidates_are_not_part_of_the_conversation(chat: Chat) -> None:
    replies = candidates(chat, ["Hi", "Hello", "How are you?"], 4)
    assert len(replies) == 4
    assert chat.texts() == []


def test_settings_that_leave_no_room_are_a_sentence(chat: Chat) -> None:
    before = chat.generation
    with pytest.raises(DialogueError, match="max_new_tokens must be below the network's 128 positions"):
        chat.generation = GenerationConfig(max_new_tokens=128)  # when it is set, not at the next turn
    with pytest.raises(DialogueError, match="suppress_tokens|bad_words_ids"):
        chat.generation = GenerationConfig(bad_words_ids=((10**6,),))
    with pytest.raises(DialogueError, match="num_candidates must be a positive integer, got 0"):
        chat.num_candidates = 0
    assert chat.generation is before
    with pytest.raises(DialogueError, match="history_tokens must be a positive integer, got 0"):
        Chat(chat.model, chat.tokenizer, history_tokens=0)
    assert chat.texts() == []


def test_a_chat_is_loaded_with_the_checkpoints_own_history(published: Path, tmp_path: Path) -> None:
    chat = Chat.load(published)
    assert (chat.history_tokens, chat.generation.max_new_tokens) == (256, 64)
    assert chat.model.config == load(published).config
    assert Chat.load(published, history_tokens=40).history_tokens == 40
