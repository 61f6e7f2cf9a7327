"""Text to token ids and back: GPT-2's byte-level BPE, run by tiktoken on the checkpoint's own vocabulary.

Ids equal those of transformers' GPT-2 tokenizer with `split_special_tokens=True`: typed text never becomes
`<|endoftext|>`, which ends every turn. Reading a vocabulary is left to `dialogpt.weights.vocabulary`; turns and prompts
to `dialogpt.history`. It follows openai/gpt-2, src/encoder.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tiktoken
from numpy.typing import NDArray

from dialogpt.history import BOT, USER
from dialogpt.text.merges import Piece, check_order, explained
from dialogpt.text.prefix_ids import read_prefix
from dialogpt.text.text_splitting import LONG_SPACE, AddedTokens, split_long_spaces
from dialogpt.text.turn_prefix import strip_gap
from dialogpt.text.valid_text import require_text
from dialogpt.weights import CheckpointError, Source, Vocabulary, open_checkpoint
from dialogpt.weights.vocabulary import END_OF_TEXT, byte_letters

# GPT-2 splits text before it merges: English contractions; then words, numbers and other signs, each with the space
# before it, if any; then white space, whose last character, if it is a space, belongs to the word that follows.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Text to ids and back for one vocabulary.

    Attributes:
        vocabulary: where it comes from.
        eos_id: the id that ends every turn; `encode` never returns it.
        turn_prefix: what turns begin with, in a fine-tune that was trained so.
        skip_special_tokens: whether replies are shown without special tokens, and without ids that have no text.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build the tokenizer.

        Raises:
            CheckpointError: a merge cannot be reached, or is too long to be checked, so that ids might differ. With the
                merges "a b", "b c", "a bc" transformers joins a, b, c to ab, c and stops; tiktoken, which joins any two
                pieces that spell a token, goes on to abc.
        """
        self.vocabulary = vocabulary
        self.eos_id = vocabulary.eos_id
        letters, ids = byte_letters(), vocabulary.ids
        byte_of = {ord(letter): byte for byte, letter in letters.items()}  # GPT-2 spells each byte as a letter
        tokens = [*letters.values(), *(merge.replace(" ", "") for merge in vocabulary.merges)]
        spelled = [token.translate(byte_of).encode("latin-1") for token in tokens]
        self._ranks = {token: rank for rank, token in enumerate(spelled)}
        check_order(spelled, vocabulary, self._ranks)
        # tiktoken works with ranks. GPT-2's ids are its ranks, those of other vocabularies may differ. The end token,
        # which no text becomes, has a rank for `encode_dialogue` alone.
        self._encoding = tiktoken.Encoding(
            "vocabulary", pat_str=PATTERN, mergeable_ranks=self._ranks, special_tokens={END_OF_TEXT: len(tokens)}
        )
        self._ids = [ids[token] for token in tokens]  # by rank
        self._ids_or_end = np.array([*self._ids, self.eos_id], dtype=np.uint32)
        self._bytes = {n: token.encode() for token, n in ids.items()} | dict(zip(self._ids, spelled, strict=True))
        self._added = AddedTokens(vocabulary)
        hidden = {ids[token] for token in vocabulary.special if token in ids}
        self._visible = self._bytes.keys() - hidden
        self.skip_special_tokens = True
        self.turn_prefix = read_prefix(vocabulary, self.encode, (USER, BOT))

    def __repr__(self) -> str:
        tokens = f"{self.vocabulary.size:,} tokens, from {self.vocabulary.origin}"
        return f"<Tokenizer: {tokens}; {self.eos_id} ends a turn>"

    @classmethod
    def load(cls, source: Source) -> Tokenizer:
        """The tokenizer of a checkpoint; see `dialogpt.weights.open_checkpoint` for sources and errors."""
        checkpoint = open_checkpoint(source)
        if checkpoint.vocabulary is None:
            raise CheckpointError(f"{checkpoint.path} has no vocabulary; put its vocab.json and merges.txt beside it")
        return cls(checkpoint.vocabulary)

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            DialogueError: the text holds half a surrogate pair, which no UTF-8 has, or a token without embedding row.
        """
        require_text(text)
        ids: list[int] = []
        for piece in self._added.split(text):
            ids += [piece] if isinstance(piece, int) else self._encode(piece)
        return ids

    def encode_turn(self, text: str, role: str) -> list[int]:
        """The ids of what a speaker said, and of the white space after a prefix; errors are those of `encode`."""
        require_text(text)  # first, as the error counts from the text's own start
        return self.encode(self.turn_prefix.gap(role) + text)

    def encode_dialogue(self, turns: Sequence[str]) -> NDArray[np.uint32]:
        """The ids of whole turns, user and bot in turn: what `whole_turn` gives of each, in one call where possible.

        Raises:
            DialogueError: as `encode`.
        """
        for turn in turns:
            require_text(turn)
        text = END_OF_TEXT.join([*turns, ""])
        typed = text.count(END_OF_TEXT) > len(turns)  # typed text never becomes the end token
        one_by_one = typed or self.vocabulary.add_prefix_space or self._added or self.turn_prefix.ids
        if one_by_one or any(len(turn) > LONG_SPACE for turn in turns):
            whole = [self.whole_turn(turn, (USER, BOT)[place % 2]) for place, turn in enumerate(turns)]
            return np.array([n for turn in whole for n in turn], dtype=np.uint32)
        ranks = self._encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT})
        return self._ids_or_end[ranks]

    def whole_turn(self, text: str, role: str) -> list[int]:
        """The ids of a turn as the network reads it: prefix, text and end token."""
        return [*self.turn_prefix.of(role), *self.encode_turn(text, role), self.eos_id]

    def _encode(self, text: str) -> list[int]:
        if self.vocabulary.add_prefix_space and text and text[0] != " ":
            text = f" {text}"
        return [self._ids[rank] for part in split_long_spaces(text) for rank in self._encoding.encode_ordinary(part)]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id stands for: a whole character, several, or a part of one."""
        return self._bytes.get(int(token_id), REPLACEMENT.encode())

    def shown_bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds to a reply: none for special tokens and ids without text, unless they are shown.

        `StreamDecoder` shows a reply by them; `reply_text` gives the same of a whole one.
        """
        return b"" if self.skip_special_tokens and int(token_id) not in self._visible else self.bytes_of(token_id)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of any ids; bytes that are not UTF-8, and ids without text, become U+FFFD.

        Args:
            ids: of a vocabulary's tokens, or any others.
            skip_special_tokens: whether special tokens and ids without text are left out.
        """
        if skip_special_tokens:
            return b"".join(self.bytes_of(n) for n in ids if int(n) in self._visible).decode(errors="replace")
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")

    def turn_text(self, ids: Iterable[int], role: str, *, skip_special_tokens: bool = False) -> str:
        """The text of a speaker's turn, without the space between it and its prefix."""
        return strip_gap(self.decode(ids, skip_special_tokens=skip_special_tokens), self.turn_prefix.gap(role))[0]

    def reply_text(self, ids: Iterable[int]) -> str:
        """The text of a reply, as people see it."""
        return self.turn_text(ids, BOT, skip_special_tokens=self.skip_special_tokens)

    def explain(self, text: str) -> list[Piece]:
        """Show how a text becomes ids: split into pieces, spelled in letters, merged step by step.

        The slow and obvious version of `encode`, for readers. It adds no space in front and looks for no added tokens.
        The splits come from Python's regex package, whose Unicode tables may know letters that tiktoken's do not yet.
        """
        import regex  # tiktoken installs it

        require_text(text)
        return [explained(match[0], self._ranks, self._ids) for match in regex.finditer(PATTERN, text)]
