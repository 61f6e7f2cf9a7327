"""What dialogue needs beyond transformers, and settings from files: scopes, words, turns that come again, spelling."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dialogpt import Chat, DialogueError, GenerationConfig, Tokenizer, generate, generate_batch
from dialogpt.candidates import candidates, candidates_for_all
from dialogpt.cli.main import main
from dialogpt.decoding.sequence import infer_own_turns, spellings
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.sampler import next_token_scores
from dialogpt.text.normalize import normalize
from dialogpt.weights import load
from tests.helpers import random_model, seeded

END = 22


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(vocab_size=23, eos_token_id=END, n_positions=64)


def banned(seen: Seen, **values: object) -> set[int]:
    config = GenerationConfig(eos_token_id=END, **values)  # type: ignore[arg-type]
    scores = next_token_scores(torch.zeros(1, 23), config, [seen])[0]
    return set(torch.nonzero(scores.isinf()).flatten().tolist())


def test_the_bots_own_turns_are_every_other_one() -> None:
    assert infer_own_turns([1, 2, END, 3, END, 4, 5, END], [END]) == [[3]]
    assert infer_own_turns([1, END, 2, END, 3, END, 4, END, 5, END], [END]) == [[2], [4]]
    assert infer_own_turns([1, 2, END], [END]) == []
    assert infer_own_turns([END], [END]) == []
    assert infer_own_turns([1, END, 2, END, 3], [END]) == [[2]]  # a prompt without its last end


def test_other_ends_of_a_reply_end_no_turn(network: GPT2) -> None:
    """With the full stop as a further end, the person's words counted as the bot's."""
    from dialogpt.decoding.loop import Decoder

    config = GenerationConfig(eos_token_id=(END, 7), no_repeat_reply=True)
    row = Decoder(network).add([1, 7, END, 3, 7, 4, END, 5, 7, END], config)
    assert row.own_turns == [[3, 7, 4]]


def test_repetition_counts_where_it_is_told_to() -> None:
    """The sequence: the user said 1 2 3, the bot 4 5 6, the user 7 8 9, and the reply starts with 4 5."""
    seen = Seen([1, 2, 3, END, 4, 5, 6, END, 7, 8, 9, END, 4, 5], 12, [[4, 5, 6]])
    assert banned(seen, no_repeat_ngram_size=3, repetition_scope="all") == {6}
    assert banned(seen, no_repeat_ngram_size=3, repetition_scope="own") == {6}
    assert banned(seen, no_repeat_ngram_size=3, repetition_scope="reply") == set()
    begun = Seen([*seen.ids[:12], 1, 2], 12, [[4, 5, 6]])
    assert banned(begun, no_repeat_ngram_size=3, repetition_scope="all") == {3}  # the person's words
    assert banned(begun, no_repeat_ngram_size=3, repetition_scope="own") == set()
    scores = next_token_scores(
        torch.ones(1, 23), GenerationConfig(repetition_penalty=2.0, repetition_scope="own"), [seen]
    )
    assert torch.nonzero(scores[0] == 0.5).flatten().tolist() == [4, 5, 6]  # and not the end token
    nothing = Seen([1, 2, END], 3, [])
    assert banned(nothing, no_repeat_ngram_size=1, repetition_scope="reply") == set()


def test_the_last_turn_is_not_said_again_and_everything_else_can_be() -> None:
    """Only its end is banned, at the place where the reply would be the same."""
    seen = Seen([1, END, 4, 5, END, 2, END, 4, 5], 7, [[4, 5]])
    assert banned(seen, no_repeat_reply=True) == {END}
    assert banned(Seen(seen.ids[:-1], 7, [[4, 5]]), no_repeat_reply=True) == set()
    assert banned(Seen(seen.ids, 7, [[4, 5], [4]]), no_repeat_reply=True) == set()


@given(seed=st.integers(0, 50))
def test_replies_in_a_scope_never_repeat(seed: int) -> None:
    network = random_model(vocab_size=23, eos_token_id=END, n_positions=64)
    said = torch.randint(0, 22, (8,), generator=seeded(seed)).tolist()
    prompt = [1, END, *said, END, 2, END]
    config = GenerationConfig(no_repeat_ngram_size=2, repetition_scope="own", no_repeat_reply=True, max_new_tokens=20)
    reply = [step.id for step in generate(network, prompt, config)]
    pairs = [*itertools.pairwise(said), *itertools.pairwise(reply)]
    assert len(pairs) - len(set(pairs)) == len(said) - 1 - len(set(itertools.pairwise(said)))
    assert reply != said


def test_words_that_are_never_said(published: Path) -> None:
    """With a space before or without, with a capital or without; a word inside another is another word."""
    tokenizer, network = Tokenizer.load(published), load(published)
    spelled = {tokenizer.decode(ids) for ids in spellings("the", tokenizer)}
    assert spelled == {"the", " the", "The", " The"}
    prompt = [*tokenizer.encode("Hello"), tokenizer.eos_id]
    plain = GenerationConfig(do_sample=True, max_new_tokens=40, top_k=0, eos_token_id=9999)
    words = [tokenizer.decode([token]) for token in range(300, 340)]
    kept = GenerationConfig(do_sample=True, max_new_tokens=40, top_k=0, eos_token_id=9999, bad_words=tuple(words))

    def said(config: GenerationConfig) -> set[int]:
        replies = generate_batch(network, [prompt] * 20, config, generator=seeded(), tokenizer=tokenizer)
        return {token for reply in replies for token in reply[0].ids}

    assert said(plain) & set(range(300, 340))
    assert not said(kept) & set(range(300, 340))
    with pytest.raises(DialogueError, match="bad_words needs tokenizer="):
        generate(network, prompt, kept)


def test_stop_strings_need_the_tokenizer_and_can_be_said(published: Path) -> None:
    network, tokenizer = load(published), Tokenizer.load(published)
    with pytest.raises(DialogueError, match="stop_strings needs tokenizer="):
        generate(network, [1], GenerationConfig(stop_strings="x"))  # type: ignore[arg-type]
    with pytest.raises(DialogueError, match="no token completes half a surrogate pair"):
        generate(network, [1], GenerationConfig(stop_strings=("\ud800",)), tokenizer=tokenizer)
    with pytest.raises(DialogueError, match="stop_strings must be a text, or several"):
        GenerationConfig(stop_strings=("",))


def test_a_reply_ends_when_its_time_is_over(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dialogpt.decoding.sequence.time.monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    config = GenerationConfig(max_time=4.5, max_new_tokens=30, eos_token_id=99)
    (reply,) = generate_batch(network, [[1, 2]], config)[0]
    assert (len(reply.ids), reply.finish_reason) == (5, "length")


def test_max_length_counts_the_prompt(network: GPT2) -> None:
    config = GenerationConfig(max_length=7, eos_token_id=99)
    assert [len(r[0].ids) for r in generate_batch(network, [[1], [1, 2, 3], [1] * 6], config)] == [6, 4, 1]
    with pytest.raises(
        DialogueError, match="max_length must be above 7, the tokens of the prompt, to leave room for a reply, got 7"
    ):
        generate(network, [1] * 7, config)
    assert GenerationConfig(max_length=7).max_new_tokens is None
    assert GenerationConfig(max_length=7, max_new_tokens=3).reply_limit(5) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", 1.5), ("typical_p", 0), ("top_h", 0), ("epsilon_cutoff", 1.0), ("eta_cutoff", -0.1), ("max_time", 0),
        ("bad_words_ids", []), ("bad_words_ids", [[]]), ("bad_words_ids", [[-1]]), ("sequence_bias", [[[1], 2]]),
        ("sequence_bias", {(1,): "x"}), ("suppress_tokens", []), ("exponential_decay_length_penalty", [1, 0]),
        ("length_penalty", 10**400), ("forced_eos_token_id", -1), ("length_penalty", float("nan")),
        ("repetition_scope", "mine"), ("bad_words", [""]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DialogueError, match=f"{name} must be .*got"):
        GenerationConfig(**{name: value})  # type: ignore[arg-type]


def test_tokens_that_there_are_not_are_refused(network: GPT2) -> None:
    for values in ({"bad_words_ids": [[23]]}, {"sequence_bias": {(1, 99): 1.0}}, {"forced_eos_token_id": 23}):
        with pytest.raises(DialogueError, match=r"must be below 23, the vocabulary, got \d+"):
            generate(network, [1], GenerationConfig(**values))  # type: ignore[arg-type]
    with pytest.raises(
        DialogueError, match="forced_eos_token_id must be a token that suppress_tokens does not ban, got"
    ):
        GenerationConfig(forced_eos_token_id=3, suppress_tokens=(3, 4))


def test_a_checkpoints_own_settings_are_read(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--transformers-defaults begins with them, as transformers itself does."""
    folder = Path(shutil.copytree(published, tmp_path / "copy"))
    written = {"max_new_tokens": 3, "bos_token_id": 556, "transformers_version": "4.2", "use_cache": True}
    (folder / "generation_config.json").write_text(json.dumps(written))
    flags = ["reply", "--model", str(folder), "--transformers-defaults", "--json", "Hi!"]
    assert main(flags) == 0
    assert len(json.loads(capsys.readouterr().out)["replies"][0]["ids"]) <= 3
    (folder / "generation_config.json").write_text(json.dumps(written | {"guidance_scale": 2.0, "penalty_alpha": 0.6}))
    assert main(flags) == 1
    err = capsys.readouterr().err
    assert "guidance_scale must be omitted, as it is not implemented, got 2.0" in err
    assert "penalty_alpha must be omitted, as it is not implemented, got 0.6" in err
    assert main([flag for flag in flags if flag != "--transformers-defaults"]) == 0  # the preset has its own


def test_unknown_settings_of_a_checkpoint_are_told_and_ignored(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """People keep notes in the file; a setting that would change tokens is an error all the same."""
    folder = Path(shutil.copytree(published, tmp_path / "copy"))
    notes = {"max_new_tokens": 3, "chat_format": "chatml", "trust": [1], "prompt_lookup_num_tokens": 5, "low_memory": 1}
    (folder / "generation_config.json").write_text(json.dumps(notes))
    flags = ["reply", "--model", str(folder), "--transformers-defaults", "Hi!"]
    assert main(flags) == 0
    assert "not known, in transformers or here, are ignored: chat_format, trust" in caplog.text
    caplog.clear()
    neutral = {"num_beam_groups": 1, "guidance_scale": 1.0, "penalty_alpha": None, "constraints": None}
    (folder / "generation_config.json").write_text(json.dumps(neutral))
    assert main(flags) == 0
    assert "ignored" not in caplog.text
    for name, value in {"watermarking_config": {"bias": 2.0}, "token_healing": True, "dola_layers": "low"}.items():
        (folder / "generation_config.json").write_text(json.dumps(notes | {name: value}))
        assert main(flags) == 1
        assert f"{name} must be omitted, as it is not implemented, got" in capsys.readouterr().err


def test_flags_of_every_kind_are_read(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--stop-strings", '["zzz", "yyy"]', "--bad-words-ids", "[[3], [4, 5]]", "--suppress-tokens", "7,8"]
    flags += [
        "--sequence-bias",
        "[[[3], 1.5]]",
        "--exponential-decay-length-penalty",
        "[5, 1.2]",
        "--early-stopping",
        "never",
    ]
    flags += ["--num-beams", "2", "--max-length", "40", "--bad-words", "darn", "--renormalize-logits"]
    assert main(["reply", "--model", str(published), *flags, "Hi!"]) == 0
    capsys.readouterr()
    for flag, value in (("--bad-words-ids", "3,4"), ("--sequence-bias", "x"), ("--early-stopping", "soon")):
        assert main(["reply", "--model", str(published), flag, value, "Hi!"]) == 2
        assert f"{flag} must be" in capsys.readouterr().err


def test_a_chat_with_beams_says_whole_replies(published: Path) -> None:
    config = GenerationConfig(num_beams=3, max_new_tokens=8, min_new_tokens=2)
    chat = Chat.load(published, dtype="float64", generation=config)
    first = chat.reply("Hello there.")
    prompt = [*chat.tokenizer.encode("Hello there."), chat.tokenizer.eos_id]
    (best,) = generate_batch(chat.model, [prompt], config)[0]
    assert first == chat.tokenizer.decode(best.ids)
    assert chat.reply("And?")
    assert len(candidates(chat, ["Hello there."], 3)) == 3


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("Hi,how are you?", "Hi , how are you ?"),
        ("I don't know...  it's   (maybe) fine!!", "I don't know ... it's ( maybe ) fine ! !"),
        ("see https://example.org/x?y=1 now", "see __url__ now"),
        ("w/o you b/c of it", "without you because of it"),
        ("naïve café 🙂", "na ve caf"),
        ("show/hide", "show hide"),
        ("", ""),
    ],
)
def test_text_is_spelled_as_the_training_data_were(typed: str, spelled: str) -> None:
    assert normalize(typed) == spelled


@given(st.text())
def test_spelling_twice_changes_nothing_more(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert once == " ".join(once.split())


def test_what_spelling_would_leave_nothing_of_stays(published: Path) -> None:
    chat = Chat.load(published, seed=1)
    chat.normalize = True
    chat.reply("Привет")
    assert chat.texts()[0] == "Привет"


@pytest.mark.parametrize("number", [1, 3])
def test_redrawn_replies_do_not_depend_on_other_dialogues(number: int) -> None:
    """One dialogue that lacked three replies made its neighbour, which lacked one, draw three too."""
    chat = Chat.load("tiny", dtype="float64")
    chat.generation = GenerationConfig(
        do_sample=True,
        max_new_tokens=6,
        top_k=0,
        sequence_bias=[[[chat.tokenizer.eos_id], 16.0]],  # type: ignore[arg-type]
    )
    dialogues = [["Hi!"], ["How are you?"], ["What?", "Yes.", "No."], ["Ok."], ["Tell me more."], ["Bye."]]
    together = candidates_for_all(chat, dialogues, number, range(6))
    assert any(not reply.ids for replies in together for reply in replies) or number == 1
    for place, turns in enumerate(dialogues):
        (alone,) = candidates_for_all(chat, [turns], number, [place])
        assert [reply.ids for reply in alone] == [reply.ids for reply in together[place]]


def test_a_chat_normalizes_what_is_typed_if_asked(published: Path) -> None:
    chat = Chat.load(published, seed=1)
    chat.normalize = True
    chat.reply("Hi,you!")
    assert chat.texts()[0] == "Hi , you !"
