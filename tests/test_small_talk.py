"""What `tiny` learns to answer from: every dialogue keeps to its rules, and what is varied keeps its sense."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from scripts import small_talk
from scripts.small_talk import Turns

WORDS = re.compile(r"[a-z0-9']+")
FORBIDDEN = re.compile(
    r"as an ai|language model|here to help|feel free|how can i assist|\bfavorite|"
    r'\bcolor\b|\bgray\b|["“”;()\[\]{}<>—–…*_#]',
    re.IGNORECASE,
)
# What Tiny never says of itself, as it has no body, no family and has been nowhere.
CONTRADICTIONS = {
    "it is human": r"\bI('m| am) (human|a person|a human|a real person|a man|a woman|a boy|a girl)\b",
    "it eats, drinks or sleeps": r"\bI (ate|drank|slept|woke|cooked) |\bI('m| am) (hungry|thirsty|sleepy)\b",
    "it goes somewhere": r"\bI (went|visited|travelled|drove|flew) ",
    "it has a family": r"\bmy (mum|mom|dad|mother|father|brother|sister|wife|husband|son|daughter)\b",
    "its colour is another": r"\bmy favourite colour is (?!blue)|\bI like (red|green|yellow|pink) best\b",
    "its animal is another": r"\bmy favourite animal is (?!the cat|a cat|cat)",
    "its number is another": r"\bmy favourite number is (?!seven)",
    "its season is another": r"\bmy favourite season is (?!autumn)",
    "its day is another": r"\bmy favourite day is (?!saturday)",
    "it has another name": r"\bmy name is (?!tiny)|\bI('m| am) called (?!tiny)",
}


@pytest.fixture(scope="module")
def dialogues() -> list[Turns]:
    return small_talk.read()


def of_tiny(dialogues: list[Turns]) -> list[str]:
    return [turn for turns in dialogues for turn in turns[1::2]]


def words(turn: str) -> str:
    return " ".join(WORDS.findall(turn.lower())) or turn


def test_there_are_enough_of_them(dialogues: list[Turns]) -> None:
    assert len(dialogues) >= 15_000
    held_out = sum(map(small_talk.is_held_out, dialogues))
    assert 0.045 < held_out / len(dialogues) < 0.06


def test_each_is_a_dialogue(dialogues: list[Turns]) -> None:
    for turns in dialogues:
        assert len(turns) >= 2
        assert len(turns) % 2 == 0
        assert all(turn == turn.strip() and "\n" not in turn for turn in turns)
        assert all(len(turn.split()) <= 45 for turn in turns[::2])


def test_no_two_are_the_same(dialogues: list[Turns]) -> None:
    count = Counter(tuple(words(turn) for turn in turns[::2]) for turns in dialogues)
    assert [said for said, number in count.items() if number > 1] == []


def test_none_is_nearly_one_that_judges(dialogues: list[Turns]) -> None:
    """By the pairs of words that users type: three quarters of them in common are too many."""

    def pairs(turns: Turns) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for turn in map(words, turns[::2]):
            each = turn.split()
            found |= set(pairwise(each)) or {(turn,)}
        return found

    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    found = [pairs(turns) for turns in dialogues]
    teaching = [number for number, turns in enumerate(dialogues) if not small_talk.is_held_out(turns)]
    for number in teaching:
        for pair in found[number]:
            where[pair].append(number)
    for number, turns in enumerate(dialogues):
        if small_talk.is_held_out(turns):
            common = Counter(other for pair in found[number] for other in where[pair])
            near = [other for other, n in common.items() if n / len(found[number] | found[other]) >= 0.75]
            assert not near, (turns, dialogues[near[0]])


def test_tiny_speaks_as_it_should(dialogues: list[Turns]) -> None:
    for turn in of_tiny(dialogues):
        assert 2 <= len(turn.split()) <= 28, turn
        assert turn[-1] in ".!?", turn
        assert not turn[0].islower(), turn
        assert turn.count("?") <= 1, turn
        assert not FORBIDDEN.search(turn), turn


@pytest.mark.parametrize("claim", CONTRADICTIONS)
def test_tiny_is_the_same_everywhere(dialogues: list[Turns], claim: str) -> None:
    contradiction = re.compile(CONTRADICTIONS[claim], re.IGNORECASE)
    assert [turn for turn in of_tiny(dialogues) if contradiction.search(turn)] == []


def test_despair_gets_the_advice_to_call_somebody(dialogues: list[Turns]) -> None:
    despair = re.compile(
        r"\b((want to|wanna) die(?! my hair)|kill myself|end my life|don'?t want to live)\b", re.IGNORECASE
    )
    advice = re.compile(r"call|emergency|someone close", re.IGNORECASE)
    answers = [turns[n + 1] for turns in dialogues for n in range(0, len(turns), 2) if despair.search(turns[n])]
    assert len(answers) > 50
    assert [answer for answer in answers if not advice.search(answer)] == []


# ---- Variations ----


def test_a_swapped_name_is_swapped_everywhere() -> None:
    turns = ["hi im farid", "Hello Farid! How are you?", "fine. what's my name?", "Your name is Farid."]
    for seed in range(20):
        swapped = small_talk._swapped(turns, random.Random(seed))
        (name,) = set(re.findall(r"(?:Hello|is) (\w+)[!.]", f"{swapped[1]} {swapped[3]}"))
        assert name != "Farid"
        assert swapped == [turn.replace("Farid", name).replace("farid", name.lower()) for turn in turns]


def test_a_number_is_swapped_where_it_stands_alone() -> None:
    alone = ["my house is number 48", "A nice number!", "which number is it?", "It is number 48."]
    swapped = small_talk._swapped(alone, random.Random(1))
    assert swapped[0] != alone[0]
    assert swapped[0].split()[-1] == swapped[3].split()[-1].rstrip(".")
    reckoned = ["I am 30 and he is 25", "He is five years younger!", "how old am I?", "You are 30."]
    assert small_talk._swapped(reckoned, random.Random(1)) == reckoned


def test_tinys_own_words_are_never_mistyped() -> None:
    turns = ["What is your name, please?", "My name is Tiny. What's yours?", "Guess!", "I can't guess that. Tell me!"]
    for seed in range(50):
        assert [*small_talk._careless(turns, random.Random(seed))][1::2] == turns[1::2]


def test_copies_differ_and_say_that_nothing_was_told_only_first(dialogues: list[Turns]) -> None:
    some = dialogues[::20]
    conversations = [*small_talk.varied(some, copies=2, seed=1)]
    assert conversations == [*small_talk.varied(some, copies=2, seed=1)]  # from the seed alone
    assert sum(map(len, conversations)) >= 2 * sum(map(len, some))
    both = ["hi, i'm Zora", "Hello Zora!"], ["what's my name?", "You didn't tell me your name yet. What is it?"]
    for seed in range(30):
        for conversation in small_talk.varied(both, copies=1, seed=seed):
            assert "yet" not in conversation[-1] or len(conversation) == 2


def test_only_tinys_turns_count_in_full() -> None:
    assert small_talk.weights_of(["a", "b", "c", "d"], 0.3) == [0.3, 1.0, 0.3, 1.0]
