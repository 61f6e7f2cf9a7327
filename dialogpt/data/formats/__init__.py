"""The formats in which people have dialogues, one file a kind or family; `KINDS` lists them by name."""

from __future__ import annotations

from dialogpt.data.formats import chats, corpora, jsonl, oasst, tables, text, tsv, whatsapp
from dialogpt.data.formats.kind import Head, Kind, Parse

_FAMILIES = (jsonl, tsv, tables, corpora, oasst, whatsapp, chats, text)
KINDS: dict[str, Kind] = {kind.name: kind for family in _FAMILIES for kind in family.KINDS}

__all__ = ["KINDS", "Head", "Kind", "Parse"]
