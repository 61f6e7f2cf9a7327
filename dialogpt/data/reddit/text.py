"""The spelling of the training data: words and signs apart, few signs, no links.

Both spellings end in NLTK's TweetTokenizer, as the published data did. `original` follows the extractor to the letter
(microsoft/DialoGPT, reddit_extractor/src/reddit.py:92-117); `normalize` differs where that loses text by accident:

- accents and curly apostrophes become plain letters instead of blanks ("café", "don't"), HTML entities become signs;
- "w/" and its like are written out only where they are words, not inside "how/why";
- the word URL stays a word, where the extractor makes a link of it; and www. begins a link, too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import Any

URL = "__url__"
_LINK = "\x00"  # stands for a link while signs are removed
_MIN_PHONE_DIGITS = 7  # the tokenizer joins words only into phone numbers, which have at least so many

_ABBREVIATIONS = {"b/c": "because", "j/k": "just kidding", "w/o": "without", "w/": "with"}
_FOREIGN = re.compile(r"[^A-Za-z0-9()\[\]:,.!?'“” ]")
_FOREIGN_BUT_LINK = re.compile(r"[^A-Za-z0-9()\[\]:,.!?'“” \x00]")
_LINK_START = re.compile(r"https?:|http|www\.", re.IGNORECASE)
_DIGIT = re.compile(r"[0-9]")
_PLAIN_QUOTES = str.maketrans({"’": "'", "‘": "'", "´": "'", "`": "'", "…": "...", "\u200b": None})


def one_line(body: str) -> str:
    """A comment without backslashes, which Markdown uses as escapes, and on one line (reddit.py:83-89)."""
    if "\\" in body:
        body = body.replace("\\", "")
    return body.replace("\n", " ").replace("\r", " ").replace("\t", " ")  # a table for translate takes 4 times as long


def normalize(text: str) -> str:
    """Spell a comment as the training data are spelled, without losing letters by accident.

    Example: "Yes,how/why? I don’t care w/o it http://x.y" gives "Yes , how why ? I don't care without it __url__".
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(_PLAIN_QUOTES))
        text = "".join(letter for letter in text if not unicodedata.combining(letter))
    if "&" in text:
        text = html.unescape(text).translate(_PLAIN_QUOTES)
    words = []
    for word in text.replace(_LINK, " ").replace("\\", "").split():
        if word[0] == "#":
            continue
        word = _ABBREVIATIONS.get(word.lower(), word)
        link = _LINK_START.search(word) if "." in word or "http" in word.lower() else None
        words.append(f"{word[: link.start()]} {_LINK}" if link else word)
    return _tokenized(_FOREIGN_BUT_LINK.sub(" ", " ".join(words))).replace(_LINK, URL)


def original(text: str) -> str:
    """Spell a comment exactly as the published extractor does."""
    words = []
    for word in text.split():
        if word[0] == "#":
            continue
        link = word.lower().find("http")
        words.append(f"{word[:link]} {URL}".strip() if link >= 0 else word)
    text = " ".join(words).replace("\\", "")
    for short, long in _ABBREVIATIONS.items():
        text = text.replace(short, long)
    text = text.replace("__mention__", "MENTION").replace(URL, "URL")
    text = _FOREIGN.sub(" ", text)
    return _tokenized(text.replace("MENTION", "__mention__").replace("URL", URL))


def plain(text: str) -> str:
    """A comment as it was typed, on one line and with signs in place of HTML entities."""
    return " ".join(html.unescape(text).split())


def _tokenized(text: str) -> str:
    """Words and signs apart; each word is cut once, as the tokenizer takes 150 us for a comment and words repeat."""
    if len(_DIGIT.findall(text)) >= _MIN_PHONE_DIGITS:
        return _cut(text)
    return " ".join(map(_cut_word, text.split()))


@lru_cache(maxsize=1 << 17)
def _cut_word(word: str) -> str:
    return word if word.isascii() and word.isalpha() else _cut(word)


def _cut(text: str) -> str:
    return " ".join(" ".join(_tokenizer().tokenize(text)).split())


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from nltk.tokenize.casual import TweetTokenizer  # takes a second

    return TweetTokenizer(preserve_case=True)
