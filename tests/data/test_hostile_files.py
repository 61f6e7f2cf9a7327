"""Damaged and hostile files, each read as every kind: a sentence or a counted problem, in little time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dialogpt.data import KINDS
from tests.helpers import ROOT, WAIT_SECONDS, environment, needs_posix

MEBIBYTES = 200
LONG = 6 << 20  # bytes: longer than any line or value may be, so that what is left of 1 GB is told from it
_TEXT = '{"turns": ["hi", "hello"]}\n'


def hostile() -> dict[str, bytes]:
    """The files by name."""
    header = b"[20.06.19, 15:58:57] A: "
    return {
        "nul": b"\0" * LONG,
        "nul-in-text": b'{"turns": ["a\0", "b"]}\n' * 1000,
        "random": bytes(range(256)) * 4096,
        "latin1": 'Grüße\tÄrger\n{"turns": ["é", "è"]}\n'.encode("latin-1") * 1000,
        "utf16-no-mark": _TEXT.encode("utf-16-le") * 1000,
        "utf16-odd": _TEXT.encode("utf-16") + b"\0",
        "utf32": _TEXT.encode("utf-32"),
        "marks": b"\xef\xbb\xbf" * 1000,
        "one-line": b"a" * LONG,
        "one-text": b'{"turns": ["' + b"a" * LONG,
        "one-array": b"[" + b'{"turns": ["a", "b"]},' * 50_000,
        "numbers": b"[" + b"1," * (LONG // 2),
        "objects": b'{"turns": [' + b"{}," * (LONG // 3),
        "deep": b"[" * LONG,
        "deep-objects": b'{"a":' * (LONG // 5),
        "deep-in-turns": b'{"turns": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "deep-messages": b'{"messages": [' + b'{"a": [' * 100_000,
        "long-number": b'{"turns": ["a", "b"], "weights": [' + b"9" * 100_000 + b", 1]}\n",
        "unclosed": b'{"turns": ["a", "b"]\n' * 2000,
        "unclosed-text": b'{"turns": ["a, "b]}\n' * 2000,
        "quotes": b'question,answer\n' + b'a,"b\n' * 20_001,
        "one-quote": b'question,answer\n"' + b"a,b\n" * 20_000,
        "quote-a-page": b"question,answer\n" + (b'"' + b"a,b\n" * 300) * 100,
        "commas": b"," * LONG,
        "tabs": b"\t" * LONG,
        "ends": b"\n" * (1 << 20),
        "returns": b"\r" * (1 << 20),
        "mixed-ends": b"a\r\nb\rc\nd\n\r" * 20_000,
        "no-header": header * 2,
        "long-message": header + b"a\n" * (LONG // 2),
        "no-dates": b"[99.99.99, 99:99:99] A: x\n" * 10_000,
        "mixed-layouts": (header + b"x\n6/20/19, 3:58 PM - B: y\n{\"turns\": [\"a\", \"b\"]}\na\tb\n") * 2000,
        "colons": b"[20.06.19, 15:58:57] " + b": " * 10_000,
        "names": header.replace(b"A", b"A" * 100_000) + b"x\n",
        "spaces": b"[20.06.19, 15:58:57]" + b" " * 100_000 + b"\n",
        "eou": b"__eou__ " * 100_000,
        "eos": b" EOS " * 100_000 + b"\tx\n",
        "cornell": b" +++$+++ " * 100_000,
        "cornell-list": b"u0 +++$+++ u1 +++$+++ m0 +++$+++ " + b"[" * 100_000 + b"\n",
        "numbered": b"99999999999999999999 hi\tyou\n" * 1000,
        "conv": b"conv_id,utterance_idx,context,prompt,speaker_idx,utterance\n" + b"a," * 100_000,
        "tree-loop": b'{"message_id": "a", "parent_id": "a", "text": "x", "role": "assistant"}\n' * 1000,
        "tree-deep": b'{"message_tree_id": "a", "prompt": ' + b'{"text": "x", "role": "assistant", "replies": [' * 500
        + b"]}" * 500 + b"}\n",
        "tree-wide": b'{"message_tree_id": "a", "prompt": {"text": "x", "role": "prompter", "replies": ['
        + b",".join([b'{"text": "y", "role": "assistant"}'] * 20_000) + b"]}}\n",
        "keys": b"{" + b",".join(b'"%d": 1' % n for n in range(30_000)) + b"}\n",
        "duplicates": b'{"turns": ["a", "b"], "turns": ["c", "d"]}\n' * 2000,
        "surrogates": b'{"turns": ["\\ud800", "b"]}\n' * 2000,
        "weights": b'{"turns": ["a", "b"], "weights": [NaN, -1e999]}\n' * 2000,
        "types": b'{"turns": 7}\n{"messages": {"role": 1}}\n{"conversations": [1, null]}\n[]\n7\nnull\n"x"\n' * 500,
        "phones": b'{"turns": ["' + b"1 " * 100_000 + b'", "b"]}\n',
        "truncated": b'{"guild": {}, "channel": {}, "messages": [{"type": "Default", "content": "x"}, {"ty',
        "parquet": b"PAR1" + b"\xff" * 1000 + b"PAR1",
        "cut": b"PAR1\x15\x04",
        "empty": b"",
    }  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in hostile().items():
        (folder / f"{name}.txt").write_bytes(content)
    return folder


def outcomes(kind: str, paths: list[Path]) -> Iterator[tuple[str, int, int, str, float, float]]:
    """What becomes of files that are read as a kind, in a process of their own."""
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, *map(str, paths)],
        capture_output=True, text=True, timeout=WAIT_SECONDS, env=environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        yield tuple(json.loads(line))


@needs_posix
@pytest.mark.parametrize("kind", ["auto", *(name for name in KINDS if name != "datasets")])
def test_each_ends_in_a_sentence_or_a_counted_problem(files: Path, kind: str) -> None:
    """More than 50 files, each as each of 19 kinds: nothing else is raised, and memory stays small."""
    paths = sorted(files.iterdir())
    found = list(outcomes(kind, paths))
    assert len(found) == len(paths)
    for path, dialogues, problems, sentence, _, mebibytes in found:
        name = Path(path).stem
        empty = name in ("empty", "ends", "returns", "marks")
        assert dialogues or problems or sentence or empty, name
        assert mebibytes < MEBIBYTES + (60 if kind == "parquet" else 0), name  # pyarrow itself
        assert "\n" not in sentence


@needs_posix
@pytest.mark.slow
@pytest.mark.parametrize("content", [b"a", b"\0", b'{"turns": ["a', b"[1,", b"\r"])
def test_a_gigabyte_of_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        for _ in range(1024):
            file.write((content * (1 << 20))[: 1 << 20])
    for kind in ("turns", "whatsapp", "csv", "text", "telegram"):
        ((_, dialogues, problems, sentence, _, mebibytes),) = outcomes(kind, [path])
        assert not dialogues
        assert problems or sentence or content == b"\r"
        assert mebibytes < MEBIBYTES
