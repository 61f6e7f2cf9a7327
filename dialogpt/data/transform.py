"""What is done to each dialogue between its file and its use: one function a setting of `Reading`, in this order.

    system          system messages become turns of weight 0, or are left out
    merge           consecutive messages of one person become one turn
    eos in text     the letters <|endoftext|> inside of a turn stay text, or end it
    redact          addresses, numbers and links are masked
    bot             whose turns are targets
    names           speakers become numbers
    max turns       long dialogues are cut
    check_enough    nothing to learn is a reason

A dialogue that nothing applies to is passed through as it is, as most of a large file is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from itertools import chain

from dialogpt.data.dialogue import Dialogue, check_enough, check_values
from dialogpt.data.settings import ANYBODY, Reading
from dialogpt.errors import DialogueError

END_OF_TEXT = "<|endoftext|>"
SYSTEM = "system"
Shape = tuple[int, tuple[float, ...] | None, tuple[str, ...] | None]  # turns, weights, speakers
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_DOMAINS = "com|org|net|edu|gov|info|biz|io|dev|app|xyz|online|site|shop|de|fr|nl|uk|ru|jp|cn|br|pl|ch|eu|ca|au"
_DOMAINS_WITH_PATH = f"{_DOMAINS}|co|ly|me|gg|gl|tv|be|it|es|to|in|is|at|us"  # alone they are words: "yes.it is"
_TAIL = r"\S*[^\s.,;:!?)\]}\"'>]"  # of a link: what ends the sentence is not in it
_LINK = re.compile(
    rf"(?:https?://|www\.){_TAIL}"
    rf"|(?<![\w.@-])(?:[\w-]{{1,63}}\.){{1,5}}(?:(?:{_DOMAINS_WITH_PATH})/{_TAIL}|(?:{_DOMAINS})/?(?![\w-]|\.\w))",
    re.IGNORECASE,
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"  # or a month
_DATE = "|".join(
    (
        r"\d{4}(?P<iso>[-/.])\d\d?(?P=iso)\d\d?(?![-/.]?\d)",
        rf"{_DAY}(?P<between>[-/.] ?){_DAY}(?P=between)(?:\d{{4}}|\d\d)(?![-/.]?\d)",
        r"(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d(?![-/.]?\d)",  # years
    )
)
_AMOUNT = "|".join(
    (
        r"\d[\d., ']{0,14}(?<=\d) ?(?:[$€£¥₹]|(?:EUR|USD|GBP|CHF|kr|euros?|dollars?|pounds?)\b)",
        r"(?<=[$€£¥₹])\d[\d.,']{0,14}",
        r"[1-9]\d{0,2}(?:,\d{3}){1,5}(?:\.\d{1,9})?(?!,?\d)",
        r"[1-9]\d?(?P<thousands>[. '])\d{3}(?:(?P=thousands)\d{3}){0,5}(?:,\d{1,9})?(?![- .]?\d)",
        r"\d{1,15}[.,]\d\d?(?![ ().,/-]{0,2}\d)",
        r"\d[.,]\d{4,14}(?![ ().,/-]{0,2}\d)",
    )
)
_PHONE = re.compile(rf"(?<![\w.])(?:(?P<kept>{_DATE}|{_AMOUNT})|\+?\(?\d(?:[ ()/.-]{{0,2}}\d){{6,14}}(?!\w))")


class Transformer:
    """Applies the settings of a run to its dialogues.

    Attributes:
        reading: the settings.
        met: where a bot is named, the speakers that were met, the first hundred of them, should it not be there.
    """

    MAX_MET = 100
    MAX_SHAPES, MAX_TURNS = 1000, 100  # that are remembered

    def __init__(
        self, reading: Reading, *, min_turns: int | None = None, reverse: bool = False, trains: bool = True
    ) -> None:
        """Take the settings.

        Args:
            reading: the settings.
            min_turns: in place of theirs.
            reverse: whether dialogues are turned round at the end.
            trains: whether they are training data; see `check`.
        """
        self.reading = reading
        self.min_turns = reading.min_turns if min_turns is None else max(min_turns, reading.min_turns)
        self.reverse, self.trains = reverse, trains
        self.met: dict[str, None] = {}
        self._kept: set[Shape] = set()  # of dialogues that are given back as they are
        changed = reading.redact or reading.names or reading.bot is not None or reading.max_turns is not None
        self._plain = not changed and reading.eos_in_text == "keep"

    def keeps(self, dialogues: Sequence[Dialogue]) -> bool:
        """Whether `apply` is known to give each of these back as it is, as mostly; seen for all of them at once.

        Texts that pass together pass alone. All else that `apply` looks at are numbers of turns, weights and speakers;
        these are the same in many dialogues, of which one is tried.
        """
        if not self._plain or self.reverse or any(dialogue.references for dialogue in dialogues):
            return False
        turns = chain.from_iterable([dialogue.turns for dialogue in dialogues])
        weights = [dialogue.weights for dialogue in dialogues if dialogue.weights is not None]
        try:
            check_values(Dialogue([*turns], [*chain.from_iterable(weights)] if weights else None))
        except DialogueError:
            return False
        shapes = {_shape(dialogue): dialogue for dialogue in dialogues}
        for shape in shapes.keys() - self._kept:
            dialogue = shapes[shape]
            if not any(kept is dialogue for kept in self.apply(dialogue, lambda reason: None)):
                return False
            if len(dialogue.turns) <= self.MAX_TURNS and len(self._kept) < self.MAX_SHAPES:
                self._kept.add(shape)
        return True

    def apply(self, dialogue: Dialogue, on_problem: Callable[[str], None]) -> list[Dialogue]:
        """What becomes of a dialogue: none, one or several.

        Args:
            dialogue: as it was read; it may be changed.
            on_problem: is told why it, or a piece of it, is left out.
        """
        try:
            check_values(dialogue)
            pieces = [dialogue] if self._plain and dialogue.speakers is None else self._pieces(dialogue)
        except DialogueError as error:
            on_problem(str(error))
            return []
        kept = []
        for piece in pieces:
            try:
                check_enough(piece, min_turns=self.min_turns, reverse=self.reverse, trains=self.trains)
            except DialogueError as error:
                on_problem(str(error))
            else:
                kept.append(piece.reversed() if self.reverse else piece)
        return kept

    def _pieces(self, dialogue: Dialogue) -> list[Dialogue]:
        reading, references = self.reading, dialogue.references
        if dialogue.speakers is not None:
            if reading.bot is not None and len(self.met) < self.MAX_MET:
                self.met.update(dict.fromkeys(dialogue.speakers))
            dialogue = self._merged(without_system(dialogue, reading.system == "drop"))
        if reading.eos_in_text == "split" and any(END_OF_TEXT in turn for turn in dialogue.turns):
            dialogue = split_at_end_of_text(dialogue)
        if reading.redact or reading.names or reading.bot is not None:
            dialogue = self._changed(dialogue)
        pieces = [dialogue] if reading.max_turns is None else cut(dialogue, reading.max_turns)
        pieces[-1].references = [redacted(text) for text in references] if reading.redact else references
        return pieces

    def _merged(self, dialogue: Dialogue) -> Dialogue:
        found = merged(dialogue)
        speakers = found.speakers or []
        if len(speakers) == 1 < min(len(dialogue.turns), self.min_turns) and self.reading.eos_in_text == "keep":
            raise DialogueError(
                f"1 turn, at least {self.min_turns} needed: all {len(dialogue.turns)} messages are by one speaker"
            )
        return found

    def _changed(self, dialogue: Dialogue) -> Dialogue:
        reading, speakers = self.reading, dialogue.speakers
        turns = [redacted(turn) for turn in dialogue.turns] if reading.redact else dialogue.turns
        weights = dialogue.weights
        if reading.bot == ANYBODY:
            weights = None if speakers is None else [float(speaker != SYSTEM) for speaker in speakers]
        elif reading.bot is not None:
            if speakers is None:
                raise DialogueError(f"nobody says who speaks, so that the turns of {reading.bot!r} are not known")
            weights = [float(speaker == reading.bot) for speaker in speakers]
        if reading.names and speakers is not None:
            turns, speakers = numbered(turns, speakers)
        return Dialogue(turns, weights, speakers, dialogue.line)

    def require_bot(self) -> None:
        """Raise if nobody has the name that was asked for.

        Raises:
            DialogueError: as said; it names who there is.
        """
        bot = self.reading.bot
        if bot not in (None, ANYBODY) and bot not in self.met and len(self.met) < self.MAX_MET:
            others = ", ".join(map(repr, [*self.met][:10])) or "nobody, as it does not say who speaks"
            raise DialogueError(f"nobody is called {bot!r} there; --bot takes one of: {others}")


def _shape(dialogue: Dialogue) -> Shape:
    weights, speakers = dialogue.weights, dialogue.speakers
    return (
        len(dialogue.turns),
        None if weights is None else tuple(weights),
        None if speakers is None else tuple(speakers),
    )


def without_system(dialogue: Dialogue, drop: bool) -> Dialogue:
    """System messages as turns of weight 0, or left out."""
    speakers = dialogue.speakers
    if speakers is None or SYSTEM not in speakers:
        return dialogue
    kept = [n for n, speaker in enumerate(speakers) if not (drop and speaker == SYSTEM)]
    weights = dialogue.weights or [1.0] * len(speakers)
    weights = [0.0 if speakers[n] == SYSTEM else weights[n] for n in kept]
    return Dialogue([dialogue.turns[n] for n in kept], weights, [speakers[n] for n in kept], dialogue.line)


def merged(dialogue: Dialogue) -> Dialogue:
    """One turn of what one person says in a row, a line each; it counts as little as the least of them."""
    speakers = dialogue.speakers
    if speakers is None or not any(map(operator.eq, speakers, speakers[1:])):
        return dialogue
    parts: list[list[str]] = []
    who: list[str] = []
    weights: list[float] | None = None if dialogue.weights is None else []
    for number, (speaker, turn) in enumerate(zip(speakers, dialogue.turns, strict=True)):
        weight = 1.0 if dialogue.weights is None else dialogue.weights[number]
        if who and who[-1] == speaker:
            parts[-1].append(turn)
            if weights is not None:
                weights[-1] = min(weights[-1], weight)
            continue
        who.append(speaker)
        parts.append([turn])
        if weights is not None:
            weights.append(weight)
    return Dialogue(["\n".join(part) for part in parts], weights, who, dialogue.line)


def split_at_end_of_text(dialogue: Dialogue) -> Dialogue:
    """Turns ended where <|endoftext|> stands in them; who speaks is not known then."""
    turns, weights = [], []
    for number, turn in enumerate(dialogue.turns):
        for part in turn.split(END_OF_TEXT):
            if part.strip():
                turns.append(part.strip())
                weights.append(1.0 if dialogue.weights is None else dialogue.weights[number])
    return Dialogue(turns, None if dialogue.weights is None else weights, None, dialogue.line)


def redacted(text: str) -> str:
    """Text whose e-mail addresses, links and phone numbers are masked; dates and amounts of as many digits stay."""
    text = _LINK.sub("__url__", _EMAIL.sub("__email__", text))  # __url__ is what DialoGPT's own data has
    return _PHONE.sub(lambda match: match["kept"] or "__phone__", text)


def numbered(turns: list[str], speakers: list[str]) -> tuple[list[str], list[str]]:
    """Speakers as numbers, in the order in which they speak; their names in the text as "Person 2"."""
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(speakers), 1)}
    longest_first = sorted((name for name in numbers if name.strip()), key=len, reverse=True)
    if longest_first:
        names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        turns = [names.sub(lambda match: f"Person {numbers[match[0]]}", turn) for turn in turns]
    return turns, [numbers[name] for name in speakers]


def cut(dialogue: Dialogue, max_turns: int) -> list[Dialogue]:
    """Pieces of at most so many turns; each begins with the last turn of the one before, to be answered."""
    turns, weights, speakers = dialogue.turns, dialogue.weights, dialogue.speakers
    parts = [slice(start, start + max_turns) for start in range(0, max(1, len(turns) - 1), max_turns - 1)]
    return [
        Dialogue(turns[part], weights and weights[part], speakers and speakers[part], dialogue.line) for part in parts
    ]
