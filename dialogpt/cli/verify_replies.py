"""Whole greedy replies, each side by its own recipe: what `convert --verify` compares last.

Ours is what `dialogpt reply` does: our tokenizer, our prompt, our end of a turn. Theirs is what people do with
transformers: its tokenizer and its end token, its `generate` with the settings of the folder. A wrong end token, prompt
or vocabulary shows here, where logits of the same ids agree. Numbers are compared in `verify.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dialogpt.candidates import candidates
from dialogpt.chat import Chat
from dialogpt.errors import DialogueError
from dialogpt.history import alternating
from dialogpt.model import GPT2
from dialogpt.published_settings import published_settings
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Checkpoint
from dialogpt.weights.vocabulary import chat_template

NEW_TOKENS = 32
DIALOGUES = (
    ["Hello, how are you?"],
    ["Does money buy happiness?", "Depends how much money you spend on it.", "What is the best way to buy happiness?"],
)


def compare_replies(checkpoint: Checkpoint, ours: GPT2, theirs: Any, folder: Path) -> tuple[str, bool | None]:
    """Reply to two dialogues on both sides; returns what came out, and whether it is the same (None: not compared).

    Args:
        checkpoint: ours to judge.
        ours: its network.
        theirs: the network in transformers.
        folder: where transformers reads its tokenizer and its settings of generation.
    """
    if checkpoint.vocabulary is None:
        return "not compared: the checkpoint has no vocabulary", None
    tokenizer, their_tokenizer = Tokenizer.load(checkpoint), _their_tokenizer(folder)
    room, notes, lengths = ours.config.n_positions, dict[str, None](), list[int]()
    for turns in DIALOGUES:
        prompt = _their_prompt(their_tokenizer, turns, checkpoint.turn_prefix)
        new = min(NEW_TOKENS, room - len(prompt))
        if new < 1:
            continue
        try:
            mine = _our_reply(checkpoint, ours, tokenizer, turns, new)
        except DialogueError as error:
            return f"not compared: {error}", None
        reply = _their_reply(theirs, folder, their_tokenizer, prompt, new)
        if tokenizer.eos_id in reply:
            notes["transformers goes on behind the end of a turn, which its settings do not name"] = None
            reply = reply[: reply.index(tokenizer.eos_id)]
        if mine != reply:
            what = "with its own recipe transformers replies"
            return f"{what} {their_tokenizer.decode(reply)!r}, and we {tokenizer.decode(mine)!r}", False
        lengths.append(len(mine))
    template = checkpoint.chat_template
    if template is not None and not _same_prompts(their_tokenizer, checkpoint):
        notes["its chat template makes another prompt than turns and end tokens (see --turn-prefix)"] = None
    if not lengths:
        return "not compared: the network has no room for a reply", None
    return "; ".join([f"{' and '.join(map(str, lengths))} tokens, each side by its own recipe", *notes]), True


def _our_reply(checkpoint: Checkpoint, model: GPT2, tokenizer: Tokenizer, turns: list[str], new: int) -> list[int]:
    own = published_settings(checkpoint.generation_config)
    config = replace(own, do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=new)
    chat = Chat(model, tokenizer, config, history_tokens=model.config.n_positions)
    (reply,) = candidates(chat, turns, 1)
    return reply.ids


def _their_tokenizer(folder: Path) -> Any:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer.from_pretrained(folder)


def _their_prompt(tokenizer: Any, turns: list[str], turn_prefix: tuple[str, str] | None) -> list[int]:
    """The turns joined by the tokenizer's own end token, as DialoGPT's card says; typed text has no special tokens."""
    prefixes = dict(zip(("user", "assistant"), turn_prefix or ("", ""), strict=True))
    ids: list[int] = []
    for text, role in zip(turns, alternating(len(turns)), strict=True):
        core = prefixes[role].rstrip()
        gap = prefixes[role][len(core) :]
        ids += tokenizer(core, add_special_tokens=False).input_ids
        ids += tokenizer(gap + text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids.append(tokenizer.eos_token_id)
    return ids + list(tokenizer(prefixes["assistant"].rstrip(), add_special_tokens=False).input_ids)


def _their_reply(network: Any, folder: Path, tokenizer: Any, prompt: list[int], new: int) -> list[int]:
    """The tokens of `generate` with the folder's own settings, greedily, without its end token."""
    from transformers import GenerationConfig as TheirConfig

    own = (folder / "generation_config.json").exists()
    settings = TheirConfig.from_pretrained(folder) if own else TheirConfig.from_model_config(network.config)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            max_new_tokens=new,
            pad_token_id=tokenizer.eos_token_id,
        )
    reply: list[int] = output[0, len(prompt) :].tolist()
    ends = settings.eos_token_id
    ended = reply and reply[-1] in (ends if isinstance(ends, list) else [ends])
    return reply[:-1] if ended else reply


def _same_prompts(tokenizer: Any, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's own chat template makes of messages what a chat here makes of them."""
    messages = [
        {"role": role, "content": text} for text, role in zip(DIALOGUES[1], alternating(len(DIALOGUES[1])), strict=True)
    ]
    made = []
    for template in (checkpoint.chat_template, chat_template(checkpoint.turn_prefix)):
        try:
            made.append(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception:  # a template of somebody else's: any error of Jinja's
            return False
    return bool(made[0] == made[1])
