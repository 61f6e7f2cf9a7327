"""What is written beside the dialogues when all is done: counts by rule, problems, and a data card for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dialogpt.data.reddit.comments import SUBMISSIONS
from dialogpt.data.reddit.rules import Rules
from dialogpt.data.reddit.stages import Report
from dialogpt.data.reddit.work import Job
from dialogpt.files.disk import write_atomically

_TOTALS = {
    "comments": "comments read",
    "submissions": "submissions read",
    "usable": "comments that may be turns",
    "threads": "threads",
    "dialogues": "dialogues written",
    "turns": "turns in them",
}


def finish(job: Job, segments: Sequence[dict[str, Any]], parts: Sequence[Report]) -> dict[str, Any]:
    """Write problems.txt, the data card and, last of all, report.json.

    Args:
        job: what was done.
        segments: of all dumps in order, each with path, report and, if it is a dump's last, sha256 and lines.
        parts: reports of stage 2.

    Returns:
        The content of report.json.
    """
    total, problems = Report(), []
    for segment in segments:
        report = Report.from_json(segment["report"])
        total.counts.update(report.counts)
        problems += [f"{segment['path']}, line {line}: {reason}\n" for line, reason in report.problems]
    for part in parts:
        total.counts.update(part.counts)
    content = {
        "sources": [
            {name: segment[name] for name in ("path", "kind", "sha256", "lines", "truncated")}
            for segment in segments
            if segment["last"]
        ],
        "rules": job.rules.summary(),
        "form": job.form,
        "totals": {name: total.counts[name] for name in _TOTALS},
        "dropped": {rule.name: total.counts[rule.name] for rule in job.rules.applied()},
    }
    write_atomically(job.out / "problems.txt", "".join(problems))
    write_atomically(job.out / "README.md", data_card(job.rules, content))
    write_atomically(job.out / "report.json", json.dumps(content, indent=1) + "\n")
    return content


def data_card(rules: Rules, content: dict[str, Any]) -> str:
    """The data card, in Markdown."""
    counts: Counter[str] = Counter({**content["totals"], **content["dropped"]})
    totals = [
        f"| {meaning} | {counts[name]:,} |" for name, meaning in _TOTALS.items() if counts[name] or name != SUBMISSIONS
    ]
    dropped = [
        f"| `{rule.name}` | {rule.of} | {rule.meaning} | {rule.source} | {counts[rule.name]:,} |"
        for rule in rules.applied()
    ]
    sources = [
        f"| {source['path']} | {source['kind']} | {source['lines']:,} | {'yes' if source['truncated'] else 'no'} | "
        f"`{source['sha256']}` |"
        for source in content["sources"]
    ]
    shown = {
        name: f"{value['entries']:,} entries" if isinstance(value, dict) else value
        for name, value in rules.summary().items()
    }
    settings = [f"| `{name}` | {value} |" for name, value in shown.items()]
    return "\n".join(
        [
            "# Dialogues from Reddit",
            "Made by `dialogpt data reddit`. Each dialogue is a path in a comment tree, oldest turn first; with it "
            "come `id` (thread, parent and comment), `subreddit`, `score` and `created_utc` of its last turn, and a "
            "weight for each turn: 0 is context only.",
            "",
            *_table("| what | count |", totals),
            "## Left out, by rule",
            f"The rules are those of the set `{rules.set_name}`. The first that applies counts.",
            "",
            *_table("| rule | of | what is left out | source | count |", dropped),
            "## Settings",
            *_table("| setting | value |", settings),
            "## Sources",
            *_table("| file | kind | lines | truncated | SHA-256 |", sources),
            *_NOTES,
            "",
        ]
    )


def _table(head: str, rows: Sequence[str]) -> list[str]:
    return [head, "|" + " --- |" * (head.count("|") - 1), *rows, ""]


_NOTES = (
    "## Licence",
    "The comments belong to those who wrote them; Reddit's terms apply to their use. The dumps grant no licence, and "
    "neither does this card: whoever trains on the data or passes it on has to know what their law and Reddit's terms "
    "allow.",
    "",
    "## Privacy",
    "- No user names are written. The ids lead back to the comments, and so to their authors, as does a search for the "
    "text: remove `id` before the data is passed on, and treat it as personal data.",
    "- People delete what they wrote. What was deleted or removed when the dump was made, or marked so 36 hours later, "
    "is left out unless the setting `respect_deletions` is off. What was deleted later is still in here: make the data "
    "anew from newer dumps, and drop ids that you are asked to drop.",
    "- Comments may name people, addresses or telephone numbers; nothing here finds them.",
    "",
    "## Limits",
    "Mostly English, mostly young men from North America, rude in places. The word list is yours: without "
    "`--blocked-words` and `--blocked-subreddits` nothing offensive is left out.",
)
