"""Months of synthetic dumps in the real schema, with every quirk, and the dialogues that must come out of them.

A `World` is filled thread by thread; each kind of thread in `KINDS` knows by construction what is expected of it. Run
as a program it writes dumps of any size: `python -m tests.data.reddit.synthetic FOLDER --megabytes 1000 --months 2`.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from dialogpt.data.reddit.comments import base36

_SENTENCE = (
    "people think about their own life here and then it was not what you say because the quick brown fox likes lazy "
    "dogs more than cold rain on a small island where old trains still run every morning before work starts again"
)
WORDS = _SENTENCE.split()
MONTHS = ("2018-03", "2018-04", "2018-05")
START = 1_519_862_400  # 2018-03-01
EXTRA: dict[str, Any] = {  # what a comment of 2018 has besides
    **dict.fromkeys(
        ["author_flair_css_class", "author_flair_text", "collapsed_reason", "distinguished", "removal_reason"]
    ),
    **dict.fromkeys(["can_gild", "no_follow", "send_replies"], True),
    **dict.fromkeys(["can_mod_post", "collapsed", "is_submitter", "score_hidden", "stickied", "author_premium"], False),
    **dict.fromkeys(["controversiality", "gilded", "total_awards_received"], 0),
    "all_awardings": [],
    "awarders": [],
    "permalink": "/r/AskReddit/comments/8klemx/what_is_the_best_thing_about_it_that_nobody_has_said/dz8ktnp/",
    "retrieved_on": 1532000000,
    "rte_mode": "markdown",
    "subreddit_id": "t5_2qh1i",
    "subreddit_name_prefixed": "r/AskReddit",
    "subreddit_type": "public",
    "gildings": {"gid_1": 0, "gid_2": 0, "gid_3": 0},
    "author_fullname": "t2_1x2y3z",
    "author_flair_type": "text",
}

Expected = tuple[str, tuple[str, ...]]  # id and turns


@dataclass
class World:
    """Dumps in the making.

    Attributes:
        random: decides everything.
        lines: of comments, by month.
        submissions: lines, by month.
        expected: the dialogues that the rules of the paper must give.
    """

    random: random.Random
    lines: dict[str, list[bytes]] = field(default_factory=lambda: {month: [] for month in MONTHS})
    submissions: dict[str, list[bytes]] = field(default_factory=lambda: {month: [] for month in MONTHS})
    expected: list[Expected] = field(default_factory=list)
    number: int = 36**4

    def new_id(self) -> str:
        self.number += 1
        return base36(self.number)

    def text(self, least: int = 3, most: int = 20) -> str:
        """A comment that no rule drops; normalized, its sign stands apart."""
        words = ["the", *(self.random.choice(WORDS) for _ in range(self.random.randint(least, most)))]
        for place in range(2, len(words)):  # no word three times running
            if words[place] == words[place - 1]:
                words[place] = "other" if words[place - 1] != "other" else "another"
        return f"{' '.join(words)}."

    def submission(self, month: str = MONTHS[0], comments: int = 9) -> str:
        """A new thread."""
        link = f"t3_{self.new_id()}"
        record = {"id": link[3:], "title": f"About {self.text()}", "num_comments": comments, "score": 5,
                  "domain": "self", "permalink": f"/r/AskReddit/comments/{link[3:]}/about/", "subreddit": "AskReddit",
                  "created_utc": START, "selftext": "", "author": "somebody"}  # fmt: skip
        self.submissions[month].append(orjson.dumps(record))
        return link

    def comment(self, link: str, parent: str, body: str, month: str = MONTHS[0], **changes: Any) -> str:
        """A comment; returns its full name."""
        id_ = self.new_id()
        record = {
            "author": f"user{self.random.randrange(10**6)}",
            "body": body,
            "created_utc": START + self.number % 10**6,
            "edited": self.random.choice([False, 1520000000.0, 1520000000]),
            "id": id_,
            "link_id": link,
            "parent_id": parent,
            "score": self.random.randint(1, 50),
            "subreddit": "AskReddit",
            **EXTRA,
        }
        record.update(changes)
        self.lines[month].append(orjson.dumps(record))
        return f"t1_{record['id']}"

    def chain(
        self, link: str, length: int, months: tuple[str, ...] = MONTHS[:1], **last: Any
    ) -> tuple[list[str], list[str]]:
        """So many comments, each an answer to the one before; returns their names and texts."""
        names, texts = [link], []
        for place in range(length):
            texts.append(self.text())
            changes = last if place == length - 1 else {}
            month = months[place * len(months) // length]
            names.append(self.comment(link, names[-1], texts[-1], month, **changes))
        return names[1:], texts

    def expect(self, link: str, parent: str, target: str, texts: list[str]) -> None:
        """A dialogue must come out; no more than 5 turns of it."""
        turns = tuple(f"{text.removesuffix('.')} ." for text in texts[-5:])
        self.expected.append((f"{link},{parent},{target}", turns))


def plain(world: World) -> None:
    link = world.submission()
    names, texts = world.chain(link, world.random.randint(2, 8))
    world.expect(link, names[-2], names[-1], texts)


def branches(world: World) -> None:
    link = world.submission()
    names, texts = world.chain(link, 2)
    for _ in range(3):
        text = world.text()
        world.expect(link, names[-1], world.comment(link, names[-1], text), [*texts, text])


def across_months(world: World) -> None:
    """The extractor loses the beginning of such a thread."""
    link = world.submission()
    names, texts = world.chain(link, 5, MONTHS)
    world.expect(link, names[-2], names[-1], texts)


def long_turn(world: World) -> None:
    """More than 30 words cut the context, and end it for what comes before."""
    link = world.submission()
    names, texts = world.chain(link, 2)
    world.expect(link, names[0], names[1], texts)
    long = world.comment(link, names[-1], world.text(40, 60))
    first, second = world.text(), world.text()
    answer = world.comment(link, long, first)
    world.expect(link, answer, world.comment(link, answer, second), [first, second])


def dropped_reply(world: World) -> None:
    """A reply that cannot be used leaves the comment before it as the end."""
    link = world.submission()
    names, texts = world.chain(link, 3)
    bodies = ["[deleted]", "[removed]", "> somebody said\n\nthe that is not right", "&gt; somebody said", "yes"]
    world.comment(link, names[-1], world.random.choice(bodies))
    world.expect(link, names[-2], names[-1], texts)


def deleted_later(world: World) -> None:
    link = world.submission()
    names, texts = world.chain(link, 3)
    meta: dict[str, Any] = world.random.choice([{"was_deleted_later": True}, {"removal_type": "moderator"}])
    world.comment(link, names[-1], world.text(), _meta={"retrieved_2nd_on": START, **meta})
    world.expect(link, names[-2], names[-1], texts)


def bot(world: World) -> None:
    link = world.submission()
    names, texts = world.chain(link, 2)
    world.comment(
        link, names[-1], "the answer of a program", author=world.random.choice(["AutoModerator", "remindmebot"])
    )
    world.expect(link, names[-2], names[-1], texts)


def low_score(world: World) -> None:
    """Below 1; null, as in 2017-10 and 2017-11, counts as 0."""
    world.chain(world.submission(), 3, score=world.random.choice([0, -7, None]))


def dropped_dialogue(world: World) -> None:
    link = world.submission()
    names, _ = world.chain(link, 2)
    bodies = ["the see http://example.org now", "the see [this] now", "the READING of it", "the no no no of it",
              "the " + "a" * 31, "zzz qqq xxx"]  # fmt: skip
    world.comment(link, names[-1], world.random.choice(bodies))


def numeric_ids(world: World) -> None:
    """Of Pushshift's API in 2023: the parent is a number, of a comment or of the submission."""
    link = world.submission()
    first, second = world.text(), world.text()
    one = world.comment(link, int(link[3:], 36), first)  # type: ignore[arg-type]
    two = world.comment(link, int(one[3:], 36), second, created_utc=str(START), edited=True)  # type: ignore[arg-type]
    world.expect(link, one, two, [first, second])


def missing_parent(world: World) -> None:
    link = world.submission()
    first, second = world.text(), world.text()
    one = world.comment(link, f"t1_{world.new_id()}", first)
    world.expect(link, one, world.comment(link, one, second, created_utc=str(START + 7)), [first, second])


def loop(world: World) -> None:
    """Two comments that answer each other, and one that answers the second."""
    link = world.submission()
    first, second, third = world.text(), world.text(), world.text()
    one = f"t1_{base36(world.number + 2)}"
    two = world.comment(link, one, second)
    assert world.comment(link, two, first) == one
    world.expect(link, two, world.comment(link, two, third), [first, second, third])


def duplicates(world: World) -> None:
    """The same comment in two dumps; in the second it was deleted."""
    link = world.submission()
    names, texts = world.chain(link, 3)
    last = world.text()
    gone = world.comment(link, names[-1], last)
    world.comment(link, names[-1], "[deleted]", MONTHS[1], id=gone[3:])
    world.comment(link, names[-2], texts[-1], MONTHS[1], id=names[-1][3:], created_utc=START - 5)
    world.expect(link, names[-2], names[-1], texts)


KINDS: tuple[Callable[[World], None], ...] = (
    plain, plain, plain, branches, across_months, long_turn, dropped_reply, deleted_later, bot, low_score,
    dropped_dialogue, numeric_ids, missing_parent, loop, duplicates,
)  # fmt: skip


def filled(threads: int, seed: int = 0, kinds: tuple[Callable[[World], None], ...] = KINDS) -> World:
    """A world with so many threads, at least one of each kind."""
    world = World(random.Random(seed))
    for number in range(max(threads, len(kinds))):
        kinds[number % len(kinds)](world)
    return world


def pack(lines: list[bytes], path: Path) -> Path:
    """Write lines in the format of the suffix; zstandard in two frames."""
    data = b"\n".join([*lines, b""])
    if path.suffix == ".zst":
        half = len(data) // 3
        data = b"".join(zstandard.ZstdCompressor(level=1).compress(piece) for piece in (data[:half], data[half:]))
    elif path.suffix == ".gz":
        data = gzip.compress(data, 1)
    path.write_bytes(data)
    return path


def write(world: World, folder: Path, suffixes: tuple[str, ...] = (".zst", ".gz", "")) -> tuple[list[Path], list[Path]]:
    """Write the dumps of all months, lines in random order; returns those of comments and of submissions."""
    folder.mkdir(parents=True, exist_ok=True)
    comments, submissions = [], []
    for month, suffix in zip(MONTHS, suffixes * len(MONTHS), strict=False):
        world.random.shuffle(world.lines[month])
        comments.append(pack(world.lines[month], folder / f"RC_{month}{suffix}"))
        submissions.append(pack(world.submissions[month], folder / f"RS_{month}{suffix}"))
    return comments, submissions


def lines_of_size(megabytes: float, seed: int) -> Iterator[bytes]:
    """Lines of about so many bytes in all, a hundred threads at a time, which are mixed."""
    total, world = 0.0, World(random.Random(seed))
    world.number += seed * 36**4
    while total < megabytes * 1e6:
        for number in range(100):
            KINDS[number % len(KINDS)](world)
        lines = [line for month in world.lines.values() for line in month]
        world.random.shuffle(lines)
        yield from lines
        total += sum(map(len, lines)) + len(lines)
        world.lines = {month: [] for month in MONTHS}
        world.submissions = {month: [] for month in MONTHS}
        world.expected.clear()


def main(argv: list[str]) -> int:
    """Write RC_YYYY-MM.zst files for measuring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--months", type=int, default=1)
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    for month in range(options.months):
        path = options.folder / f"RC_2018-{month + 1:02d}.zst"
        with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as packed:
            for line in lines_of_size(options.megabytes / options.months, month + 1):
                packed.write(line + b"\n")
        print(path, path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
