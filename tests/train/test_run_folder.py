"""Runs: interrupted and resumed to the bit, killed without loss, stopped by validation, and sentences for the rest."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogpt import Chat, Tokenizer
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.files.disk import lock
from dialogpt.model import GPT2, GPT2Config
from dialogpt.train import trainer as trainer_module
from dialogpt.train.data.batches import Batches
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import prepare
from dialogpt.train.distributed import Processes
from dialogpt.train.listener import Listener
from dialogpt.train.loop import begin, fit, resume
from dialogpt.train.run_folder import LOCK, Run
from dialogpt.train.settings import TrainConfig
from dialogpt.train.trainer import Trainer
from dialogpt.weights import CheckpointError, export, formats, load, open_checkpoint
from dialogpt.weights.folders import pointed_folder
from tests.helpers import environment, needs_fork, needs_links, small_vocabulary
from tests.train.runs import ALONE, a_long_request, a_request, after, measured, train, weights_of, write_dialogues

NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = weights_of(first), weights_of(second)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def name_of(path: Path) -> str:
    """The name of the step that `last` or `best` stands for."""
    folder = pointed_folder(path)
    assert folder is not None
    return folder.name


def names_in(path: Path) -> set[str]:
    """The files of the checkpoint that `last` or `best` stands for."""
    return {file.name for file in (path.parent / name_of(path)).iterdir()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    """With dropout, a schedule, accumulation and validation; left once on a saved step and once between two."""
    request = a_request(tmp_path, optimizer=optimizer, accumulation=2)
    train(tmp_path / "whole", request)
    train(tmp_path / "parts", request, stop=after(3))
    train(tmp_path / "parts", None, stop=after(4))
    trainer = train(tmp_path / "parts", None)
    assert trainer.progress.step == 12
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_the_test_above_sees_a_state_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = a_request(tmp_path)
    train(tmp_path / "whole", request)
    train(tmp_path / "parts", request, stop=after(5))
    monkeypatch.setattr("dialogpt.train.run_folder.read_safetensors", lambda path: {})  # the optimizer begins anew
    monkeypatch.setattr(Trainer, "_check", lambda *_: None)
    train(tmp_path / "parts", None)
    assert measured(tmp_path / "parts")[:6] == measured(tmp_path / "whole")[:6]
    assert not same_weights(tmp_path / "parts", tmp_path / "whole")


@needs_fork
def test_a_process_that_is_killed_loses_no_completed_checkpoint(tmp_path: Path) -> None:
    """24 kills at random moments, each followed by a look at what is left; then the same losses as never killed."""
    train(tmp_path / "whole", a_long_request(tmp_path))
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "24"],
        capture_output=True,
        text=True,
        cwd=script.parents[2],
        env=environment(OMP_NUM_THREADS=str(torch.get_num_threads())),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == 24
    found = [step for both in report["steps"] for step in both]
    assert found == sorted(found)  # no kill took a checkpoint away
    assert len(set(found)) > 5  # they hit different moments of the run
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    links = [name_of(tmp_path / name / "best") for name in ("whole", "killed")]
    assert links[0] == links[1]
    assert left == {
        "run.json",
        "data",
        "metrics.jsonl",
        "last",
        "best",
        "step-00000300",
        "samples.json",
        "samples.md",
        links[0],
    }


def test_checkpoints_are_of_use_at_once(tmp_path: Path) -> None:
    """Chat, export and fine-tuning take what a run saved; `best` keeps what they need and no more."""
    train(tmp_path / "run", a_request(tmp_path, steps=8, lr=0.3, final_lr=1.0, valid_every=1, save_every=8))
    best, last = (tmp_path / "run" / name for name in ("best", "last"))
    assert Chat.load(best, seed=0).reply("hi") is not None
    export(last, tmp_path / "exported")
    request = a_request(tmp_path, steps=2)
    train(tmp_path / "further", type(request)(**{**vars(request), "source": str(last)}))
    assert pointed_folder(best) != pointed_folder(last)
    assert {"training.json", "training.safetensors"} <= names_in(last)
    assert names_in(best) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
    }
    assert open_checkpoint(tmp_path / "further" / "last").origin().name.startswith("model")


def test_last_and_best_are_sources_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are files, as links need a right on Windows; each command opens the step that they name."""
    request = a_request(tmp_path, steps=2)
    train(tmp_path / "run", request)
    last = tmp_path / "run" / "last"
    assert (last.read_text(), last.is_symlink()) == ("step-00000002\n", False)
    assert open_checkpoint(str(last)).path == (tmp_path / "run" / "step-00000002").resolve()
    for command in (["info", str(last)], ["convert", str(last), str(tmp_path / "copy")],
                    ["reply", "--model", str(last), "--greedy", "hi"], ["reply", "--model", str(last), "--draft-model",
                    str(last), "hi"], ["train", request.data[0], "--model", str(last), "--out", str(tmp_path / "next"),
                    "--steps", "1", "--batch-tokens", "64", "--dtype", "float32"]):  # fmt: skip
        assert main(command) == 0, capsys.readouterr().err
    assert Tokenizer.load(last).eos_id == 556


@needs_links
def test_a_run_with_links_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    train(tmp_path / "run", a_request(tmp_path), stop=after(5))
    for name in ("last", "best"):
        path = tmp_path / "run" / name
        step = name_of(path)
        path.unlink()
        path.symlink_to(step)
        assert open_checkpoint(path).path.resolve().name == name_of(path) == step
    assert train(tmp_path / "run", None).progress.step == 12
    assert [(tmp_path / "run" / name).is_symlink() for name in ("last", "best")] == [False, False]
    assert name_of(tmp_path / "run" / "last") == "step-00000012"


def test_a_name_of_a_step_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "last").write_text("step-00000007\n")
    with pytest.raises(CheckpointError, match="step-00000007, which is not in the same folder; pass another"):
        open_checkpoint(tmp_path / "last")
    for content in ("../step-00000007", "step-00000007/../..", "notes", "step-7" + " " * 300):
        (tmp_path / "last").write_text(content)
        with pytest.raises(CheckpointError, match="is no checkpoint's weights; pass the folder"):
            open_checkpoint(tmp_path / "last")


def test_a_checkpoint_that_a_chat_has_open_stays_until_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows neither moves nor removes what is mapped; nothing of it goes, and training goes on."""
    honest = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "step-00000003" and not (tmp_path / "run" / "step-00000009").exists():
            raise PermissionError(errno.EACCES, "Access is denied", str(self))
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    train(tmp_path / "run", a_request(tmp_path, valid_every=100))
    assert caplog.text.count("an old checkpoint in") == 1
    assert "cannot be removed: Access is denied" in caplog.text
    assert [path.name for path in (tmp_path / "run").glob("*step*")] == ["step-00000012"]


def test_what_was_left_of_an_old_checkpoint_is_removed_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that had its hidden name already stayed until the run was resumed."""
    honest, refusals = shutil.rmtree, [PermissionError(errno.EACCES, "Access is denied")]

    def remove(path: Path, **options: Any) -> None:
        if path.name.startswith(".step-00000003.partial-") and refusals:
            raise refusals.pop()
        honest(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    train(tmp_path / "run", a_request(tmp_path, valid_every=100))
    assert caplog.text.count("cannot be removed: Access is denied") == 1
    assert [path.name for path in (tmp_path / "run").glob("*step*")] == ["step-00000012"]


def test_the_lock_of_a_checkpoint_whose_process_was_killed_is_removed(tmp_path: Path) -> None:
    """Each checkpoint is locked while it is written; a kill at that moment left the file in the run for ever."""
    train(tmp_path / "run", a_request(tmp_path))
    left = tmp_path / "run" / ".step-00000048.lock"
    left.touch()
    with resume(tmp_path / "run", ALONE):
        assert not left.exists()
        assert (tmp_path / "run" / LOCK).exists()


def test_a_checkpoint_whose_name_cannot_be_noted_is_said_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message claimed that nothing was saved."""
    honest = Run._point

    def refuse(self: Run, link: str, name: str) -> None:
        if name == "step-00000003":
            raise PermissionError(errno.EACCES, "Access is denied")
        honest(self, link, name)

    monkeypatch.setattr(Run, "_point", refuse)
    with pytest.raises(CheckpointError, match=r"step 3 is saved as .*step-00000003, but .*last cannot be written: Acc"):
        train(tmp_path / "run", a_request(tmp_path))
    monkeypatch.undo()
    with resume(tmp_path / "run", ALONE) as run:
        assert run.checkpoints()[-1].name == "step-00000003"


def test_a_new_run_without_a_checkpoint_is_removed_before_its_lock_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another --resume could take it in between, and lost its folder."""
    left: list[list[str]] = []

    def held(path: Path) -> Any:
        release = lock(path)

        def note_and_release() -> None:
            left.append([entry.name for entry in path.parent.iterdir()])
            release()

        return note_and_release

    monkeypatch.setattr("dialogpt.train.run_folder.lock", held)

    def fail() -> None:
        with Run.begin(tmp_path / "run", {}) as run:
            run.lock()
            (run.folder / "data").mkdir()
            (run.folder / "data" / "tokens.bin").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert left == [[".lock"]]
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_locked_is_a_sentence(tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run", {})
    (tmp_path / "run" / ".lock").mkdir()
    with pytest.raises(DialogueError, match=r"\.lock cannot be locked: "):
        run.lock()


def test_float64_on_a_mac_s_gpu_is_refused_by_name(tmp_path: Path) -> None:
    request = a_request(tmp_path, dtype="float64")
    with pytest.raises(CheckpointError, match="the dtype float64 does not exist on the device mps; choose float32"):
        load(tmp_path / "model", dtype="float64", device="mps")
    mac = Processes(0, 1, torch.device("mps"))
    with pytest.raises(CheckpointError, match="float64 does not exist on the device mps"), \
            begin(tmp_path / "run", request, mac) as run:  # fmt: skip
        fit(run, mac)
    assert not (tmp_path / "run").exists()


def test_training_lowers_the_loss_and_best_is_the_best(tmp_path: Path) -> None:
    train(tmp_path / "run", a_request(tmp_path, steps=60, lr=5e-3, valid_every=10, save_every=60))
    valid = {line["step"]: line["valid_loss"] for line in measured(tmp_path / "run") if "valid_loss" in line}
    assert min(valid.values()) < 0.8 * valid[10]
    assert name_of(tmp_path / "run" / "best") == f"step-{min(valid, key=valid.__getitem__):08d}"


def test_one_batch_is_learned_by_heart(tmp_path: Path) -> None:
    path = write_dialogues(tmp_path / "few.jsonl", 4)
    data = prepare([path], tmp_path / "data", small_vocabulary(), Format(window=64))
    batches = Batches(data, window=64, batch_tokens=4096, first_is_target=False, seed=0)
    assert batches.per_epoch == 1
    config = TrainConfig(steps=20, lr=0.03, warmup_steps=2, weight_decay=0.0, optimizer="muon", dtype="float32")
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, **NO_DROPOUT}
    model = GPT2(GPT2Config(vocab_size=557, eos_token_id=556, **sizes))
    trainer = Trainer(model, batches, None, config, ALONE)
    losses = [trainer.step().loss for _ in range(20)]
    assert losses[-1] < 0.1 < 3 < losses[0]


def test_validation_stops_a_run_that_gets_worse(tmp_path: Path) -> None:
    request = a_request(tmp_path, steps=400, lr=0.03, valid_every=5, save_every=1000, patience=2)
    trainer = train(tmp_path / "run", request)
    valid = [line["valid_loss"] for line in measured(tmp_path / "run") if "valid_loss" in line]
    assert trainer.progress.step < 400
    assert valid[-3] == min(valid) < min(valid[-2:])
    assert train(tmp_path / "run", None).progress.step == trainer.progress.step  # it stays stopped


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damage(Listener):
        def stepped(self, trainer: Any, measured: Any) -> None:
            if measured.step == 7:
                with torch.no_grad():
                    trainer.model.final_norm.bias[3] = float("nan")

    with pytest.raises(DialogueError, match=r"step 8: the loss is nan .* Try a lower --lr"):
        train(tmp_path / "run", a_request(tmp_path), listener=Damage())
    assert name_of(tmp_path / "run" / "last") == "step-00000006"
    whole = train(tmp_path / "run", None)
    assert whole.progress.step == 12


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = formats.write_safetensors

    def full(path: Path, *arguments: Any) -> None:
        if "step-00000006" in str(path) and path.name == "training.safetensors":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, *arguments)

    monkeypatch.setattr("dialogpt.train.run_folder.write_safetensors", full)
    request = a_request(tmp_path, valid_every=100)
    with pytest.raises(
        CheckpointError, match=r"step 6 cannot be saved, earlier checkpoints are intact: .*No space left"
    ):
        train(tmp_path / "run", request)
    assert sorted(path.name for path in (tmp_path / "run").glob("*step*")) == ["step-00000003"]
    monkeypatch.undo()
    train(tmp_path / "run", None)
    train(tmp_path / "whole", request)
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="holds no run to resume"):
        train(tmp_path / "nothing", None)
    request = a_request(tmp_path)
    train(tmp_path / "run", request, stop=after(1))
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume"):
        train(tmp_path / "run", request)
    with resume(tmp_path / "run", ALONE), pytest.raises(DialogueError, match="being trained by another process"):
        resume(tmp_path / "run", ALONE)


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="exists already"):
        train(tmp_path / "mine", a_request(tmp_path))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_auto_is_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert trainer_module.multiply_dtype("auto", torch.device("cpu")) == dtype


def test_bfloat16_products_stay_near_float32(tmp_path: Path) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        train(tmp_path / dtype, a_request(tmp_path, dtype=dtype, steps=6))
        losses[dtype] = [line["loss"] for line in measured(tmp_path / dtype) if "loss" in line]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert load(tmp_path / "bfloat16" / "last").final_norm.weight.dtype == torch.float32


@pytest.mark.parametrize("place", ["after the name", "before best"])
def test_a_kill_between_a_checkpoint_and_its_links_loses_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The best loss was in the checkpoint and `best` still pointed to the one before, for ever: none was better."""
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.5])  # at the steps 4, 8, and, after the kill at 8, 12
    monkeypatch.setattr(Trainer, "validate", lambda self: next(losses))
    original = Run._point

    def killed(self: Run, link: str, name: str) -> None:
        if name == "step-00000008" and (place == "after the name" or link == "best"):
            raise KeyboardInterrupt
        original(self, link, name)

    monkeypatch.setattr(Run, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", a_request(tmp_path, save_every=4))
    monkeypatch.setattr(Run, "_point", original)
    train(tmp_path / "run", None)
    assert name_of(tmp_path / "run" / "best") == "step-00000008"
    assert load(tmp_path / "run" / "best")


@pytest.mark.parametrize("step", [8, 9])
def test_weights_that_a_step_has_broken_replace_no_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Only the next step sees what a step has done; its weights were saved and the checkpoint before removed."""
    honest = Trainer.step

    def breaking(self: Trainer) -> Any:
        measured = honest(self)
        if measured.step == step:  # 8 is validated, 9 is not
            with torch.no_grad():
                self.model.final_norm.bias[3] = float("nan")
        return measured

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(DialogueError, match=rf"step {step}: .*loss .*nan; training stops"):
        train(tmp_path / "run", a_request(tmp_path, save_every=1))
    monkeypatch.undo()
    assert name_of(tmp_path / "run" / "last") == f"step-{step - 1:08d}"
    assert all(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert train(tmp_path / "run", None).progress.step == 12


def test_mistakes_are_found_before_anything_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing may take hours, and a new run that fails leaves nothing: a slip in --valid cost them all."""
    monkeypatch.setattr("dialogpt.train.loop.prepare", lambda *_, **__: pytest.fail("prepared"))
    request = a_request(tmp_path)
    (tmp_path / "notes.dat").write_text("not a dialogue\n")
    for changed in (
        replace(request, valid=("nowhere.jsonl",)),
        replace(request, valid=(str(tmp_path / "notes.dat"),)),
        replace(request, config=replace(request.config, batch_tokens=63)),
    ):
        with pytest.raises(DialogueError, match="nowhere.jsonl is not there|none of the kinds|a batch of 63"):
            train(tmp_path / "run", changed)
        assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    train(tmp_path / "run", a_request(tmp_path), stop=after(2))
    shutil.rmtree(tmp_path / "model")
    assert train(tmp_path / "run", None).progress.step == 12


def test_settings_of_the_source_are_kept(tmp_path: Path) -> None:
    request = a_request(tmp_path, steps=1)
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.7}')
    train(tmp_path / "run", request)
    assert open_checkpoint(tmp_path / "run" / "last").generation_config == {"temperature": 0.7}


@pytest.mark.parametrize("reverse", [True, False])
def test_a_run_marks_its_checkpoints_with_their_direction(
    reverse: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = a_request(tmp_path, steps=1, reverse=reverse)
    train(tmp_path / "run", request)
    assert open_checkpoint(tmp_path / "run").reverse is reverse
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"direction      {'reverse' if reverse else 'forward'}: " in capsys.readouterr().out


def test_weights_of_zero_leave_no_empty_batch(tmp_path: Path) -> None:
    """A piece of a long dialogue in which nothing counts was a batch of weight 0, and a division by it."""
    request = a_request(tmp_path, steps=4, batch_tokens=64, accumulation=1)
    long = {"turns": [f"turn number {n} of a long dialogue" for n in range(12)], "weights": [0] * 11 + [1]}
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(long) + "\n")
    train(tmp_path / "run", request)
    (tmp_path / "valid.jsonl").write_text(json.dumps({**long, "weights": [1] + [0] * 11}) + "\n")
    with pytest.raises(DialogueError, match="every weight is 0, so nothing is learned"):
        train(tmp_path / "again", request)


def test_any_seed_that_settings_take_can_be_used(tmp_path: Path) -> None:
    train(tmp_path / "run", a_request(tmp_path, steps=1, seed=2**63 - 1))


DAMAGE: dict[str, list[str | bytes]] = {
    "run.json": ['{"data": 3}', "{", "[]", '{"data": [], "valid": [], "preset": "tiny", "source": null, "config": {}}',
                 '{"data": ["a"], "valid": [null], "preset": "tiny", "source": null, "config": {}}',
                 '{"data": ["a"], "valid": [], "preset": ["x"], "source": null, "config": {}}',
                 '{"data": ["a"], "valid": [], "preset": "giant", "source": null, "config": {}}',
                 '{"data": ["a"], "valid": [], "preset": "tiny", "source": null, "config": {"lr": "x"}}',
                 '{"data": ["a"], "valid": [], "preset": "tiny", "source": null, "config": {"colour": 1}}'],
    "last/training.json": ["{}", "{", '{"step": "3"}', '{"step": 3, "colour": 1}'],
    "last/training.safetensors": [b"", b"\xff" * 100],
    "last/model.safetensors": [b"", b"\xff" * 100],
    "last/config.json": ["{}", "{"],
    "data/train/data.json": ["{}", '{"prepared_version": 1}', '{"prepared_version": 1, "dtype": "foo"}', "{"],
    "data/train/tokens.bin": [b"", b"\xff" * 2],
    "data/train/dialogues.bin": [b""],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in DAMAGE for content in DAMAGE[name]])
def test_a_damaged_file_of_a_run_is_a_sentence(tmp_path: Path, name: str, content: str | bytes) -> None:
    train(tmp_path / "run", a_request(tmp_path), stop=after(1))
    place, _, file = name.rpartition("/")
    folder = tmp_path / "run" / place
    ((pointed_folder(folder) or folder) / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DialogueError, CheckpointError)):
        train(tmp_path / "run", None)


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    """The fused AdamW writes past the end of a moment that is smaller than its weight."""
    train(tmp_path / "run", a_request(tmp_path), stop=after(2))
    path = tmp_path / "run" / name_of(tmp_path / "run" / "last") / "training.safetensors"
    values = {name: stored.read().clone() for name, stored in formats.read_safetensors(path).items()}
    stored = {
        name: formats.StoredTensor(name, tuple(v.shape), v.dtype, lambda v=v: v)  # type: ignore[misc]
        for name, v in values.items()
    }
    small = {**stored, "0.final_norm.weight.exp_avg": formats.StoredTensor(
        "0.final_norm.weight.exp_avg", (3,), torch.float32, lambda: torch.zeros(3))}  # fmt: skip
    for changed in (small, {name: t for name, t in stored.items() if not name.endswith("step")}):
        formats.write_safetensors(tmp_path / "changed", list(changed.values()), {})
        gc.collect()  # what was raised before has the file mapped, which Windows would not replace
        (tmp_path / "changed").replace(path)
        with pytest.raises(CheckpointError, match="cannot be resumed from"):
            train(tmp_path / "run", None)


def test_lines_of_metrics_that_cannot_be_read_cost_no_others(tmp_path: Path) -> None:
    train(tmp_path / "run", a_request(tmp_path), stop=after(3))
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\xff", b"3", b"{}", b'{"step": "a"}', *lines[1:], b'{"st']))
    train(tmp_path / "run", None)
    assert [line["step"] for line in measured(tmp_path / "run") if "loss" in line] == list(range(1, 13))


def test_a_disk_that_fills_while_measuring_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = a_request(tmp_path)

    class Full(Listener):
        def stepped(self, trainer: Any, measured: Any) -> None:
            if measured.step == 5:
                (tmp_path / "run" / "metrics.jsonl").unlink()
                (tmp_path / "run" / "metrics.jsonl").mkdir()

    with pytest.raises(DialogueError, match=r"metrics\.jsonl cannot be written: .*; the last checkpoint is kept"):
        train(tmp_path / "run", request, listener=Full())
