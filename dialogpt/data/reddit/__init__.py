"""Dialogues from Reddit's comment trees: pure functions in two stages, and two engines that run them.

`comment` and `submission` read lines, `thread` and `dialogues` make dialogues of rows, `keep` judges one, `normalize`
spells text. The engines are `dialogpt.data.reddit.local.run` and `dialogpt.data.reddit.spark.run`.
"""

from dialogpt.data.reddit.comments import Comment, comment, submission
from dialogpt.data.reddit.dialogues import Dialogue, Thread, dialogues, keep, thread
from dialogpt.data.reddit.rules import RULES, Rules
from dialogpt.data.reddit.text import normalize

__all__ = [
    "RULES",
    "Comment",
    "Dialogue",
    "Rules",
    "Thread",
    "comment",
    "dialogues",
    "keep",
    "normalize",
    "submission",
    "thread",
]
