"""Fine-tunes with speaker tokens: the same ids and replies as transformers gives, and typed text that stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import Chat, GenerationConfig, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.cli.main import main
from dialogpt.cli.terminal import transcripts
from dialogpt.errors import DialogueError
from dialogpt.evaluate.likelihood import predict
from dialogpt.history import BOT, USER, History, Turn
from dialogpt.inspect.explain import explain
from dialogpt.ranking.scoring import score_turns
from dialogpt.serve.schemas import ChatRequest, Limits
from dialogpt.text.turn_prefix import strip_gap
from dialogpt.weights import convert, export, open_checkpoint
from tests.helpers import counted_reads, write_published

PREFIX = ("<speaker1> ", "<speaker2> ")
GREEDY = GenerationConfig(max_new_tokens=12)
TYPED = "<speaker2> is what I typed, <|endoftext|> too"
DIALOGUE = ["Hi!", "Hello, how are you?", TYPED]


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune whose tokenizer and embedding have two speaker tokens, as transformers writes it."""
    folder = tmp_path_factory.mktemp("speakers") / "speakers"
    network = write_published(
        folder, n_embd=64, n_head=2, n_positions=96, dtype=torch.float64, tie_word_embeddings=False
    )
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<speaker1>", "<speaker2>"]})
    with torch.no_grad():  # a constant would make every reply the same
        for name, parameter in network.named_parameters():
            if ".ln_" in name:
                parameter.add_(1) if name.endswith("weight") else parameter.mul_(0.1)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(source: Path, prefix: tuple[str, str] | None = PREFIX, **settings: Any) -> Chat:
    return Chat.load(open_checkpoint(source, turn_prefix=prefix), dtype="float64", generation=GREEDY, **settings)


def their_ids(folder: Path, turns: list[str], prefix: tuple[str, str] = PREFIX) -> list[int]:
    """A prompt as such fine-tunes are decoded: special tokens where they belong, typed text without any."""
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    ids: list[int] = []
    for place, text in enumerate(turns):
        own = prefix[(len(turns) - 1 - place) % 2]
        ids += tokenizer(own.rstrip()).input_ids
        ids += tokenizer(own[len(own.rstrip()) :] + text, split_special_tokens=True).input_ids
        ids.append(tokenizer.eos_token_id)
    return ids + tokenizer(prefix[1].rstrip()).input_ids


@pytest.mark.parametrize("prefix", [PREFIX, ("<speaker1>", "<speaker2>"), ("User: ", "Bot: "), ("", "<speaker2>\n")])
def test_prompts_and_replies_are_transformers(speakers: Path, prefix: tuple[str, str]) -> None:
    bot = chat(speakers, prefix)
    expected = their_ids(speakers, DIALOGUE, prefix)
    shown = explain(bot, DIALOGUE, "So.")["tokens"]
    assert [token["id"] for token in shown][: len(expected)] == expected
    (reply,) = candidates(bot, DIALOGUE, 1)
    network = GPT2LMHeadModel.from_pretrained(speakers, dtype=torch.float64).eval()
    ids = torch.tensor([expected])
    output = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    assert reply.ids == [n for n in output[0, len(expected) :].tolist() if n != bot.tokenizer.eos_id]
    assert expected != their_ids(speakers, DIALOGUE, ("", ""))  # the fault: prefixes forgotten


def test_each_speakers_text_is_without_its_own_gap(speakers: Path) -> None:
    """A user's turn came back with a space in front of it, as the gap of the bot's was taken off it."""
    bot = chat(speakers, ("<speaker1> ", "<speaker2>"))
    bot.reply(TYPED)
    assert bot.texts()[0] == TYPED


def test_a_joined_text_has_the_same_ids(speakers: Path) -> None:
    """Whoever trained on `<speaker1> hi` encoded that text whole."""
    tokenizer = GPT2Tokenizer.from_pretrained(speakers)
    joined = "<speaker1> hi, you<|endoftext|><speaker2> I'm fine<|endoftext|><speaker1> so?<|endoftext|><speaker2>"
    assert their_ids(speakers, ["hi, you", "I'm fine", "so?"]) == tokenizer(joined).input_ids


def test_a_conversation_keeps_prefixes_out_of_its_turns(speakers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bot = chat(speakers)
    reads = counted_reads(bot.model, monkeypatch)
    first = bot.reply("Hi!")
    read = sum(reads)
    prompt = bot.last_prompt
    assert prompt is not None
    assert prompt.ids == their_ids(speakers, ["Hi!"])
    bot.reply(TYPED)
    again = bot.last_prompt
    assert again is not None
    reply = [Turn(turn, turn.role) for turn in bot.history.turns][1]
    tokenizer = bot.tokenizer
    sp1, sp2 = (tokenizer.vocabulary.ids[name] for name in ("<speaker1>", "<speaker2>"))
    typed = tokenizer.encode(" " + TYPED)
    assert sp2 not in typed
    assert again.ids == [*prompt.ids, *reply, tokenizer.eos_id, sp1, *typed, tokenizer.eos_id, sp2]
    new = len(again.ids) - len(prompt.ids) - len(reply)
    assert sum(reads) - read <= new + 2 + 12  # nothing that is cached is computed again
    assert first == tokenizer.reply_text(reply)
    assert bot.undo() == TYPED
    assert bot.undo() == "Hi!"


def test_streams_show_what_whole_replies_are() -> None:
    assert strip_gap(" hi", " ") == ("hi", "")
    assert strip_gap("hi", " ") == ("hi", "")
    assert strip_gap("", " ") == ("", " ")
    assert strip_gap("\n", "\n\n") == ("", "\n")


def test_the_space_after_a_prefix_is_no_part_of_a_reply(speakers: Path) -> None:
    from dialogpt.text.stream_decoder import StreamDecoder

    tokenizer = chat(speakers).tokenizer
    ids = tokenizer.encode(" Hello  you")
    stream = StreamDecoder(tokenizer, reply=True)
    assert "".join([*map(stream.feed, ids), stream.finish()]) == tokenizer.reply_text(ids) == "Hello  you"
    assert StreamDecoder(tokenizer).feed(tokenizer.encode(" a")[0]).startswith(" ")


def test_whole_turns_are_dropped_and_a_prefix_is_never_cut() -> None:
    from dialogpt.text.turn_prefix import TurnPrefix

    prefix = TurnPrefix({USER: (90, 91), BOT: (92,)})
    history = History(99, [Turn([1, 2], USER), Turn([3], BOT), Turn([4, 5, 6, 7], USER)], prefix)
    whole = [90, 91, 1, 2, 99, 92, 3, 99, 90, 91, 4, 5, 6, 7, 99, 92]
    assert history.prompt(99, len(whole)).ids == whole
    assert history.prompt(99, len(whole) - 1).ids == whole[8:]
    cut = history.prompt(99, 7)
    assert (cut.ids, cut.cut) == ([90, 91, 5, 6, 7, 99, 92], 1)
    assert history.prompt(99, 4).ids == [90, 91, 99, 92]
    with pytest.raises(DialogueError, match="needs a turn and room for it"):
        history.prompt(99, 3)


def test_it_is_kept_by_convert_and_export(speakers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--turn-prefix", *PREFIX]
    assert main(["convert", str(speakers), str(tmp_path / "ours"), *flags]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hf"]) == 0
    capsys.readouterr()
    replies = []
    for source, more in ((speakers, flags), (tmp_path / "ours", []), (tmp_path / "back", [])):
        assert json.loads((source / "config.json").read_text()).get("turn_prefix") == (None if more else list(PREFIX))
        talk = ["--model", str(source), "--greedy", "--dtype", "float64", *more]
        assert main(["reply", "--json", *talk, "--max-new-tokens", "12", *DIALOGUE]) == 0
        replies.append(json.loads(capsys.readouterr().out)["replies"][0]["ids"])
    assert replies[0] == replies[1] == replies[2]
    talk = ["--model", str(tmp_path / "ours"), "--greedy", "--dtype", "float64", "--max-new-tokens", "12"]
    assert main(["reply", "--turn-prefix", "", "", *talk, "--json", *DIALOGUE]) == 0
    without = json.loads(capsys.readouterr().out)["replies"][0]["ids"]
    assert without == candidates(chat(speakers, None), DIALOGUE, 1)[0].ids
    assert without != replies[0]
    assert main(["info", str(tmp_path / "ours")]) == 0
    assert "'<speaker1> ' and '<speaker2> '" in capsys.readouterr().out
    theirs = GPT2Tokenizer.from_pretrained(tmp_path / "back")
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}] * 2
    ids = theirs.apply_chat_template(messages[:3], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids == their_ids(speakers, ["Hi!", "Hello.", "Hi!"])


def test_the_server_and_perplexity_know_it(speakers: Path) -> None:
    tokenizer = Tokenizer.load(open_checkpoint(speakers, turn_prefix=PREFIX))
    messages = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), DIALOGUE, strict=True)
    ]
    limits = Limits(GREEDY, 96, 12, 60, 256)
    request = ChatRequest.model_validate({"messages": messages})
    assert request.prompt(tokenizer, limits, 84).ids == their_ids(speakers, DIALOGUE)
    bot = chat(speakers)
    found = predict(bot.model, tokenizer, ["Hi!", "Hello."])
    counted = [*tokenizer.encode(" Hi!"), 0, *tokenizer.encode(" Hello."), 0]
    assert found.tokens == len(counted)  # prefixes are read, and not counted
    spoken = [Turn(tokenizer.encode_turn(text, role), role) for text, role in (("Hi!", USER), ("Hello.", BOT))]
    begins = [tokenizer.turn_prefix.of(turn.role) for turn in spoken]
    scores = score_turns(bot.model, spoken, tokenizer.eos_id, begins)
    assert sum(len(score.ids) for score in scores) == len(counted)


def test_saved_conversations_hold_no_prefix(speakers: Path, tmp_path: Path) -> None:
    bot = chat(speakers)
    bot.reply("Hi!")
    transcripts.save(str(tmp_path / "talk.json"), bot.history.turns, bot.tokenizer)
    assert json.loads((tmp_path / "talk.json").read_text())["turns"][0]["text"] == "Hi!"
    assert transcripts.load(str(tmp_path / "talk.json"), bot.tokenizer, 559) == bot.history.turns


def test_training_prepares_the_same_ids(speakers: Path) -> None:
    tokenizer = Tokenizer.load(open_checkpoint(speakers, turn_prefix=PREFIX))
    sp2 = tokenizer.vocabulary.ids["<speaker2>"]
    ids = their_ids(speakers, ["Hi!", "Hello.", "So?"])
    assert [*tokenizer.encode_dialogue(["Hi!", "Hello.", "So?"]).tolist(), sp2] == ids


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        (("<|endoftext|>", ""), "holds <|endoftext|>, which ends a turn"),
        (("[PAD] ", ""), "holds the token '\\[PAD\\]', which has no embedding row"),
        (("a " * 40, ""), "has [0-9]+ tokens; expected at most 32"),
        (("\ud800", ""), "half a surrogate pair"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(
    speakers: Path, tmp_path: Path, prefix: tuple[str, str], problem: str
) -> None:
    folder = Path(shutil.copytree(speakers, tmp_path / "copy"))
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(DialogueError, match=problem):
        Tokenizer.load(open_checkpoint(folder, turn_prefix=prefix))


def test_a_token_that_is_not_there_is_told(speakers: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer.load(open_checkpoint(speakers, turn_prefix=("<speaker3>", "<speaker2>")))
    assert "<speaker3> in a turn prefix is no token of this vocabulary" in caplog.text
    assert "is sent as text" in caplog.text


@pytest.mark.parametrize("content", ['"<a>"', '["<a>"]', "[1, 2]", '["a", "b", "c"]'])
def test_a_damaged_prefix_in_the_config_is_refused(speakers: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(speakers, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | {"turn_prefix": json.loads(content)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DialogueError, match="turn_prefix is .*, expected two texts"):
        open_checkpoint(folder)


def test_convert_refuses_before_it_writes(speakers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(speakers), str(tmp_path / "ours"), "--turn-prefix", "<|endoftext|>", "x"]) == 1
    assert "ends a turn" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_weights_convert_keeps_it_from_python(speakers: Path, tmp_path: Path) -> None:
    convert(open_checkpoint(speakers, turn_prefix=PREFIX), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    for folder in (tmp_path / "ours", tmp_path / "back"):
        assert Chat.load(folder).tokenizer.vocabulary.turn_prefix == PREFIX
