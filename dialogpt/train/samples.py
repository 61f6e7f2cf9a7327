"""Replies to a few held-out prompts, before, during and after training, to show how the bot changes.

    samples.json    the prompts, the replies in the data, and the sampled replies by step
    samples.md      the same as a readable page

Prompts and seeds are the same each time; the reply pipeline is that of chat and server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt.candidates import candidates_for_all
from dialogpt.chat import Chat
from dialogpt.files import own_files
from dialogpt.files.disk import write_atomically
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import BOT, USER
from dialogpt.model import GPT2
from dialogpt.tokenizer import Tokenizer
from dialogpt.train.data.prepare import TokenFiles
from dialogpt.weights import Checkpoint

NEW_TOKENS = 40
SEED = 1


@dataclass
class Samples:
    """The prompts of a run and the replies to them.

    Attributes:
        folder: the folder of the run.
        prompts: the turns of each prompt, oldest first.
        expected: the reply in the data, for each prompt.
        replies: sampled replies by step; step 0 is before training.
    """

    folder: Path
    prompts: list[list[str]]
    expected: list[str]
    replies: dict[int, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, data: TokenFiles, tokenizer: Tokenizer, count: int, step: int) -> Samples:
        """Choose the prompts of a run; if it resumes, restore the samples up to its step.

        Args:
            folder: the folder of the run.
            data: the source of the prompts, which are dialogues without their last turn.
            tokenizer: the tokenizer of the network.
            count: the number of prompts.
            step: the step that the run has reached.
        """
        dialogues = _spread(data, tokenizer, count)
        samples = cls(folder, [turns[:-1] for turns in dialogues], [turns[-1] for turns in dialogues])
        path = folder / "samples.json"
        if step and path.is_file():
            try:
                replies = own_files.read_object(path, {"replies": own_files.TEXTS_BY_TEXT})["replies"]
                kept = {int(at): listed for at, listed in replies.items() if int(at) <= step}
            except (OSError, ValueError):
                kept = {}  # a damaged file costs the earlier samples, not the run
            samples.replies = {at: listed for at, listed in kept.items() if len(listed) == len(samples.prompts)}
        return samples

    def take(self, model: GPT2, tokenizer: Tokenizer, like: Checkpoint, step: int) -> None:
        """Answer the prompts, and write all samples to the folder."""
        if not self.prompts:
            return
        settings = GenerationConfig.chat(like.chat).merged({"max_new_tokens": NEW_TOKENS})
        chat = Chat(model, tokenizer, settings.fitted(model.config.n_positions), history_tokens=like.history_tokens)
        model.eval()
        try:
            found = candidates_for_all(chat, self.prompts, 1, [SEED + n for n in range(len(self.prompts))])
        finally:
            model.train()
        self.replies[step] = [tokenizer.turn_text(replies[0].ids, BOT) for replies in found]
        content: dict[str, Any] = {"prompts": self.prompts, "expected": self.expected, "replies": self.replies}
        write_atomically(self.folder / "samples.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        write_atomically(self.folder / "samples.md", self.page())

    def page(self) -> str:
        """Format the samples as Markdown, with a table for each prompt."""
        parts = ["# Samples\nReplies to held-out prompts; step 0 is before training.\n"]
        for number, (prompt, expected) in enumerate(zip(self.prompts, self.expected, strict=True)):
            parts.append("\n".join([f"## {number + 1}", *(f"> {_cell(turn)}\n" for turn in prompt)]))
            rows = [(f"step {step:,}", replies[number]) for step, replies in sorted(self.replies.items())]
            table = [("", "reply"), ("---", "---"), *rows, ("the data", expected)]
            parts.append("\n".join(f"| {name} | {_cell(text)} |" for name, text in table) + "\n")
        return "\n".join(parts)

    def of_prompt(self, number: int) -> list[str]:
        """Return the replies to one prompt, ordered by step."""
        return [replies[number] for _, replies in sorted(self.replies.items())]


def _text(ids: list[int], role: str, tokenizer: Tokenizer) -> str:
    """The text of a turn that was prepared, prefix and all."""
    return tokenizer.turn_text(ids[len(tokenizer.turn_prefix.of(role)) :], role)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _spread(data: TokenFiles, tokenizer: Tokenizer, count: int) -> list[list[str]]:
    """Select dialogues of at least two turns, evenly spaced over the data."""
    found: list[list[str]] = []
    indices = np.unique(np.linspace(0, len(data.ends) - 1, min(4 * count, len(data.ends))).astype(int))
    for index in indices.tolist():
        if len(found) == count:
            break
        start = 0 if index == 0 else int(data.ends[index - 1, 0])
        ids = data.tokens[start : int(data.ends[index, 0])]
        cuts = np.flatnonzero(ids == data.eos_id)
        parts = np.split(ids, cuts + 1)[:-1]
        turns = [_text(part.tolist()[:-1], (USER, BOT)[n % 2], tokenizer) for n, part in enumerate(parts)]
        if len(turns) > 1:
            found.append(turns)
    return found
