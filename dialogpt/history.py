"""A dialogue as the model sees it: turns of token ids, each with its end token; old ones are dropped whole.

DialoGPT was trained on whole dialogues joined in this way (Zhang et al., "DialoGPT", 2020, section 3.1); its prompt
names no speakers. Who spoke is kept with the ids, for settings about the bot's own turns. Encoding text is left to
`dialogpt.tokenizer`, replying to `dialogpt.chat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dialogpt.errors import DialogueError
from dialogpt.text.turn_prefix import NO_PREFIX, TurnPrefix

DEFAULT_HISTORY_TOKENS = 256  # Microsoft trained on 128; with long histories the published models fall silent

USER, BOT, SYSTEM = "user", "assistant", "system"  # speakers, by the names of OpenAI's roles; there may be others


class Turn(list[int]):
    """The token ids of one turn, without its end token, and who spoke it.

    Attributes:
        role: `USER`, `BOT`, or another speaker's name.
        interrupted: whether it is a reply that was stopped before its end.
    """

    def __init__(self, ids: Iterable[int], role: str, interrupted: bool = False) -> None:
        super().__init__(ids)
        self.role, self.interrupted = role, interrupted


def alternating(count: int) -> list[str]:
    """The speakers of a dialogue that names none and is to be answered: turns alternate, and the user speaks last.

    Where nothing is answered, as in training data, the user speaks first: `History.add`, `Tokenizer.encode_dialogue`.
    """
    return [USER if (count - place) % 2 else BOT for place in range(count)]


@dataclass(frozen=True)
class Prompt:
    """What the model is shown of a dialogue.

    Attributes:
        ids: the shown turns, each with its end token; in some fine-tunes with prefixes, of which the bot's is the last.
            In a chat with a persona, that text comes first; the other attributes do not count it.
        first_turn: index of the first shown turn; those before it are kept but not shown.
        cut: how many tokens were truncated from the front of the last turn.
        own_turns: the bot's turns among those shown, without end tokens; None where nobody knows who spoke.
    """

    ids: list[int]
    first_turn: int
    cut: int
    own_turns: list[list[int]] | None = None


class History:
    """The turns of a dialogue, oldest first.

    Attributes:
        eos_id: the token that ends every turn.
        turns: ids without their prefix and end token, each with its speaker.
        prefix: what turns begin with in the prompt of a few fine-tunes; of DialoGPT and tiny it is empty everywhere.
    """

    def __init__(self, eos_id: int, turns: Iterable[Sequence[int]] = (), prefix: TurnPrefix = NO_PREFIX) -> None:
        self.eos_id, self.prefix = eos_id, prefix
        self.turns: list[Turn] = []
        for turn in turns:
            self.add(turn)

    def __repr__(self) -> str:
        return f"<History: {len(self.turns)} turns, {sum(map(len, self.turns))} tokens>"

    def add(self, turn: Sequence[int]) -> None:
        """Append a turn; one without a speaker is the bot's after a turn of the user, else the user's.

        Raises:
            DialogueError: it holds the end token, which would make two turns of it.
        """
        if self.eos_id in turn:
            raise DialogueError(f"a turn holds the end token {self.eos_id}; expected one turn without its end")
        if not isinstance(turn, Turn):
            turn = Turn(turn, BOT if self.turns and self.turns[-1].role == USER else USER)
        self.turns.append(turn)

    def prompt(self, history_tokens: int, prompt_room: int) -> Prompt:
        """Return what the model is shown before it replies to the last turn.

        Args:
            history_tokens: how many tokens of dialogue to show; the last turn is shown even if it is longer.
            prompt_room: how long a prompt may be that leaves room for the reply. A longer last turn is truncated at its
                front; `history_tokens` never truncates it.

        Raises:
            DialogueError: there is no turn, or `prompt_room` leaves no room for one.
        """
        prefixes, reply_prefix = [self.prefix.of(turn.role) for turn in self.turns], self.prefix.of(BOT)
        prompt_room -= len(reply_prefix)
        if not self.turns or prompt_room < 1 + len(prefixes[-1]):
            found = f"{len(self.turns)} turns and room for {max(0, prompt_room)} tokens"
            raise DialogueError(f"a prompt needs a turn and room for it; there are {found}")
        lengths = [len(prefix) + len(turn) + 1 for prefix, turn in zip(prefixes, self.turns, strict=True)]
        first = first_shown(lengths, min(history_tokens, prompt_room))
        cut = max(0, sum(lengths[first:]) - prompt_room)  # only a lone last turn can exceed it; its prefix stays
        shown = [turn[cut:] for turn in self.turns[first:]]
        ids = [n for prefix, turn in zip(prefixes[first:], shown, strict=True) for n in (*prefix, *turn, self.eos_id)]
        own_turns = [turn_ids for turn_ids, turn in zip(shown, self.turns[first:], strict=True) if turn.role == BOT]
        return Prompt([*ids, *reply_prefix], first, cut, own_turns)


def first_shown(lengths: Sequence[int], budget: int) -> int:
    """Return the index of the first turn that is shown, a pure function of the turns so far.

    Whenever a turn takes the total over the budget, the oldest turns are dropped until the rest fits half of it. Half,
    so that the next turns extend a prompt that is in the cache rather than move its start each time.

    Example: turns of 4 tokens and a budget of 12. Three turns are shown. The fourth exceeds the budget, so the first
    three are dropped and it is shown alone (4 <= 6); the fifth and sixth are added to it.
    """
    first = total = 0
    for current, length in enumerate(lengths):
        total += length
        if total > budget:
            while total > budget // 2 and first < current:
                total -= lengths[first]
                first += 1
    return first
