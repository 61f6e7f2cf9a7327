"""Parts of text to ids and back that a first reader can skip: merges, long texts, prefixes of turns, streams."""
