"""What needs a network or another program: perplexity, calibration, FED, DialogRPT, METEOR, and whole evaluations."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogpt import Chat, DialogueError, GenerationConfig
from dialogpt.candidates import candidates
from dialogpt.cli.main import main
from dialogpt.decoding.stop import Stopped
from dialogpt.evaluate import LikelihoodSample, fed, meteor, predict
from dialogpt.evaluate.likelihood import windows_of
from dialogpt.evaluate.replies import rank
from dialogpt.evaluate.resumed import resumed
from dialogpt.evaluate.run import Evaluation, EvaluationRequest, System
from dialogpt.ranking.dialogrpt import DialogRPT, Head
from dialogpt.ranking.scoring import score, score_turns
from dialogpt.weights import export
from tests.evaluate.test_overlap import DEMO, DEMO_REFERENCES
from tests.evaluate.test_text import write
from tests.helpers import WAIT_SECONDS, environment, needs_posix, started

DIALOGUES = [["Hi! How are you?", "I'm fine, thanks. And you?", "Not so good."], ["What is your name?", "Tiny."]]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("tiny", dtype="float64", generation=GenerationConfig(max_new_tokens=12))


# ---- predictions ----


def test_windows_count_each_token_once() -> None:
    assert [(w.first, w.counted, w.end) for w in windows_of(10, 4)] == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    for length in range(2, 30):
        for size in range(2, 12):
            windows = windows_of(length, size)
            assert [n for w in windows for n in range(w.counted, w.end)] == list(range(1, length))
            assert all(0 <= w.first < w.counted and w.end - w.first <= size for w in windows)


def test_perplexity_is_transformers_loss(chat: Chat, tmp_path: Path) -> None:
    """In one window, and in the windows that are stated, with the tokens that were counted before masked."""
    from transformers import GPT2LMHeadModel

    export("tiny", tmp_path / "hf")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").double().eval()
    ids = [token for text in DIALOGUES[0] for token in (*chat.tokenizer.encode(text), chat.tokenizer.eos_id)]
    for window in (None, 8):
        nats = losses = 0.0
        for piece in windows_of(len(ids), window or 512):
            given = torch.tensor([ids[piece.first : piece.end]])
            labels = given.clone()
            labels[:, : piece.counted - piece.first] = -100
            with torch.no_grad():
                output = theirs(given, labels=labels)
            losses += float(output.loss) * (piece.end - piece.counted)
            flat, expected = output.logits[0, :-1], labels[0, 1:]
            nats += float(torch.nn.functional.cross_entropy(flat, expected, reduction="sum"))
        found = predict(chat.model, chat.tokenizer, DIALOGUES[0], window=window)
        assert found.tokens == len(ids) - 1
        assert found.nats == pytest.approx(nats, abs=1e-9)
        # Theirs computes the loss in float32, by the processor's instructions: with AVX2 it is off by 2.7e-6, with
        # AVX-512 by less than 2e-6. The line above compares the same logits in float64.
        assert found.nats / found.tokens == pytest.approx(losses / found.tokens, abs=1e-5)


def test_perplexity_is_that_of_score(chat: Chat) -> None:
    for bot_only in (False, True):
        for dialogue in DIALOGUES:
            turns = score_turns(chat.model, chat.turns_from(dialogue), chat.tokenizer.eos_id)[
                1 if bot_only else 0 :: 2 if bot_only else 1
            ]
            found = predict(chat.model, chat.tokenizer, dialogue, bot_only=bot_only)
            assert found.nats == pytest.approx(-sum(turn.total for turn in turns), abs=1e-6 * found.tokens)
            assert found.tokens == sum(len(turn.ids) for turn in turns)
            assert found.turns == len(turns)
    assert predict(chat.model, chat.tokenizer, DIALOGUES[1], bot_only=True).bytes == len("Tiny.") + 1


def test_accuracy_and_calibration_are_plain_counts(chat: Chat) -> None:
    ids = [token for text in DIALOGUES[0] for token in (*chat.tokenizer.encode(text), chat.tokenizer.eos_id)]
    with torch.no_grad():
        shares = chat.model(torch.tensor([ids]))[0].softmax(dim=-1)[:-1]
    best, which = shares.max(dim=-1)
    right = which == torch.tensor(ids[1:])
    found = predict(chat.model, chat.tokenizer, DIALOGUES[0])
    assert found.correct == int(right.sum())
    values = LikelihoodSample([found]).values()
    assert values["accuracy"] == pytest.approx(float(right.double().mean()))
    gap = 0.0
    for lower in range(15):
        inside = (best * 15 >= lower) & ((best * 15 < lower + 1) | (lower == 14))
        if inside.any():
            gap += abs(float(best[inside].mean() - right[inside].double().mean())) * int(inside.sum())
    assert values["calibration-error"] == pytest.approx(gap / len(right))
    assert values["perplexity"] == pytest.approx(math.exp(found.nats / found.tokens))
    assert values["bits-per-byte"] == pytest.approx(found.nats / found.bytes / math.log(2))


def test_nothing_to_count_is_no_figure(chat: Chat) -> None:
    found = predict(chat.model, chat.tokenizer, ["Hi!"], bot_only=True)
    assert (found.nats, found.tokens) == (0.0, 0)
    assert LikelihoodSample([found]).values() == {}
    assert predict(chat.model, chat.tokenizer, [""]).tokens == 0  # its end token alone, which nothing precedes


# ---- judgements by networks ----


def test_fed_is_the_difference_of_two_mean_losses(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fed.judge(chat.model, chat.tokenizer, ["Hi!"], "Hello there.")
    assert set(found) == set(fed.QUALITIES)
    eos, encode = chat.tokenizer.eos_id, chat.tokenizer.encode

    def loss(sentence: str) -> float:
        ids = [eos, *encode("Hi!"), eos, *encode("Hello there."), eos, *encode(sentence)]
        (scored,) = score(chat.model, [ids])
        return -scored.total / len(scored.ids)

    good, bad = fed.QUALITIES["engaging"]
    expected = sum(map(loss, bad)) / 3 - sum(map(loss, good)) / 3
    assert found["engaging"] == pytest.approx(expected, abs=1e-6)
    assert found["relevant"] == pytest.approx(sum(map(loss, fed.QUALITIES["relevant"][1])) / 3, abs=1e-6)
    monkeypatch.setattr(fed, "QUALITIES", {"one": (("Good.",), ("Bad.",))})
    assert math.isfinite(fed.judge(chat.model, chat.tokenizer, ["long " * 600], "Hello.")["one"])  # above the window


def test_dialogrpt_is_read_reply_by_reply(chat: Chat) -> None:
    head = Head("updown", 1.0, chat.model, torch.randn(1, 256, dtype=torch.float64, generator=torch.Generator()) / 100)
    rankers = DialogRPT((head,), chat.tokenizer.eos_id)
    found = rank(rankers, chat.tokenizer, ["Hi!"], "Hello.")
    encode = chat.tokenizer.encode
    assert found == {"updown": pytest.approx(float(rankers.predict(head, [encode("Hi!")], [encode("Hello.")])[0]))}
    assert 0 < rank(rankers, chat.tokenizer, ["Hi!"], "")["updown"] < 1


# ---- METEOR ----


def jar() -> Path:
    try:
        return meteor.find_jar()
    except meteor.Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.integration
def test_meteor_is_what_its_own_command_prints(tmp_path: Path) -> None:
    """The jar of pycocoevalcap, which gives 0.2714 here; the README of dstc7 prints 0.2832, by another build."""
    program = jar()
    counted = meteor.statistics(DEMO, DEMO_REFERENCES, program)
    write(tmp_path / "replies", *DEMO)
    write(tmp_path / "references", *[text for own in DEMO_REFERENCES for text in own])
    done = subprocess.run(
        ["java", "-jar", program, tmp_path / "replies", tmp_path / "references", "-r", "2", "-l", "en", "-norm"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = [float(line.split()[-1]) for line in done.stdout.splitlines() if "score:" in line]
    ours = [*map(meteor.score, counted), meteor.score(counted.sum(axis=0))]
    assert ours == pytest.approx(printed, abs=1e-12)
    assert round(ours[-1], 4) == 0.2714


@pytest.mark.integration
def test_meteor_bears_empty_replies_and_uneven_references() -> None:
    replies = ["", "a cat sat", "\u00e9t\u00e9\nx"]
    counted = meteor.statistics(replies, [["a", "b"], ["the cat sat"], ["\u00e9t\u00e9 x"]], jar())
    scores = [meteor.score(row) for row in counted]
    assert scores[0] == 0.0
    assert 0.3 < scores[1] < 1
    assert scores[2] == pytest.approx(1.0)


def test_why_there_is_no_meteor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(meteor.Unavailable, match="Java is not installed"):
        meteor.find_jar({"PATH": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "java")
    with pytest.raises(meteor.Unavailable, match="which is no file"):
        meteor.find_jar({meteor.JAR_VARIABLE: str(tmp_path / "no.jar")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(meteor.Unavailable, match=r"meteor-1\.5\.jar is not installed"):
        meteor.find_jar({})


# ---- resuming ----


def doubled(first: int, group: Any) -> list[dict[str, Any]]:
    return [{"n": first + place, "twice": 2 * item} for place, item in enumerate(group)]


def test_work_resumes_after_the_last_whole_line(tmp_path: Path) -> None:
    path, items = tmp_path / "new" / "lines.jsonl", list(range(10))
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        resumed(items, doubled, group_size=3, path=path, settings={"a": (1,)}, stop=lambda: next(asked))
    assert len(path.read_text().splitlines()) == 1 + 6
    with path.open("a") as file:
        file.write('{"n": 6, "twi')  # a kill
    computed: list[int] = []

    def counting(first: int, group: Any) -> list[dict[str, Any]]:
        computed.extend(group)
        return doubled(first, group)

    assert resumed(items, counting, group_size=3, path=path, settings={"a": (1,)}) == doubled(0, items)
    assert computed == [6, 7, 8, 9]
    assert resumed(items, counting, group_size=3, path=path, settings={"a": (1,)}) == doubled(0, items)
    assert len(computed) == 4
    with pytest.raises(DialogueError, match="computed from other dialogues or with other settings"):
        resumed(items, doubled, group_size=3, path=path, settings={"a": (2,)})
    path.write_text("notes\n")
    with pytest.raises(DialogueError, match="holds something else"):
        resumed(items, doubled, group_size=3, path=path)
    assert path.read_text() == "notes\n"


@pytest.fixture
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """To start it takes six seconds, and tests of other things need it not."""

    def missing(environment: object = None) -> Path:
        raise meteor.Unavailable("not in this test")

    monkeypatch.setattr(meteor, "find_jar", missing)


# ---- whole evaluations ----


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    lines = [json.dumps({"turns": turns}) for turns in [*DIALOGUES, ["Do you like cats?", "I love cats."]]]
    return write(tmp_path / "dialogues.jsonl", *lines)


@pytest.mark.integration
def test_a_file_of_replies_and_a_model_side_by_side(
    dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = write(tmp_path / "theirs.txt", "I am fine.", "Tiny.", "")
    out = tmp_path / "out"
    command = ["evaluate", str(dialogues), "--replies", f"human={replies}", "--system", "greedy=--greedy",
               "--system", "drawn=--temperature 0.7", "--resamples", "20", "--out", str(out)]  # fmt: skip
    assert main([*command, "--json", "--blind", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["systems"]) == ["human", "greedy", "drawn"]
    assert found["systems"]["human"]["empty"]["value"] == pytest.approx(1 / 3)
    assert "perplexity" not in found["systems"]["human"]
    assert found["systems"]["greedy"]["perplexity"]["value"] == found["systems"]["drawn"]["perplexity"]["value"] > 1
    assert json.loads((out / "results.json").read_text())["systems"] == found["systems"]
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "comparison.png", "calibration.png", "blind.jsonl", "blind-key.json", "greedy"} <= names
    before = (out / "greedy" / "replies.jsonl").read_bytes()
    assert main(command) == 0  # from what is kept
    shown = capsys.readouterr().out
    assert "| METEOR" in shown or jar() is None
    assert "paper: DialoGPT 345M" in shown
    assert (out / "greedy" / "replies.jsonl").read_bytes() == before
    chat = Chat.load("tiny", generation=GenerationConfig.chat().greedy())
    answer = json.loads(before.splitlines()[2])["reply"]
    assert answer == chat.tokenizer.decode(candidates(chat, DIALOGUES[1][:1], 1)[0].ids)
    assert main([*command, "--seed", "2"]) == 1
    assert "computed from other dialogues or with other settings" in capsys.readouterr().err


@pytest.mark.usefixtures("no_meteor")
def test_fed_and_the_windows_are_stated(dialogues: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(dialogues), "--greedy", "--fed", "tiny", "--bot", "--window", "16", "--resamples", "0"]
    assert main([*command, "--protocol", "sacrebleu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "FED:interesting" in found["systems"]["tiny"]
    assert any("no speaker names" in note for note in found["notes"])
    assert any("perplexity of the bot's turns" in note and "windows of 16" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["D", "--protocol", "bleu"], 1, "there is no protocol 'bleu'; there are paper-6k, paper-dstc, sacrebleu"),
        (["D", "--replies", "R"], 1, "has 1 replies to 3 dialogues"),
        (["D", "--replies", "R", "--replies", "R"], 1, "two systems are called 'R'"),
        (["D", "--system", "a=--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["D", "--system", "a=--replies R"], 2, "holds flags of a model"),
        (["D", "--system", "a='"], 2, "cannot be read"),
        (["D", "--blind", "3"], 2, "name their folder with --out"),
        (["D", "--rank", "updown"], 2, "is not HEAD=M"),
        (["D", "--resamples", "1"], 2, "expected 0 or 2 to 100,000"),
        (["D", "--model", "no/such/folder/here"], 1, "no/such/folder/here"),
        (["missing.jsonl"], 1, "is not there"),
        ([], 2, "name the file of DIALOGUES"),
        (["D", "--judged", "x"], 2, "omit DIALOGUES"),
        (["--judged", "x"], 1, "no blind-key.json"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(
    flags: list[str], status: int, sentence: str, dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(Path("R"), "one")
    assert main(["evaluate", *[str(dialogues) if flag == "D" else flag for flag in flags]]) == status
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.integration
@needs_posix
def test_ctrl_c_keeps_what_was_computed(tmp_path: Path) -> None:
    """And the same command goes on from there."""
    lines = [json.dumps({"turns": [f"Tell me about number {n}.", "No."]}) for n in range(400)]
    path, out = write(tmp_path / "many.jsonl", *lines), tmp_path / "out"
    command = [sys.executable, "-m", "dialogpt", "evaluate", str(path), "--system", "a=--min-new-tokens 40", "--out",
               str(out), "--batch-size", "4", "--resamples", "0"]  # fmt: skip
    kept = out / "a" / "replies.jsonl"
    with started(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not kept.exists() or len(kept.read_bytes().splitlines()) < 5:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, error
    assert "the same command resumes" in error
    assert "Traceback" not in error
    answered = [json.loads(line) for line in kept.read_bytes().splitlines()][1:]
    assert 4 <= len(answered) < 400
    assert len(answered) % 4 == 0
    assert not list(kept.parent.glob(".*.lock"))


@pytest.mark.usefixtures("no_meteor")
def test_systems_of_one_network_are_read_once(dialogues: Path, chat: Chat) -> None:
    opened = []

    def open_chat() -> Chat:
        opened.append(1)
        return chat

    systems = [System(name, None, open_chat, {}, "net") for name in ("a", "b")]
    found = Evaluation(EvaluationRequest(dialogues, resamples=0), systems).run()
    assert found.comparison["a"]["perplexity"] == found.comparison["b"]["perplexity"]
    assert found.replies["a"] == found.replies["b"]  # seeded
    assert len(opened) == 3  # for the replies of each, and once for predictions
