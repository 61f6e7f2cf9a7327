"""An evaluation from files and networks: replies are generated or read, everything is measured, and files are written.

With a folder every expensive step is kept line by line, so that the same call resumes after an interruption. What a
person types, sees and is told is left to the command line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt.chat import Chat
from dialogpt.data import Problem, Reading
from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.evaluate import fed, meteor, replies
from dialogpt.evaluate.comparison import Comparison, as_json, compare
from dialogpt.evaluate.dialogues import Dialogue, fingerprint, read_dialogues, read_replies
from dialogpt.evaluate.likelihood import Prediction, predict
from dialogpt.evaluate.metrics import LikelihoodSample, TextSample
from dialogpt.evaluate.overlap import Floats
from dialogpt.evaluate.protocols import PROTOCOLS, Protocol
from dialogpt.evaluate.resumed import Line, resumed
from dialogpt.files.disk import write_atomically
from dialogpt.ranking.dialogrpt import DialogRPT
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import load

SCORED_TOGETHER = 16  # dialogues between two writes
OnStage = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class System:
    """What is evaluated: a file of replies, or a network with its settings.

    Attributes:
        name: in tables.
        file: replies that are there already.
        open: opens the network, with the settings of its replies.
        settings: all that its replies depend on, for resuming.
        network: all that its predictions depend on; systems that share it are read once.
    """

    name: str
    file: Path | None = None
    open: Callable[[], Chat] | None = None
    settings: Line = field(default_factory=dict)
    network: str = ""

    @property
    def folder_name(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^\w.+-]+", "-", self.name).strip("-.") or "system"


@dataclass(frozen=True)
class EvaluationRequest:
    """What is measured.

    Attributes:
        dialogues: the file.
        reading: how it is read.
        protocol: one of `PROTOCOLS`, by its name.
        every_turn: see `read_dialogues`.
        bot_only, window: see `dialogpt.evaluate.likelihood.predict`.
        fed: a checkpoint whose expectations judge replies (`dialogpt.evaluate.fed`); None leaves it out.
        heads: DialogRPT's heads, name and checkpoint.
        resamples: sets that are drawn for intervals; 0 leaves them out.
        seed: of replies and sets.
        batch_size: dialogues that are answered together.
        out: where everything is kept; None keeps nothing.
    """

    dialogues: Path
    protocol: str = "paper-6k"
    reading: Reading = field(default_factory=Reading)
    every_turn: bool = False
    bot_only: bool = False
    window: int | None = None
    fed: str | None = None
    heads: tuple[tuple[str, str], ...] = ()
    resamples: int = 1000
    seed: int = 1
    batch_size: int = 32
    out: Path | None = None


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        protocol: how text was treated.
        dialogues: what was answered.
        replies: of each system.
        comparison: all figures.
        quality: of each system and reply, by which the best are shown.
        bins: of each system with a network, for the picture of its calibration.
        notes: sentences about the run.
    """

    protocol: Protocol
    dialogues: list[Dialogue]
    replies: dict[str, list[str]]
    comparison: Comparison
    quality: dict[str, Floats]
    bins: dict[str, Floats]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "protocol": self.protocol.name,
            "dialogues": len(self.dialogues),
            "notes": self.notes,
            "systems": as_json(self.comparison),
            "published": self.protocol.published,
        }


class Evaluation:
    """One call; its methods are its stages."""

    def __init__(
        self,
        request: EvaluationRequest,
        systems: Sequence[System],
        *,
        stop: Stop | None = None,
        on_stage: OnStage = lambda _stage, _done, _total: None,
    ) -> None:
        """Read the dialogues and all given replies, so that mistakes are found before anything is generated.

        Args:
            request: what is measured.
            systems: at least one; the others are compared with the first.
            stop: asked again and again; true ends it all.
            on_stage: is told of progress.

        Raises:
            DialogueError: a file, a name or the protocol cannot be used.
        """
        if request.protocol not in PROTOCOLS:
            raise DialogueError(f"there is no protocol {request.protocol!r}; there are {', '.join(PROTOCOLS)}")
        folders = [system.folder_name for system in systems]
        twice = next(
            (system.name for system, name in zip(systems, folders, strict=True) if folders.count(name) > 1), None
        )
        if twice is not None:
            raise DialogueError(f"two systems are called {twice!r}, or nearly so; name each with NAME=...")
        self.request, self.systems, self.stop, self.on_stage = request, systems, stop, on_stage
        self.protocol = PROTOCOLS[request.protocol]
        self.protocol.clean("")  # what it needs is installed
        left_out: list[Problem] = []
        read = partial(read_dialogues, request.dialogues, request.reading)
        self.dialogues = read(every_turn=request.every_turn, on_problem=left_out.append)
        self.left_out = _left_out(left_out)
        whole = self.dialogues if not request.every_turn else read()
        self.whole = [(*dialogue.turns, dialogue.references[0]) for dialogue in whole]
        self.given = {
            system.name: read_replies(system.file, len(self.dialogues)) for system in systems if system.file is not None
        }
        self.fingerprint = fingerprint(self.dialogues)
        self._chats: dict[str, Chat] = {}
        self._read: dict[str, list[Prediction]] = {}  # of each network

    def run(self) -> Result:
        """Generate, measure and compare.

        Raises:
            Stopped: `stop` returned true; with a folder, what was computed is there.
            DialogueError, CheckpointError: a network cannot be used, or a file cannot be written.
        """
        given = {system.name: self._replies(system) for system in self.systems}
        predictions = {system.name: self._predictions(system) for system in self.systems if system.open is not None}
        self._chats.clear()
        means = {name: self._means(name, texts) for name, texts in given.items()}
        texts, notes = self._text_samples(given, means)
        notes = [*self.left_out, *notes]
        if self.request.fed is not None:
            notes.append(f"FED by {self.request.fed}: {fed.PROTOCOL}")
        if predictions:
            size = self.request.window or "all positions of the network"
            bot = "the bot's turns" if self.request.bot_only else "all turns"
            notes.append(f"perplexity of {bot}, end tokens included; windows of {size}, overlapping by half")
        self.on_stage("comparing", 0, len(self.dialogues))
        likelihoods = {name: LikelihoodSample(found) for name, found in predictions.items()}
        resampling: dict[str, Any] = {"resamples": self.request.resamples, "seed": self.request.seed, "stop": self.stop}
        comparison = compare(texts, **resampling)
        if likelihoods:
            for name, figures in compare(likelihoods, **resampling).items():
                comparison[name] |= figures
        self.on_stage("comparing", len(self.dialogues), len(self.dialogues))
        quality = {name: sample.quality for name, sample in texts.items()}
        bins = {name: sample.bins for name, sample in likelihoods.items()}
        return Result(self.protocol, self.dialogues, given, comparison, quality, bins, notes)

    def _kept(self, system: str, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `resumed` for a stage of a system."""
        folder = None if self.request.out is None else self.request.out / _folder(self.systems, system)
        return {
            "path": None if folder is None else folder / f"{kind}.jsonl",
            "settings": {"kind": kind, "dialogues": self.fingerprint, **settings},
            "stop": self.stop,
            "on_progress": partial(self.on_stage, f"{system}: {kind}"),
        }

    def _chat(self, system: System) -> Chat:
        if system.name not in self._chats:
            assert system.open is not None
            self._chats.clear()  # one network at a time
            self._chats[system.name] = system.open()
        return self._chats[system.name]

    def _replies(self, system: System) -> list[str]:
        if system.name in self.given:
            return self.given[system.name]

        def answer(first: int, group: Sequence[Dialogue]) -> list[Line]:
            return replies.answer(self._chat(system), first, group, self.request.seed, self.stop)

        kept = self._kept(system.name, "replies", {"seed": self.request.seed, **system.settings})
        lines = resumed(self.dialogues, answer, group_size=self.request.batch_size, **kept)
        return [str(line["reply"]) for line in lines]

    def _predictions(self, system: System) -> list[Prediction]:
        first = next(each for each in self.systems if each.network == system.network)
        if first is not system:
            return self._read[first.network]
        request = self.request

        def read(_first: int, group: Sequence[Sequence[str]]) -> list[Line]:
            chat = self._chat(system)
            predict_one = partial(predict, chat.model, chat.tokenizer, window=request.window, bot_only=request.bot_only)
            return [{**asdict(each), "bins": each.bins.tolist()} for each in map(predict_one, group)]

        settings = {"network": system.network, "window": request.window, "bot_only": request.bot_only}
        kept = self._kept(system.name, "predictions", settings)
        lines = resumed(self.whole, read, group_size=SCORED_TOGETHER, **kept)
        self._read[system.network] = [Prediction(**{**line, "bins": np.array(line["bins"])}) for line in lines]
        return self._read[system.network]

    def _means(self, name: str, texts: Sequence[str]) -> dict[str, Sequence[float]]:
        """What networks make of each reply: FED's qualities, and DialogRPT's predictions."""
        pairs = list(zip(self.dialogues, texts, strict=True))
        told = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        columns: dict[str, Sequence[float]] = {}
        if (source := self.request.fed) is not None:
            model, tokenizer = load(source), Tokenizer.load(source)

            def judge(_first: int, group: Sequence[tuple[Dialogue, str]]) -> list[Line]:
                return [fed.judge(model, tokenizer, each.turns, reply, stop=self.stop) for each, reply in group]

            kept = self._kept(name, "fed", {"judge": source, "replies": told})
            lines = resumed(pairs, judge, group_size=SCORED_TOGETHER, **kept)
            columns |= {f"FED:{quality}": [line[quality] for line in lines] for quality in fed.QUALITIES}
        for head, source in self.request.heads:
            words = Tokenizer.load(source)
            ranker = DialogRPT.load([(head, 1.0, source)], words)

            def rank(
                _first: int, group: Sequence[tuple[Dialogue, str]], ranker: DialogRPT = ranker, words: Tokenizer = words
            ) -> list[Line]:
                return [replies.rank(ranker, words, each.turns, reply, self.stop) for each, reply in group]

            kept = self._kept(name, f"rpt-{head}", {"head": source, "replies": told})
            lines = resumed(pairs, rank, group_size=SCORED_TOGETHER, **kept)
            columns[f"RPT:{head}"] = [line[head] for line in lines]
        return columns

    def _text_samples(
        self, given: Mapping[str, Sequence[str]], means: Mapping[str, dict[str, Sequence[float]]]
    ) -> tuple[dict[str, TextSample], list[str]]:
        """The replies of each system, counted, and what is to be said of it; METEOR's program runs meanwhile."""
        self.on_stage("counting", 0, len(self.dialogues))
        with ThreadPoolExecutor(1) as executor:
            counting = executor.submit(self._meteor, given)
            texts = {
                name: TextSample(self.protocol, self.dialogues, found, means[name]) for name, found in given.items()
            }
            counted, notes = counting.result()
        for name, sample in texts.items():
            sample.meteor_statistics = counted.get(name)
        return texts, notes

    def _meteor(self, given: Mapping[str, Sequence[str]]) -> tuple[dict[str, Floats], list[str]]:
        """METEOR's statistics of each system, or why there are none."""
        clean, names = self.protocol.clean, list(given)
        try:
            jar = meteor.find_jar()
            references = [[clean(text) for text in self.protocol.choose(each.references)] for each in self.dialogues]
            texts = [clean(text) for name in names for text in given[name]]
            counted = meteor.statistics(texts, references * len(names), jar)  # together: to start takes it 6 s
        except meteor.Unavailable as error:
            return {}, [f"no METEOR: {error}"]
        return dict(zip(names, np.split(counted, len(names)), strict=True)), []


def _left_out(problems: Sequence[Problem]) -> list[str]:
    """A sentence about what of the dialogues is not evaluated; none where that is nothing."""
    if not problems:
        return []
    return [f"left out of the dialogues: {len(problems):,}, such as {problems[0]}; dialogpt import lists them all"]


def _folder(systems: Sequence[System], name: str) -> str:
    return next(system.folder_name for system in systems if system.name == name)


def write_results(folder: Path, result: Result, seed: int) -> list[Path]:
    """Write ``results.json``, ``report.html`` and, where matplotlib is installed, the pictures.

    Raises:
        OSError: a file cannot be written.
    """
    from dialogpt.evaluate.report import html

    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, bytes] = {}
    try:
        from dialogpt.evaluate import picture

        pictures["Figures, with 95 % intervals"] = picture.bars(result.comparison)
        if result.bins:
            pictures["Calibration of the next token"] = picture.calibration(result.bins)
    except ImportError:
        result.notes.append("no pictures, as matplotlib is not installed")
    written = []
    for name, png in zip(("comparison.png", "calibration.png"), pictures.values(), strict=False):
        partial_path = folder / f".{name}.partial"
        partial_path.write_bytes(png)
        written.append(partial_path.replace(folder / name))
    page = html(
        result.comparison,
        result.protocol,
        result.notes,
        pictures,
        result.dialogues,
        result.replies,
        result.quality,
        seed=seed,
    )
    write_atomically(folder / "report.html", page)
    write_atomically(folder / "results.json", json.dumps(result.to_dict(), ensure_ascii=False, indent=1))
    return [*written, folder / "report.html", folder / "results.json"]
