"""Damage files of our own; each must end in a sentence: `python -m tests.mutations 20000 [SEED]`."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from dialogpt import Chat
from dialogpt.cli.batch import _Earlier, _lines_of_json
from dialogpt.cli.commands.info import _run_rows
from dialogpt.cli.main import build_parser
from dialogpt.cli.options import generation_from
from dialogpt.cli.terminal import transcripts
from dialogpt.cli.terminal.conversations import Conversations
from dialogpt.cli.terminal.typed_lines import add_lines
from dialogpt.errors import DialogueError
from dialogpt.history import BOT, USER, Turn
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import TokenFiles, prepare
from dialogpt.train.run_folder import Run
from tests.helpers import small_vocabulary
from tests.train.runs import a_request, after, train, write_dialogues

MAX_SECONDS, MAX_BYTES = 2.0, 200 << 20
RAW = {  # of a value that is put in place of another
    "1e999": "1e999",
    "NaN": "NaN",
    "digits": "9" * 5000,
    "deep": "[" * 100_000 + "]" * 100_000,
    "twice": '{"a": 1, "a": 2}',
}
VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    10**30,
    2**63,
    1e300,
    0.5,
    True,
    None,
    "x",
    "",
    "\ud800",
    [],
    {},
    ["x"],
    {"x": 1},
    [[0]],
)


TOML_VALUES = (
    *("0", "-1", "1", "9" * 400, "9" * 5000, "1e300", "1e999", "0.5", "nan", "-inf", "0x10", "true", "false"),
    *('"x"', '""', '"\\u0000"', '"\\ud800"', f'"{"x" * 100_000}"', '"a\\nb"', "2020-01-01", "10:00:00"),
    *("[]", "['x']", "[[1]]", "[1, 'x']", "{}", "{x = 1}", "[" * 5000 + "]" * 5000, "[" * 50 + "]" * 50),
    *('"[[[3], 2.5]]"', '"[[3]]"', '"none"', '"~/x"', '"~nobody/x"', '"inf"', '"nan"', f'"{"[" * 5000}"'),
)
CONFIG = """\
model = "tiny"
seed = 3
[chat]
temperature = 0.6
top-p = 0.8
greedy = false
stop-strings = "end"
bad-words-ids = "[[3], [17, 4]]"
sequence-bias = "[[[3], 2.5]]"
suppress-tokens = "3,17"
max-new-tokens = 20
history-tokens = 100
min-p = 0.1
turn-prefix = ["<you>", "<me>"]
[serve]
port = 8080
cors = ["https://example.org", "https://example.com"]
[train]
lr = 1e-4
final-lr = 0.1
[data.reddit]
memory = "2G"
"""


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A file with one thing wrong: a value of its JSON, or its bytes."""
    if data[:1] == b"{" and dice.random() < 0.7:
        lines = data.splitlines(keepends=True) if _is_object(data.splitlines()[0]) else [data]
        which = dice.randrange(len(lines))
        with suppress(ValueError):
            lines[which] = _other_value(json.loads(lines[which]), dice)
            return b"".join(lines)
    if b" = " in data and dice.random() < 0.7:
        lines = data.splitlines(keepends=True)
        which = dice.choice([number for number, line in enumerate(lines) if b" = " in line])
        lines[which] = lines[which].split(b" = ")[0] + f" = {dice.choice(TOML_VALUES)}\n".encode()
        return b"".join(lines)
    changed = bytearray(data)
    place = dice.randrange(len(data) + 1)
    kind = dice.randrange(5)
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        changed[place:place] = dice.randbytes(dice.randint(1, 8))
    elif kind == 2:
        del changed[place : place + dice.randint(1, 16)]
    else:
        width = dice.choice((1, 2, 4, 8)) if kind == 3 else 64
        end = min(len(data), place + width)
        changed[place:end] = (b"\xff" * width if dice.random() < 0.5 else dice.randbytes(width))[: end - place]
    return bytes(changed)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _other_value(content: Any, dice: random.Random) -> bytes:
    """JSON with one value replaced or removed."""
    places = [(content, key) for key in _keys(content)]
    for holder, key in places:
        places += [(holder[key], inner) for inner in _keys(holder[key])]
    holder, key = dice.choice(places)
    kind, raw = dice.random(), dice.choice([*RAW])
    if kind < 0.1:
        del holder[key]
    else:
        holder[key] = f"@{raw}@" if kind < 0.4 else dice.choice(VALUES)
    return json.dumps(content).replace(f'"@{raw}@"', RAW[raw]).encode() + b"\n"


def _keys(value: Any) -> list[Any]:
    return (
        list(value) if isinstance(value, dict) else list(range(min(8, len(value)))) if isinstance(value, list) else []
    )


class Bench:
    """Whole files of each kind, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.vocabulary = small_vocabulary(300)
        self.form = Format(window=64)
        self.request = a_request(folder / "base")
        train(folder / "run", self.request, stop=after(4))
        prepare([write_dialogues(folder / "d.jsonl", 20)], folder / "prepared", self.vocabulary, self.form)
        self.chat = Chat.load("tiny", seed=1)
        self.tokenizer = self.chat.tokenizer
        turns = [Turn(self.tokenizer.encode(text), role) for text in ("hi", "you?") for role in (USER, BOT)]
        (folder / "talk").mkdir()
        transcripts.save(str(folder / "talk" / "a.json"), turns, self.tokenizer)
        (folder / "batch").mkdir()
        lines = [{"turns": ["hi", str(n)], "replies": [{"text": "yes", "ids": [1, 2]}]} for n in range(4)]
        (folder / "batch" / "out").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (folder / "config").mkdir()
        (folder / "config" / "config.toml").write_text(CONFIG)
        (folder / "history").mkdir()
        (folder / "history" / "history").write_text("".join(f"line {n} é\n" for n in range(20)), encoding="utf-8")
        self.readers: dict[str, Callable[[], object]] = {
            "run": lambda: train(folder / "run", None, stop=after(1)),
            "records": self.records,
            "prepared": lambda: TokenFiles(folder / "prepared").check(self.vocabulary, self.form),
            "talk": self.talk,
            "batch": self.batch,
            "config": self.config,
            "history": lambda: add_lines(folder / "history" / "history", ["typed"]),
        }
        for kind in ("talk", "batch", "config", "history"):  # undamaged, they are taken
            self.readers[kind]()

    def records(self) -> None:
        """What is read of a run besides training."""
        folder = self.folder / "run"
        step = next(folder.glob("step-*"))
        _run_rows(folder, step.name)
        Run(folder).metrics()

    def talk(self) -> None:
        """What is read of a conversation."""
        path = str(self.folder / "talk" / "a.json")
        transcripts.load(path, self.tokenizer, self.chat.model.config.vocab_size)
        transcripts.load_persona(path)
        with suppress(OSError, ValueError):
            transcripts.texts(Path(path))
        kept = Conversations(self.folder / "talk")
        if kept.listed():
            kept.bring_back(self.chat, 1)
            kept.keep(self.chat)
        kept.close()

    def config(self) -> None:
        """What is read of a config file, by a command that has most of its flags."""
        for command in ("chat", "serve", "train"):
            parser = build_parser()  # what a file sets are the defaults of its parser
            options = parser.parse_args([command, "--config", str(self.folder / "config" / "config.toml")])
            if command == "chat":
                generation_from(options)

    def batch(self) -> None:
        """What is read of a batch: a damaged output goes on, a damaged input is answered by sentences."""
        path = self.folder / "batch" / "out"
        with path.open("r+b") as output, path.open("rb") as source:
            earlier = _Earlier(output, path)
            lines = list(earlier.skip(_lines_of_json(source), source))
            close = earlier.begin()
            try:
                earlier.kept(lines)
            finally:
                close()
        earlier.aside.unlink(missing_ok=True)

    def files(self, kind: str) -> list[Path]:
        """The files that are damaged for a kind."""
        folder = self.folder / ("run" if kind == "records" else kind)
        found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return [path for path in found if path.suffix in (".json", ".jsonl")] if kind == "records" else found

    def damage(self, count: int, seed: int) -> Iterator[tuple[str, str, float, int]]:
        """Damage so many files; yields the kind, what came of it, the seconds, and the bytes of memory."""
        dice = random.Random(seed)
        pristine = self.folder.with_name(f"{self.folder.name}-whole")
        shutil.copytree(self.folder, pristine)
        for _ in range(count):
            kind = dice.choices([*self.readers], [1, 4, 5, 5, 5, 4, 2])[0]
            path = dice.choice(self.files(kind))
            path.write_bytes(mutated(path.read_bytes(), dice))
            before, start = _peak_after_reset(), time.perf_counter()
            outcome = "taken"
            try:
                with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                    self.readers[kind]()
            except (DialogueError, SystemExit):  # argparse has written the sentence
                outcome = "sentence"
            except Exception as error:
                outcome = f"{path.relative_to(self.folder)}: {type(error).__name__}: {str(error)[:200]}"
            yield kind, outcome, time.perf_counter() - start, max(0, _peak() - before)
            used = {"records": "run"}.get(kind, kind)
            shutil.rmtree(self.folder / used)
            shutil.copytree(pristine / used, self.folder / used)


def _peak_after_reset() -> int:
    """Reset the peak, and return the bytes of memory in use (Linux; 0 elsewhere)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def main(argv: list[str]) -> int:
    """Damage so many files and print what came of it."""
    counts, slowest, most = Counter[str](), 0.0, 0
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        seed = int(argv[1]) if len(argv) > 1 else 1
        found = Bench(Path(folder) / "b").damage(int(argv[0]), seed)
        for number, (kind, outcome, seconds, nbytes) in enumerate(found):
            if outcome in ("taken", "sentence") and (seconds > MAX_SECONDS or nbytes > MAX_BYTES):
                outcome = f"{kind} took {seconds:.2f} s and {nbytes >> 20} MB"
            ends = outcome in ("taken", "sentence")
            counts[f"{kind}: {outcome if ends else 'TRACEBACK'}"] += 1
            slowest, most = max(slowest, seconds), max(most, nbytes)
            if not ends and len(failures) < 50:
                failures.append(outcome)
                print(number, outcome, flush=True)
    print(dict(counts), f"slowest {slowest:.2f} s, most memory {most >> 20} MB")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
