"""Choosing among candidates: MMI and DialogRPT against plain computations, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2ForSequenceClassification

from dialogpt import Chat, DialogueError, GenerationConfig, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.cli.main import main
from dialogpt.decoding.stop import Stopped
from dialogpt.model import GPT2
from dialogpt.ranking.dialogrpt import DialogRPT
from dialogpt.ranking.mmi import MMI
from dialogpt.weights import CheckpointError, convert, export, load, open_checkpoint
from tests.helpers import write_published

TURNS = ["Hello there.", "Hi! What is it?", "I am going to the sea."]
REPLIES = ["Good.", "What for?", "I do not like the sea, it is cold and wet.", "", "the the the"]


@pytest.fixture(scope="module")
def reverse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reverse") / "reverse"
    write_published(folder, n_positions=128, seed=7)
    return folder


@pytest.fixture(scope="module")
def ranker(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DialogRPT: a classifier of one label with random weights."""
    folder = tmp_path_factory.mktemp("ranker") / "updown"
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    network = GPT2ForSequenceClassification(TheirConfig.from_pretrained(published, num_labels=1))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    network.save_pretrained(folder)
    return folder


def test_mmi_is_the_probability_of_what_was_said_given_the_reply(published: Path, reverse: Path) -> None:
    """Against the formula: reply, end token, source, end token; the last two are scored."""
    tokenizer, model = Tokenizer.load(published), load(reverse, dtype="float64")
    turns, replies = [tokenizer.encode(t) for t in TURNS], [tokenizer.encode(r) for r in REPLIES]
    end = tokenizer.eos_id
    for shown, said in ((1, turns[-1:]), (2, turns[:0:-1]), (None, turns[::-1])):
        source = [token for turn in said for token in (*turn, end)]
        for micro_batch in (1, 2, 100):
            found = MMI(model, end, shown, micro_batch).scores(turns, replies)
            for reply, score in zip(replies, found, strict=True):
                ids = [*reply, end, *source]
                with torch.no_grad():
                    logs = model(torch.tensor([ids]))[0].float().log_softmax(dim=-1)
                expected = sum(float(logs[place - 1, ids[place]]) for place in range(len(reply) + 1, len(ids)))
                assert score == pytest.approx(expected, abs=1e-4)


def test_what_was_said_is_cut_alike_for_all_candidates(published: Path, reverse: Path) -> None:
    """A long reply left less of it to be summed, and always won."""
    tokenizer, model = Tokenizer.load(published), load(reverse, dtype="float64")
    turn = torch.randint(0, 500, (121,), generator=torch.Generator().manual_seed(0)).tolist()
    reply = torch.randint(0, 500, (127,), generator=torch.Generator().manual_seed(1)).tolist()
    for longest in (20, 60, 127):
        scores = MMI(model, tokenizer.eos_id).scores([turn], [reply[:3], reply[:longest]])
        kept = turn[: 128 - min(longest + 1, 127)]
        ids = [*reply[:3], tokenizer.eos_id, *kept]
        with torch.no_grad():
            logs = model(torch.tensor([ids]))[0].float().log_softmax(dim=-1)
        assert scores[0] == pytest.approx(sum(float(logs[p - 1, ids[p]]) for p in range(4, len(ids))), abs=1e-3)
    assert MMI(model, tokenizer.eos_id).scores([turn], []) == []


def test_a_chat_with_candidates_refuses_settings_that_give_one(
    published: Path, reverse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(published), "--rerank", "mmi", "--reverse-model", str(reverse)]
    for more in (["--greedy"], ["--num-beams", "3"]):
        assert main(["chat", *flags, *more]) == 2
        assert "--num-candidates must be" in capsys.readouterr().err


def test_mmi_reads_no_more_at_once_than_a_micro_batch(
    published: Path, reverse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is that of a micro-batch, however many candidates there are."""
    tokenizer = Tokenizer.load(published)
    mmi = MMI.load(reverse, tokenizer, micro_batch=4)
    rows = []
    honest = GPT2.hidden
    monkeypatch.setattr(
        GPT2, "hidden", lambda self, ids, *rest, **more: (rows.append(len(ids)), honest(self, ids, *rest, **more))[1]
    )
    mmi.scores([tokenizer.encode("Hi!")], [tokenizer.encode(f"reply {n}") for n in range(50)])
    assert max(rows) == 4
    assert sum(rows) == 50


def test_dialogrpt_is_transformers_classifier(published: Path, ranker: Path) -> None:
    """Turns with their ends, the reply without; the weighted parts of DialogRPT's ensemble."""
    tokenizer = Tokenizer.load(published)
    theirs = GPT2ForSequenceClassification.from_pretrained(ranker).eval()
    turns, replies = [tokenizer.encode(t) for t in TURNS], [tokenizer.encode(r) for r in REPLIES if r]
    expected = []
    for reply in replies:
        ids = [token for turn in turns for token in (*turn, tokenizer.eos_id)] + reply
        with torch.no_grad():
            expected.append(float(torch.sigmoid(theirs(torch.tensor([ids])).logits)[0, 0]))
    one = DialogRPT.load([("updown", 1.0, ranker)], tokenizer)
    assert one.scores(turns, replies) == pytest.approx(expected, abs=1e-5)
    several = DialogRPT.load(
        [
            ("human_vs_rand", 0.5, ranker),
            ("human_vs_machine", 0.5, ranker),
            ("updown", 1.0, ranker),
            ("width", -0.5, ranker),
        ],
        tokenizer,
    )
    assert several.scores(turns, replies) == pytest.approx([p * (p - 0.5 * p) for p in expected], abs=1e-5)


def test_a_chat_says_the_best_candidate(published: Path, reverse: Path) -> None:
    chat = Chat.load(published, seed=1, generation=GenerationConfig(do_sample=True, max_new_tokens=8, min_new_tokens=2))
    chat.reranker, chat.num_candidates = MMI.load(reverse, chat.tokenizer), 6
    replies = candidates(chat, ["Hello there."], 6)
    assert [reply.rank for reply in replies] == sorted((reply.rank or 0 for reply in replies), reverse=True)
    again = Chat.load(published, seed=1, generation=chat.generation)
    again.reranker, again.num_candidates = chat.reranker, 6
    assert again.reply("Hello there.") == chat.tokenizer.decode(replies[0].ids)
    assert again.reply("And then?")
    assert len(again.history.turns) == 4


def test_a_choice_among_candidates_can_be_stopped(published: Path, reverse: Path) -> None:
    """Ctrl-C took effect only after all candidates; now it does before the next token, and the turn is removed."""
    chat = Chat.load(
        published, seed=1, generation=GenerationConfig(do_sample=True, max_new_tokens=30, eos_token_id=9999)
    )
    chat.reranker = MMI.load(reverse, chat.tokenizer)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert list(chat.stream("Hello there.", stop)) == []
    assert len(asked) == 4
    assert chat.texts() == []
    assert chat.reply("Hello there.")


def test_judging_can_be_stopped_between_passes(published: Path, reverse: Path, ranker: Path) -> None:
    tokenizer = Tokenizer.load(published)
    turns, replies = [tokenizer.encode(t) for t in TURNS], [tokenizer.encode(r) for r in REPLIES]
    judges = MMI.load(reverse, tokenizer, micro_batch=2), DialogRPT.load([("updown", 1.0, ranker)], tokenizer)
    for judge in (judges[0], replace(judges[1], micro_batch=2)):
        asked: list[bool] = []

        def stop(asked: list[bool] = asked) -> bool:
            asked.append(True)
            return len(asked) > 2

        with pytest.raises(Stopped):
            judge.scores(turns, replies, stop)
        assert len(asked) == 3
        assert len(judge.scores(turns, replies, lambda: False)) == len(replies)


def test_commands_rerank(published: Path, reverse: Path, ranker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(published), "--seed", "2", "--num-candidates", "5", "--max-new-tokens", "6"]
    assert (
        main(
            ["reply", *flags, "--rerank", "mmi", "--reverse-model", str(reverse), "--num-replies", "5", "--json", "Hi!"]
        )
        == 0
    )
    replies = json.loads(capsys.readouterr().out)["replies"]
    assert len(replies) == 5
    assert replies[0]["rank"] == max(reply["rank"] for reply in replies)
    assert main(["reply", *flags, "--rerank", f"updown={ranker},width*-0.5={ranker}", "Hi!"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--num-candidates", "0"], 2, "an integer from 1"),
        (["--num-candidates", "4"], 2, "--num-candidates goes with --rerank"),
        (["--reverse-model", "x"], 2, "--reverse-model goes with --rerank"),
        (["--rerank", "mmi"], 2, "--rerank mmi needs --reverse-model"),
        (["--rerank", "updown"], 2, "is neither mmi nor NAME=M"),
        (["--rerank", "updown*x=tiny"], 2, "is neither mmi nor NAME=M"),
        (["--rerank", "niceness=tiny"], 1, "there is no ranking head 'niceness'; there are human_vs_rand"),
        (["--rerank", "updown*nan=tiny"], 1, "the weight of 'updown' is nan; expected a number"),
        (["--rerank", "updown=tiny,updown=tiny"], 1, "'updown' is named twice"),
        (["--rerank", "human_vs_rand*0=tiny"], 1, "must have a sum above 0"),
        (["--rerank", "updown=tiny"], 1, "has another vocabulary than the model that it is to help"),
        (["--rerank", "mmi", "--reverse-model", "tiny"], 1, "tiny is a forward model"),
        (
            ["--rerank", "mmi", "--reverse-model", "tiny", "--greedy"],
            2,
            "--num-candidates must be 1 without --do-sample",
        ),
    ],
)
def test_what_cannot_be_reranked_is_a_sentence(
    published: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    assert main(["reply", "--model", str(published), "Hi!", *flags]) == status
    assert sentence in capsys.readouterr().err


def test_a_reverse_model_of_another_vocabulary_is_refused(published: Path, tmp_path: Path) -> None:
    write_published(tmp_path, merges=100)
    with pytest.raises(DialogueError, match="has another vocabulary than the model that it is to help"):
        MMI.load(tmp_path, Tokenizer.load(published))


def test_a_head_that_is_none_is_refused(published: Path) -> None:
    with pytest.raises(CheckpointError, match="has no ranking head"):
        DialogRPT.load([("updown", 1.0, published)], Tokenizer.load(published))
    with pytest.raises(DialogueError, match="num_candidates must be a positive integer, got 0"):
        Chat(load(published), Tokenizer.load(published), num_candidates=0)


# ---- which models are reverse models ----


def marked(folder: Path, source: Path, mark: object) -> Path:
    """A copy of a checkpoint whose config.json declares whether it is a reverse model."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "reverse": mark}))
    return folder


def test_a_forward_model_is_refused_as_a_reverse_model(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ranked without a word, and chose the replies that answer least."""
    forward = marked(tmp_path / "forward", published, False)
    flags = ["reply", "--model", str(published), "--rerank", "mmi", "--reverse-model", str(forward), "Hi!"]
    assert main(flags) == 1
    assert "forward is a forward model, which was trained to answer; expected a reverse" in capsys.readouterr().err


def test_a_reverse_model_needs_no_notice_and_one_without_a_mark_gets_one(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.load(published)
    MMI.load(marked(tmp_path / "marked", published, True), tokenizer)
    assert caplog.text == ""
    MMI.load(published, tokenizer)
    assert f"{published.name} does not say whether it is a reverse model" in caplog.text


def test_a_reverse_model_that_is_to_talk_gets_a_notice(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Chat.load(marked(tmp_path / "turned", published, True))
    assert "turned is a reverse model: it ranks replies" in caplog.text


@pytest.mark.parametrize("mark", [True, False])
def test_the_mark_survives_conversions(mark: bool, published: Path, tmp_path: Path) -> None:
    source = marked(tmp_path / "marked", published, mark)
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    assert [open_checkpoint(tmp_path / name).reverse for name in ("marked", "ours", "theirs")] == [mark] * 3


def test_a_mark_that_is_none_is_a_sentence(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="reverse is 'yes', expected true or false"):
        open_checkpoint(marked(tmp_path / "odd", published, "yes"))
