"""`convert --verify`: that it sees equality, and that it sees faults, with transformers and without."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dialogpt.cli import verify
from dialogpt.cli.main import main
from dialogpt.weights import convert, export, names, open_checkpoint
from dialogpt.weights.formats import pickles


def rows(output: str) -> dict[str, str]:
    """The verdict of each line of the table."""
    return dict(re.findall(r"^(\w[\w ]*?) +(equal|DIFFER|-) ", output, re.MULTILINE))


def lose_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate fault: one matrix is read as it is stored. It is square, so that no shape can tell."""
    faulty = tuple(
        replace(rule, transpose=rule.transpose and rule.published != "h.{}.attn.c_proj.weight") for rule in names.RULES
    )
    monkeypatch.setattr(names, "RULES", faulty)


def pickled(published: Path, folder: Path) -> Path:
    """The same checkpoint in a form that transformers does not read: an old pickle under a name of its own."""
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    state = {f"module.{name}": tensor for name, tensor in load_file(published / "model.safetensors").items()}
    torch.save(state, folder / "small_ft.pkl", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize("flags", [[], ["--dtype", "float16"], ["--to", "hf"]])
@pytest.mark.parametrize("form", ["published", "pickle", "ours"])
def test_equal_is_equal(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, flags: list[str]
) -> None:
    source = published
    if form == "pickle":
        source = pickled(published, tmp_path / "pickled")
    elif form == "ours":
        source = tmp_path / "ours"
        convert(published, source)
    assert main(["convert", str(source), str(tmp_path / "out"), "--verify", *flags]) == 0
    found = rows(capsys.readouterr().out)
    assert set(found.values()) == {"equal"}
    assert found.keys() >= {"token ids", "logits", "cached", "greedy tokens", "sampled tokens"}


@pytest.mark.parametrize("form", ["published", "pickle"])
def test_a_lost_transpose_is_seen(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Also where transformers reads an export of ours, which turns the same faulty table around."""
    source = published if form == "published" else pickled(published, tmp_path / "pickled")
    lose_transpose(monkeypatch)
    assert main(["convert", str(source), str(tmp_path / "ours"), "--verify"]) == 1
    out, err = capsys.readouterr()
    assert rows(out)["logits"] == "DIFFER"
    assert re.search("^block 0 attention +DIFFER .* <- the first that differs$", out, re.MULTILINE)
    assert "computes something else than what it was made from; do not use it" in err


@pytest.mark.parametrize("form", ["published", "pickle"])
def test_a_reader_that_reads_wrongly_is_seen(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """An export of our own reading would agree with it: what transformers cannot read, torch reads for it."""
    source = pickled(published, tmp_path / "pickled")
    if form == "published":
        state = load_file(published / "model.safetensors")
        (source / "small_ft.pkl").unlink()
        torch.save(state, source / "pytorch_model.bin")
    honest = pickles._Mapped.tensor
    monkeypatch.setattr(pickles._Mapped, "tensor", lambda self, described: -honest(self, described))
    assert main(["convert", str(source), str(tmp_path / "ours"), "--verify"]) == 1
    assert rows(capsys.readouterr().out)["logits"] == "DIFFER"


def test_an_interrupted_proof_leaves_the_result_and_no_more(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended at once, and left the exported network in the folder for temporary files."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(verify, "compare", interrupt)
    convert(published, tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "ours"), "--verify"]) == 130
    assert f"{tmp_path / 'ours'} is written, and not verified" in capsys.readouterr().err
    assert open_checkpoint(tmp_path / "ours").ours
    assert list((tmp_path / "temporary").iterdir()) == []


def test_without_transformers_the_loss_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "installed", lambda: False)
    assert main(["convert", "tiny", str(tmp_path / "ours"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "transformers is not installed; this is what shows without it (" in out
    assert rows(out) == {"shapes": "equal", "output head": "equal", "values": "equal", "loss": "equal"}


def test_without_transformers_scrambled_weights_show_in_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "installed", lambda: False)
    export("tiny", tmp_path / "published")
    state = load_file(tmp_path / "published" / "model.safetensors")
    state["transformer.wte.weight"] = state["transformer.wte.weight"].roll(1, 0)  # as with another vocabulary's rows
    save_file(state, tmp_path / "published" / "model.safetensors")
    assert main(["convert", str(tmp_path / "published"), str(tmp_path / "ours"), "--verify"]) == 1
    out = capsys.readouterr().out
    assert rows(out) == {"shapes": "equal", "output head": "equal", "values": "equal", "loss": "DIFFER"}


def test_what_cannot_be_compared_is_said(published: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "copy"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    loss = verify.check_alone(open_checkpoint(folder), open_checkpoint(folder))[-1]
    assert (loss.equal, loss.outcome) == (None, "not computed: the checkpoint has no vocabulary")
    untrained = verify.check_alone(open_checkpoint(published), open_checkpoint(published))[-1]
    assert untrained.equal is False  # random weights: no better than guessing
