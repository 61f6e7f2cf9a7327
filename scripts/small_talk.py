"""Read the small talk that `tiny` is trained on, and augment it.

The dialogues in `weights/tiny/dialogues` were written for this project, one file per subject. A network of seven
million parameters sees each of them several times, and never twice in the same form: the user's turns get typos; names,
towns and numbers that Tiny repeats are replaced, so that it learns to copy rather than to memorize; and several
dialogues are joined into one conversation. Tiny's own turns change only in what was replaced.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "weights" / "tiny" / "dialogues"
HELD_OUT = 20  # one dialogue in this many is never trained on
LOWER_CASE, NO_FULL_STOP, NO_APOSTROPHE, SHORT_FORMS, SLIP = 0.35, 0.3, 0.15, 0.1, 0.06  # shares of the user's turns
INVENTED = 0.25  # share of swapped names that are in no list
REMEMBERING = 3  # times as often as others come those in which something is remembered
SEVERAL = (1, 1, 2, 2, 3)  # how many dialogues make a conversation
WORD = re.compile(r"[A-Za-z]+|[0-9]+")
ADVICE = re.compile(r"call someone close|emergency number|call (your|them|her|him)", re.IGNORECASE)
SHORT = {"you": "u", "are": "r", "your": "ur", "please": "pls", "because": "cuz", "okay": "ok", "going to": "gonna"}
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NO_NAMES = frozenset({  # words with a capital that are no names
    "I", "Tiny", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "January", "February",
    "March", "April", "May", "June", "July", "August", "September", "October", "November", "December", "Christmas",
    "Easter", "Mr", "Mrs", "Miss", "Dr", "Santa", "God", "Internet", "English", "French", "Spanish", "German",
    "Italian", "Russian", "Chinese", "Japanese", "Portuguese", "Polish", "Turkish", "Arabic", "Dutch", "Greek",
    "Korean", "Hindi", "Latin", "Swedish",
})  # fmt: skip
COLOURS = ("red", "green", "yellow", "purple", "pink", "black", "white", "grey", "brown", "turquoise")

Turns = list[str]


def read(*names: str) -> list[Turns]:
    """Read all dialogues, or those of some files, in the order of the files; the user speaks first and Tiny last."""
    paths = [FOLDER / f"{name}.jsonl" for name in names] or sorted(FOLDER.glob("*.jsonl"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["turns"] for line in lines]


def is_held_out(turns: Turns) -> bool:
    """Whether a dialogue is held out for validation; decided by its first words, ignoring case and punctuation."""
    first = " ".join(WORD.findall(turns[0].lower())) or turns[0]
    return int(hashlib.sha256(first.encode()).hexdigest(), 16) % HELD_OUT == 0


def weights_of(turns: Turns, user: float = 0.0, advice: float = 1.0) -> list[float]:
    """Return the loss weight of each turn: `user`, `advice` for Tiny's advice to call someone, else 1."""
    own = [advice if ADVICE.search(turn) else 1.0 for turn in turns]
    return [own[number] if number % 2 else user for number in range(len(turns))]


def varied(dialogues: Sequence[Turns], copies: int, seed: int) -> Iterator[Turns]:
    """Return every dialogue `copies` times, each copy augmented differently, as conversations of one to three of them.

    Dialogues in which Tiny recalls something are repeated REMEMBERING times as often, as copying is hardest to learn.
    """
    draw = random.Random(seed)
    for _ in range(copies):
        pool = [
            [*_careless(_swapped(turns, draw), draw)]
            for turns in dialogues
            for _ in range(REMEMBERING if _remembers(turns) else 1)
        ]
        draw.shuffle(pool)
        while pool:
            conversation: Turns = []
            for _ in range(draw.choice(SEVERAL)):
                if pool and (not conversation or not _contradicts(pool[-1])):
                    conversation += pool.pop()
            yield conversation


def _contradicts(turns: Turns) -> bool:
    """Whether one dialogue must not follow another: it denies having been told what the other tells."""
    return any("tell me" in turn and "yet" in turn for turn in turns[1::2])


def _remembers(turns: Turns) -> bool:
    """Whether Tiny recalls a name, a number or the like from before the user's last turn."""
    for number in range(3, len(turns), 2):
        told = {word.lower() for turn in turns[: number - 1 : 2] for word in WORD.findall(turn)}
        told -= {word.lower() for word in WORD.findall(turns[number - 1])}
        listed = {word for word in WORD.findall(turns[number]) if any(word in kind.words for kind in _kinds())}
        numbers = set(re.findall(r"[0-9]+", turns[number]))
        if any(word.lower() in told for word in listed | numbers | _names(turns[number])):
            return True
    return False


def _names(turn: str) -> set[str]:
    """Return the words that Tiny capitalizes within a sentence: names, listed or not."""
    return set(re.findall(r"(?<=[a-z,'] )[A-Z][a-z]+\b", turn)) - NO_NAMES


# ---- Swapping ----


@dataclass(frozen=True)
class Names:
    """Words of one kind, which can replace each other."""

    words: frozenset[str]
    other: Callable[[random.Random], str]


@cache
def _kinds() -> tuple[Names, ...]:
    """Return names of people and pets, towns and countries, from the lists beside the dialogues."""

    def names(*files: str, invented: float) -> Names:
        words = [word for name in files for word in (FOLDER / "names" / name).read_text(encoding="utf-8").split()]

        def other(draw: random.Random) -> str:
            if draw.random() >= invented:
                return draw.choice(words)
            front, back = draw.choice(words), draw.choice(words)
            return (front[: draw.randint(2, 4)] + back[-draw.randint(2, 4) :].lower()).capitalize()

        return Names(frozenset(words), other)

    return (
        names("people.txt", "pets.txt", invented=INVENTED),
        names("towns.txt", invented=INVENTED),
        names("countries.txt", invented=0),
        Names(frozenset(COUNTS), lambda draw: draw.choice(COUNTS)),
        Names(frozenset(COLOURS), lambda draw: draw.choice(COLOURS)),
    )


@dataclass
class _Swaps:
    """The replacements in one dialogue."""

    found: dict[str, str] = field(default_factory=dict)

    def add(self, word: str, other: Callable[[], str]) -> None:
        """Choose a replacement for a word that no other word of the dialogue has."""
        for _ in range(20):
            new = other()
            if new not in self.found.values() and new != word:
                self.found[word] = new
                return

    def apply(self, match: re.Match[str]) -> str:
        """Return a word's replacement, capitalized like the word."""
        word = match.group()
        if word in self.found:
            return self.found[word]
        if word.islower() and word.capitalize() in self.found:
            return self.found[word.capitalize()].lower()
        if word.capitalize() == word and word.lower() in self.found:
            return self.found[word.lower()].capitalize()
        return word


def _swapped(turns: Turns, draw: random.Random) -> Turns:
    """Replace the names, towns, numbers and colours that Tiny repeats in a dialogue.

    Only words that the user uses first are replaced, so that the network learns to copy.
    """
    swaps = _Swaps()
    told = {word for turn in turns[::2] for word in WORD.findall(turn)}
    told |= {word.capitalize() for word in told}
    given_back = {word for turn in turns[1::2] for word in WORD.findall(turn)} & told
    remembers = _remembers(turns)
    numbers = {word for turn in turns for word in WORD.findall(turn) if word.isdigit() and len(word) > 1}
    people, towns, countries, *others = _kinds()
    for word in sorted(given_back):
        if word in numbers and len(numbers) == 1:  # of several, one may have been reckoned from another
            lowest = 10 ** (len(word) - 1)
            swaps.add(word, lambda lowest=lowest: str(draw.randrange(lowest, 10 * lowest)))  # type: ignore[misc]
        for kind in (people, towns, countries, *(others if remembers else ())):
            if word in kind.words:
                swaps.add(word, lambda kind=kind: kind.other(draw))  # type: ignore[misc]
    if remembers:
        for word in sorted(set().union(*map(_names, turns[1::2])) & given_back - swaps.found.keys()):
            place = re.search(rf"\b(in|from|to|near|leave|left) {word}\b", " ".join(turns), re.IGNORECASE)
            kind = towns if place else people
            swaps.add(word, lambda kind=kind: kind.other(draw))  # type: ignore[misc]
    return [WORD.sub(swaps.apply, turn) for turn in turns]


# ---- Careless typing ----


def _careless(turns: Turns, draw: random.Random) -> Iterator[str]:
    """Yield a dialogue in which the user types carelessly."""
    protected = {word for turn in turns[1::2] for word in WORD.findall(turn) if word[0].isupper() or word[0].isdigit()}
    for number, turn in enumerate(turns):
        yield turn if number % 2 else _mistyped(turn, {word.lower() for word in protected}, draw)


def _mistyped(turn: str, protected: set[str], draw: random.Random) -> str:
    """Return a turn with typos; words that Tiny repeats keep their spelling."""
    if draw.random() < LOWER_CASE:
        turn = turn.lower()
    if draw.random() < NO_FULL_STOP:
        turn = turn.rstrip(".!?") or turn
    if draw.random() < NO_APOSTROPHE:
        turn = turn.replace("'", "")
    if draw.random() < SHORT_FORMS:
        long, short = draw.choice(list(SHORT.items()))
        turn = re.sub(rf"\b{long}\b", short, turn)
    words = [
        match for match in WORD.finditer(turn) if len(match.group()) > 3 and match.group().lower() not in protected
    ]
    if words and draw.random() < SLIP:
        match = draw.choice(words)
        turn = turn[: match.start()] + _slip(match[0], draw) + turn[match.end() :]
    return turn


def _slip(word: str, draw: random.Random) -> str:
    """Return a word with two letters swapped, one dropped, or one doubled; its first letter stays."""
    place = draw.randrange(1, len(word) - 1)
    return draw.choice(
        (
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
        )
    )
