"""Files that this program wrote itself, damaged: each is used, or ends in a sentence, soon and in little memory."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dialogpt.cli.batch import _lines_of_json
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.files.plain_file import require_plain_file
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import TokenFiles, prepare
from dialogpt.train.settings import TrainConfig
from dialogpt.weights.formats import CheckpointError, StoredTensor, write_safetensors
from tests.helpers import deadline, small_vocabulary
from tests.mutations import MAX_BYTES, Bench
from tests.train.runs import write_dialogues


@pytest.mark.parametrize("count", [240, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_end_in_sentences(tmp_path: Path, count: int) -> None:
    """652 damaged run folders gave ten tracebacks of five kinds; damage of other files gave more."""
    found = [*Bench(tmp_path / "bench").damage(count, seed=count)]
    assert not [outcome for _, outcome, _, _ in found if outcome not in ("taken", "sentence")]
    assert {outcome for _, outcome, _, _ in found} == {"taken", "sentence"}
    assert max(nbytes for _, _, _, nbytes in found) < MAX_BYTES


SCHEMA: own_files.Schema = {"step": own_files.AT_LEAST_ONE, "loss": own_files.NUMBER}


@pytest.mark.parametrize(
    "line",
    ["", "{", "3", "[]", "{}", '{"step": 1}', '{"step": 0, "loss": 1}', '{"step": true, "loss": 1}',
     '{"step": 1.0, "loss": 1}', '{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e999}', '{"step": 1, "loss": "1"}',
     '{"step": ' + "9" * 5000 + ', "loss": 1}', '{"step": 1, "loss": ' + "[" * 100_000 + "]" * 100_000 + "}",
     " " * (own_files.LINE_LIMIT + 1)],
)  # fmt: skip
def test_a_line_that_is_not_of_its_schema_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=".+"):
        own_files.parse_line(line.encode(), SCHEMA)


def test_all_fields_that_are_wrong_are_named() -> None:
    with pytest.raises(
        DialogueError, match=re.escape("run.json is damaged: step must be a positive integer, got -1; ")
    ):
        own_files.require({"step": -1, "loss": "x"}, SCHEMA, "run.json")
    assert own_files.parse_line(b'{"step": 1, "loss": 1e300, "more": []}', SCHEMA)["loss"] == 1e300


def test_a_beta_of_an_integer_is_a_number() -> None:
    """AdamW of torch refuses betas of two types, and JSON has 0 for 0.0."""
    assert type(TrainConfig.from_dict({"beta1": 0}).beta1) is float


def _change(folder: Path, name: str, dtype: str, place: int, value: float) -> None:
    numbers = np.fromfile(folder / name, dtype)
    numbers[place] = value
    numbers.tofile(folder / name)


@pytest.mark.parametrize(
    ("name", "dtype", "place", "value"),
    [("tokens.bin", "<u2", 0, 65535), ("tokens.bin", "<u2", -1, 1), ("tokens.bin", "<u2", 0, "end"),
     ("dialogues.bin", "<i8", 0, -1), ("dialogues.bin", "<i8", 0, 2**62), ("dialogues.bin", "<i8", 1, 1),
     ("weights.bin", "<f4", 1, np.nan), ("weights.bin", "<f4", 1, -1), ("weights.bin", "<f4", 1, 1e30)],
)  # fmt: skip
def test_what_does_not_match_the_index_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, place: int, value: float | str
) -> None:
    """It ended in an IndexError or a ZeroDivisionError among the steps, or taught nonsense."""
    monkeypatch.setattr("dialogpt.train.data.prepare.CHECKED", 7)  # dialogues and turns lie across parts
    vocabulary = small_vocabulary(300)
    data = prepare([write_dialogues(tmp_path / "d.jsonl", 20)], tmp_path / "out", vocabulary, Format(window=64))
    assert len(data.ends) == 20
    del data
    _change(tmp_path / "out", name, dtype, place, vocabulary.eos_id if value == "end" else float(value))
    with pytest.raises(DialogueError, match=r"\.bin (is damaged|does not match dialogues\.bin beside it); prepare"):
        TokenFiles(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    "command",
    [["train", "PIPE", "--check"], ["train", "PIPE", "--out", "RUN"],
     ["import", "PIPE", "--from", "turns", "--out", "O"],
     ["reply", "--batch", "PIPE"], ["reply", "--model", "PIPE", "hi"], ["evaluate", "PIPE"], ["info", "PIPE"]],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Opening a pipe without a writer blocks forever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    with deadline():
        assert main(command) == 1
    assert "PIPE" in capsys.readouterr().err


def test_only_plain_files_may_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    require_plain_file(tmp_path / "file")
    for other in (tmp_path, tmp_path / "missing", Path(os.devnull)):
        with pytest.raises(OSError, match=r".+"):
            require_plain_file(other)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a mapped file cannot be cut short, or kills the reader")
def test_a_source_that_is_cut_short_is_not_the_destinations_fault(tmp_path: Path) -> None:
    """The write fails with "Bad address", and the error named the destination."""
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))
    mapped = torch.from_file(str(source), shared=True, size=1 << 18, dtype=torch.float32)
    os.truncate(source, 0)
    stored = StoredTensor("weight", (1 << 18,), torch.float32, lambda: mapped)
    with pytest.raises(CheckpointError, match="the file that holds weight was cut short while it was read"):
        write_safetensors(tmp_path / "out", [stored], {})


def test_an_input_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        name = "lines.jsonl"

        def __next__(self) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(DialogueError, match=r"lines\.jsonl cannot be read: Input/output error"):
        list(_lines_of_json(Failing()))
