"""Typed text as DialoGPT's training data were spelled: words and signs apart, few signs, no addresses.

Microsoft's data were cut by NLTK's TweetTokenizer and joined with spaces (DialoGPT, reddit_extractor/src/reddit.py), so
the published models have seen "hi , how are you ?". This does much the same for what a person types; emoticons, which
that tokenizer keeps whole, are cut here. It is an option, off unless asked for.
"""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"\S*https?://\S*|\S*www\.\S+", re.IGNORECASE)
_FOREIGN = re.compile(r"[^A-Za-z0-9():,.!?'“” \[\]_]")
_SHORT = {"b/c": "because", "j/k": "just kidding", "w/o": "without", "w/": "with"}  # as words of their own
_PIECE = re.compile(r"[A-Za-z0-9_]+(?:'[A-Za-z]+)?|\.\.\.|[():,.!?'“”\[\]]")


def normalize(text: str) -> str:
    """Spell a text as the training data were.

    Example: "Hi,how are you? http://x.y" becomes "Hi , how are you ? __url__".
    """
    text = " ".join(_ADDRESS.sub(" __url__ ", text).split())
    text = " ".join(_SHORT.get(word.lower(), word) for word in text.split())
    return " ".join(_PIECE.findall(_FOREIGN.sub(" ", text)))
