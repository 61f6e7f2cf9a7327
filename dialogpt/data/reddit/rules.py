"""Which comments and dialogues are kept: every rule by name, with its source, and the settings of a run.

`RULES` is the list that the documentation, the data card and the report show. The rules are those of the paper
(DialoGPT, arXiv:1911.00536, section 2) and of its extractor (microsoft/DialoGPT, reddit_extractor/src/reddit.py, with
configs/Makefile.local). Where the extractor surprises, `like_original` says which way is taken.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt.errors import DialogueError
from dialogpt.files.plain_file import require_plain_file

PAPER, STRICT, ORIGINAL = "paper", "strict", "like-original"
_SHIPPED_BOTS = Path(__file__).with_name("bots.txt")
_PIECE = re.compile(r"[a-z0-9_]+|[^\sa-z0-9_]")


class Rule(NamedTuple):
    """A reason to leave something out.

    Attributes:
        name: as the report counts it.
        of: "comment", which is judged alone in stage 1, or "dialogue", in stage 2.
        sets: the sets of rules that apply it.
        source: where it comes from.
        meaning: what is left out.
    """

    name: str
    of: str
    sets: tuple[str, ...]
    source: str
    meaning: str


_ALL = (PAPER, STRICT, ORIGINAL)
_OURS = (PAPER, STRICT)

RULES = (
    Rule("unreadable", "comment", _ALL, "ours", "a line that is no comment; see problems.txt"),
    Rule("duplicate", "comment", _ALL, "ours", "the same id again, as where dumps overlap"),
    Rule("other_thread", "comment", _ALL, "reddit.py:192-195", "not among the keys or the threads that were asked for"),
    Rule("deleted", "comment", _ALL, "reddit.py:196", "the text is [deleted]"),
    Rule("removed", "comment", _OURS, "ours", "the text is [removed] or [deleted by user]"),
    Rule("deleted_later", "comment", _ALL, "ours, --respect-deletions", "deleted or removed after the first reading"),
    Rule("bot", "comment", _OURS, "ours, --bots", "written by a bot of the list; strict: by anybody called ...bot"),
    Rule("subreddit", "comment", _ALL, "reddit.py:376-382", "in a blocked subreddit, or not in an allowed one"),
    Rule("quote", "comment", _ALL, "reddit.py:198", "> or &gt; anywhere in the text"),
    Rule("no_submission", "comment", (ORIGINAL,), "reddit.py:200-207", "no submission of the same month, with at least "
         "2 comments (only where --submissions is given)"),
    Rule("short", "comment", _ALL, "reddit.py:204", "fewer than 2 words"),
    Rule("long", "comment", _ALL, "reddit.py:228", "more than 30 words; it ends the context of its replies"),
    Rule("answered", "dialogue", _ALL, "reddit.py:348-352", "not the end of a path: part of a longer dialogue"),
    Rule("not_a_key", "dialogue", _ALL, "reddit.py:360-363", "its last turn is not among the keys or the test ids"),
    Rule("low_score", "dialogue", _ALL, "reddit.py:384-391", "the reply has a score below 1; no score counts as 0"),
    Rule("no_context", "dialogue", _ALL, "reddit.py:397", "fewer than 2 turns"),
    Rule("empty_turn", "dialogue", _OURS, "ours", "a turn of the context is empty once it is normalized"),
    Rule("empty_target", "dialogue", _ALL, "reddit.py:253", "the reply is empty once it is normalized"),
    Rule("long_word", "dialogue", _ALL, "reddit.py:259", "a word of more than 30 characters in the reply"),
    Rule("too_long", "dialogue", _ALL, "paper; reddit.py:278", "more than 200 words in all turns together"),
    Rule("url", "dialogue", _ALL, "paper; reddit.py:284", "a link in any turn"),
    Rule("markup", "dialogue", _ALL, "paper; reddit.py:289", "any of [ ] ( ) in any turn"),
    Rule("capitals", "dialogue", _ALL, "reddit.py:294", "five capitals in a row in any turn"),
    Rule("repetition", "dialogue", _ALL, "paper; reddit.py:299", "the same word three times running in the reply"),
    Rule("no_common_word", "dialogue", _OURS, "paper", "none of the 50 most frequent English words in the reply"),
    Rule("bland", "dialogue", _ALL, "paper, --bland", "90 % of the reply's tri-grams are on the list of frequent ones"),
    Rule("offensive", "dialogue", _OURS, "paper, --blocked-words", "no turn after the first is without a blocked word"),
    Rule("self_reply", "dialogue", (STRICT,), "ours", "two turns in a row by the same author"),
    Rule("echo", "dialogue", (STRICT,), "ours", "the reply repeats the turn before it"),
)  # fmt: skip


@dataclass(frozen=True)
class Phrases:
    """Words and phrases to be found in texts, as whole words and in any case.

    Attributes:
        lines: the phrases.
    """

    lines: tuple[str, ...] = ()

    @cached_property
    def _by_first_piece(self) -> dict[str, list[list[str]]]:
        table: dict[str, list[list[str]]] = {}
        for line in self.lines:
            if pieces := _PIECE.findall(line.lower()):
                table.setdefault(pieces[0], []).append(pieces)
        return table

    def found_in(self, text: str) -> bool:
        """Whether one of the phrases is in a text; with 10,000 phrases as fast as with 10."""
        if not self.lines:
            return False
        pieces, table = _PIECE.findall(text.lower()), self._by_first_piece
        return any(
            pieces[n : n + len(phrase)] == phrase for n, piece in enumerate(pieces) for phrase in table.get(piece, ())
        )


@dataclass(frozen=True)
class Rules:
    """The settings of a run.

    Attributes:
        name: "paper" or "strict".
        like_original: do what the published extractor does, also where that looks like an oversight.
        min_turn_words, max_turn_words: of a comment.
        min_turns, max_turns: of a dialogue.
        max_words: of a dialogue.
        min_score: of its last turn.
        leaves_only: only comments that nobody answered end a dialogue; False for the test set.
        respect_deletions: leave out what was deleted or removed after it was first read.
        titles: the title of the submission is the first turn.
        need_submission: see the rule no_submission.
        plain_text: write the text as it was typed; the rules look at the normalized one all the same.
        bots: names in lower case.
        blocked_subreddits, allowed_subreddits: names in lower case; none allowed means all.
        blocked_words: words and phrases; turns with one of them get the weight 0.
        frequent_trigrams: see the rule bland.
        kept_keys: "t3_...,t1_..." of the only comments that may end a dialogue; None is all.
        needed_keys: "t3_...,t1_..." of the only comments that may be turns; None is all.
        discarded_targets: SHA-224 of turns that get the weight 0.
        targets: "t3_...,t1_...,t1_..." of the only comments that may end a dialogue; None is all.
        threads: "t3_..." of the only threads that are read; None is all.
    """

    name: str = PAPER
    like_original: bool = False
    min_turn_words: int = 2
    max_turn_words: int = 30
    min_turns: int = 2
    max_turns: int = 5
    max_words: int = 200
    min_score: int = 1
    leaves_only: bool = True
    respect_deletions: bool = True
    titles: bool = False
    need_submission: bool = False
    plain_text: bool = False
    bots: frozenset[str] = frozenset()
    blocked_subreddits: frozenset[str] = frozenset()
    allowed_subreddits: frozenset[str] = frozenset()
    blocked_words: Phrases = Phrases()
    frequent_trigrams: frozenset[str] = frozenset()
    kept_keys: frozenset[str] | None = None
    needed_keys: frozenset[str] | None = None
    discarded_targets: frozenset[str] = frozenset()
    targets: frozenset[str] | None = None
    threads: frozenset[str] | None = None

    @property
    def set_name(self) -> str:
        """The set of `RULES` that applies."""
        return ORIGINAL if self.like_original else self.name

    @property
    def strict(self) -> bool:
        """Whether the stricter rules apply, too."""
        return self.name == STRICT and not self.like_original

    def applied(self) -> tuple[Rule, ...]:
        """The rules that this run applies."""
        return tuple(rule for rule in RULES if self.set_name in rule.sets)

    def summary(self) -> dict[str, Any]:
        """The settings for people and for run.json: long lists as their length and a short digest."""
        return {field.name: _shown(getattr(self, field.name)) for field in fields(self)}


def _shown(value: Any) -> Any:
    if isinstance(value, Phrases):
        value = value.lines
    if not isinstance(value, (frozenset, tuple)):
        return value
    content = "\n".join(sorted(map(str, value)))
    return {"entries": len(value), "sha256": hashlib.sha256(content.encode()).hexdigest()[:16]}


def read_list(path: Path) -> list[str]:
    """The lines of a list, without empty ones and comments, which begin with #.

    Args:
        path: text, or text packed by gzip.

    Raises:
        DialogueError: it cannot be read, or is not UTF-8.
    """
    try:
        require_plain_file(path)
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise DialogueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise DialogueError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); save the list as UTF-8"
        ) from None
    return [line for line in map(str.rstrip, text.split("\n")) if line and not line.startswith("#")]


def read_names(path: Path | None) -> frozenset[str]:
    """Names of subreddits or authors in lower case, with or without r/ and u/; none without a file."""
    return frozenset(re.sub(r"^/?[ru]/", "", line.strip().lower()) for line in read_list(path)) if path else frozenset()


def shipped_bots() -> frozenset[str]:
    """Well-known bots, in lower case."""
    return read_names(_SHIPPED_BOTS)


def read_phrases(path: Path | None) -> Phrases:
    """Blocked words and phrases, one a line."""
    return Phrases(tuple(read_list(path))) if path else Phrases()


def read_keys(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The keys that Microsoft published: which comments may end a dialogue ("keep"), and which may be turns ("dep").

    Args:
        path: lines of link id, tab, comment id, tab, keep or dep; usually packed by gzip.

    Raises:
        DialogueError: a line is not so.
    """
    found: dict[str, set[str]] = {"keep": set(), "dep": set()}
    for number, line in enumerate(read_list(path), 1):
        parts = line.split("\t")
        if len(parts) != 3 or parts[2] not in found:
            raise DialogueError(
                f"{path}, line {number}: expected link id, comment id and keep or dep, got {line[:60]!r}"
            )
        found[parts[2]].add(f"{parts[0]},{parts[1]}")
    return frozenset(found["keep"]), frozenset(found["dep"])


def common_words(text: Iterable[str]) -> bool:
    """Whether one of the words is among the 50 most frequent of English."""
    return any(word.lower() in COMMON_WORDS for word in text)


_FREQUENT = (
    "the of and a to in is you that it he was for on are as with his they i at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if"
)
COMMON_WORDS = frozenset(_FREQUENT.split())
