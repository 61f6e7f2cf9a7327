"""A conversation: one history, one cache, one stream of draws.

What is typed becomes a turn; the reply is streamed as text and becomes the next turn. The cache keeps the longest
prefix that the next prompt shares with the last one, so a turn costs its own tokens. Reading a keyboard and printing
are left to `dialogpt.cli.main` and `dialogpt.cli.terminal.repl`.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from dialogpt.decoding.loop import Stop, Stopped
from dialogpt.decoding.speculative import Draft
from dialogpt.errors import DialogueError
from dialogpt.generation import Reply
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.history import BOT, DEFAULT_HISTORY_TOKENS, SYSTEM, USER, History, Prompt, Turn, alternating
from dialogpt.model import GPT2, KVCache
from dialogpt.normalize import normalize
from dialogpt.ranking.rerankers import Reranker
from dialogpt.ranking.scoring import Score, score
from dialogpt.replies import Dialogue, Generators, Plan, cached_tokens, generate_replies, stream_reply
from dialogpt.tokenizer import StreamDecoder, Tokenizer
from dialogpt.weights import Checkpoint, load, open_checkpoint
from dialogpt.weights.checkpoint import Source

logger = logging.getLogger(__name__)


def load_network(checkpoint: Checkpoint, *, dtype: str, device: str | torch.device) -> tuple[GPT2, Tokenizer]:
    """Load a network that replies, and its tokenizer; one that only scores replies is reported in the log.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    if checkpoint.ranking_head is not None:
        logger.warning("%s is a DialogRPT: it scores replies, and was not trained to write them", checkpoint.path)
    return load(checkpoint, dtype=dtype, device=device), Tokenizer.load(checkpoint)


@dataclass
class Statistics:
    """What the last reply cost.

    Attributes:
        prompt_tokens: how long the prompt was.
        computed_tokens: how many of them were not in the cache.
        new_tokens: how many were said, draws that were thrown away for being white space included.
        first_seconds: from the start until the first token.
        seconds: until the last.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    new_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0

    def count_token(self, seconds: float) -> None:
        """Note that a token was said, `seconds` after the start."""
        if self.new_tokens == 0:
            self.first_seconds = seconds
        self.new_tokens += 1
        self.seconds = seconds


class Chat:
    """One conversation with one network; the network itself may serve many.

    Attributes:
        generation: settings of the next reply; may be replaced at any time.
        history: the turns; a person's and the network's in turn.
        history_tokens: how many tokens of dialogue the network is shown.
        reranker, num_candidates: what chooses each reply, and among how many.
        draft: guesses ahead where one reply is said without beams, which makes it faster and changes no token.
        normalize: whether what is typed is spelled as the training data were.
        persona: a first turn that the network is shown before every dialogue, whatever else is dropped; None is none.
        statistics: of the last reply.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        generation: GenerationConfig | None = None,
        *,
        seed: int | None = None,
        history_tokens: int | None = None,
        reranker: Reranker | None = None,
        num_candidates: int = DEFAULT_CANDIDATES,
        draft: Draft | None = None,
        normalize: bool = False,
    ) -> None:
        """Begin an empty conversation.

        Args:
            model: a loaded network.
            tokenizer: of the same checkpoint.
            generation: None is the chat preset, with at most half the network's positions for a reply.
            seed: of all draws of this conversation; None is another one each time.
            history_tokens: None is 256.
            reranker: chooses each reply among candidates; None says the first.
            num_candidates: how many it is given.
            draft: guesses what the network says; see `dialogpt.decoding.speculative`.
            normalize: whether what is typed is spelled as the training data were; see `dialogpt.normalize`.

        Raises:
            DialogueError: `history_tokens` or `num_candidates` is below 1.
        """
        if num_candidates < 1:
            raise DialogueError(f"num_candidates is {num_candidates}, expected a whole number from 1 on")
        if history_tokens is not None and history_tokens < 1:
            raise DialogueError(f"history_tokens is {history_tokens}, expected a whole number from 1 on")
        self.model = model
        self.tokenizer = tokenizer
        self.generation = generation or GenerationConfig.chat().fitted(model.config.n_positions)
        self.history = History(tokenizer.eos_id)
        self.history_tokens = DEFAULT_HISTORY_TOKENS if history_tokens is None else history_tokens
        self.reranker, self.num_candidates, self.normalize = reranker, num_candidates, normalize
        self.draft = draft
        self.persona: Turn | None = None
        self.statistics = Statistics()
        self._generators = Generators(model.device, seed)
        self._cache = KVCache.for_model(model)
        self._shown: Prompt | None = None
        # Weak, so that a stream which nobody holds any more is closed at once, and not at the next call.
        self._current: weakref.ref[Generator[str, None, None]] | None = None

    @classmethod
    def load(
        cls,
        source: Source,
        *,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        generation: GenerationConfig | None = None,
        seed: int | None = None,
        history_tokens: int | None = None,
    ) -> Chat:
        """Begin a conversation with a checkpoint.

        Arguments are those of `dialogpt.weights.load` and of the constructor; `history_tokens` is the checkpoint's own
        where it has one. A reranker or a draft can be put in its place afterwards.

        Raises:
            CheckpointError: the checkpoint cannot be used.
        """
        checkpoint = open_checkpoint(source)
        model, tokenizer = load_network(checkpoint, dtype=dtype, device=device)
        if history_tokens is None:
            history_tokens = checkpoint.history_tokens
        if generation is None:
            generation = GenerationConfig.chat(checkpoint.chat).fitted(model.config.n_positions)
        return cls(model, tokenizer, generation, seed=seed, history_tokens=history_tokens)

    def reply(self, text: str) -> str:
        """Say something, and wait for the whole answer; errors are those of `stream`."""
        return "".join(self.stream(text))

    def stream(self, text: str, stop: Stop | None = None) -> Generator[str, None, None]:
        """Say something, and read the answer while it is made.

        A stream that is abandoned (stopped, closed, let go, or overtaken by the next call) counts as an interruption:
        what was said is kept and its turn closed; if nothing was said yet, the person's turn is taken back too. A
        stream that is never read says nothing.

        Args:
            text: what the person says.
            stop: asked after every token; true ends the reply before that token is shown.

        Raises:
            DialogueError: the text is not valid, or the settings leave no room for it; the history is as it was.
            GenerationError: while reading; as after an interruption, what was said is kept.
        """
        turn = self._turn(text)
        self._settle()
        return self._begin([*self.history.turns, turn], stop)

    def stream_retry(self, stop: Stop | None = None) -> Generator[str, None, None]:
        """Answer the last turn once more; the old reply comes back if the new one is abandoned before its first word.

        Raises:
            DialogueError: there is no reply yet.
        """
        self._settle()
        self._require_exchange()
        return self._begin(self.history.turns[:-1], stop)

    def stream_edit(self, text: str, stop: Stop | None = None) -> Generator[str, None, None]:
        """Put another text in the place of the last one that the person said, and answer that.

        Raises:
            DialogueError: as `stream`, or there is no exchange yet.
        """
        turn = self._turn(text)
        self._settle()
        self._require_exchange()
        return self._begin([*self.history.turns[:-2], turn], stop)

    def retry(self) -> str:
        """`stream_retry`, and wait for the whole answer."""
        return "".join(self.stream_retry())

    def undo(self) -> str:
        """Take the last exchange back, and return what the person had said.

        Raises:
            DialogueError: there is no exchange yet.
        """
        self._settle()
        self._require_exchange()
        self.history.pop()
        return self.tokenizer.decode(self.history.pop())

    def reset(self) -> None:
        """Begin a new conversation; settings stay, and so does the stream of draws."""
        self._settle()
        self.history.clear()
        self._shown, self.statistics = None, Statistics()

    def texts(self) -> list[str]:
        """What was said so far, the person first."""
        return [self.tokenizer.decode(turn) for turn in self.history.turns]

    def restore(self, turns: Sequence[Sequence[int]]) -> None:
        """Go on from these turns, the last of them the network's; errors are those of `History.add`."""
        self._settle()
        if len(turns) % 2:
            raise DialogueError(f"{len(turns)} turns were given; expected pairs, what was said and its answer")
        self.history = History(self.tokenizer.eos_id, turns)
        self._shown, self.statistics = None, Statistics()

    def candidates(self, turns: Sequence[str], number: int) -> list[Reply]:
        """Generate several replies to one dialogue, which is not made part of this conversation.

        Args:
            turns: at least one; the last is answered.
            number: how many replies; above 1 the settings must sample, or have as many beams. With a reranker they are
                the best of `num_candidates`, the best first.
        """
        return self._replies([turns], number, [self._generators])[0]

    def candidates_for_all(
        self,
        dialogues: Sequence[Sequence[str]],
        number: int,
        seeds: Sequence[int],
        stop: Stop | None = None,
    ) -> list[list[Reply]]:
        """Generate several replies to each of several dialogues together; see `candidates`.

        Args:
            dialogues: of each at least one turn.
            number: how many replies to each.
            seeds: one for each dialogue, so that its replies do not depend on the others; reply k is sampled with
                seed + k.
            stop: asked before every token; true ends it all.

        Raises:
            Stopped: `stop` said so.
        """
        return self._replies(dialogues, number, [Generators(self.model.device, seed) for seed in seeds], stop)

    def _replies(
        self,
        dialogues: Sequence[Sequence[str]],
        number: int,
        generators: Sequence[Generators],
        stop: Stop | None = None,
    ) -> list[list[Reply]]:
        plan = self._plan(number)
        asked = []
        for texts, sources in zip(dialogues, generators, strict=True):
            history = History(self.tokenizer.eos_id, self.turns_from(texts))
            asked.append(Dialogue(self._prompt(history), history.turns, sources))
        cache = self._cache if len(asked) == 1 else None
        return generate_replies(self.model, self.tokenizer, plan, asked, cache=cache, draft=self.draft, stop=stop)

    def set_persona(self, text: str) -> None:
        """Show the network this text as a first turn before every dialogue; an empty one shows none.

        Raises:
            DialogueError: the text is not valid, or leaves no room for a dialogue.
        """
        self._settle()
        persona = Turn(self._turn(text), SYSTEM) if text.strip() else None
        window = min(self.history_tokens, self.generation.prompt_room(self.model.config.n_positions))
        if persona is not None and 2 * (len(persona) + 1) > window:
            raise DialogueError(
                f"the persona has {len(persona)} tokens, and may fill half of the {window} that the network is shown"
            )
        self.persona, self._shown = persona, None

    def turns_from(self, texts: Sequence[str]) -> list[Turn]:
        """Encode a dialogue as turns: the user speaks last.

        Raises:
            DialogueError: a text is not valid.
        """
        return alternating([*map(self._turn, texts)])

    def _plan(self, num_replies: int = 1) -> Plan:
        """Resolve the settings of the next replies.

        Raises:
            DialogueError: they cannot give so many replies, or so many candidates.
        """
        return Plan.of(
            replace(self.generation, num_return_sequences=num_replies),
            self.tokenizer.eos_id,
            num_replies=num_replies,
            reranker=self.reranker,
            num_candidates=self.num_candidates,
        )

    def score(self, turns: Sequence[str]) -> list[Score]:
        """How likely each turn of a dialogue is after those before it, its end included; of the first, all but its
        first token.

        Raises:
            DialogueError: a turn is not valid, or the dialogue is longer than the network's positions.
        """
        ids: list[int] = []
        scores: list[tuple[int, int]] = []
        for turn in map(self._turn, turns):
            begin = max(1, len(ids))
            ids += [*turn, self.tokenizer.eos_id]
            scores.append((begin, len(ids)))
        if len(ids) < 2:
            raise DialogueError("there is nothing to score; expected a dialogue of at least one word")
        (whole,) = score(self.model, [ids])
        return [Score(ids[begin:end], whole.log_probabilities[begin - 1 : end - 1]) for begin, end in scores]

    def shown(self) -> Prompt | None:
        """What of the dialogue the network was shown last; None before the first turn."""
        return self._shown

    def _begin(self, turns: list[Turn], stop: Stop | None) -> Generator[str, None, None]:
        prompt = self._prompt(History(self.history.eos_id, turns))
        stream = self._answer(turns, prompt, stop)
        self._current = weakref.ref(stream)
        return stream

    def _settle(self) -> None:
        """End a reply that nobody reads any more."""
        stream = self._current() if self._current is not None else None
        if stream is not None:
            stream.close()

    def _require_exchange(self) -> None:
        if len(self.history.turns) < 2:
            raise DialogueError("nothing has been said yet")

    def _turn(self, text: str) -> Turn:
        """The user's turn from what was typed; where nothing would be left of it when it is spelled anew, as it is."""
        return Turn(self.tokenizer.encode((self.normalize and normalize(text)) or text), USER)

    def _prompt(self, history: History) -> Prompt:
        """What the network is shown of a dialogue, and the user told where its last turn had to be cut."""
        window = self.generation.prompt_room(self.model.config.n_positions)
        if window < 1:
            raise DialogueError(
                f"max_new_tokens {self.generation.max_new_tokens} leaves no room for a prompt in the network's "
                f"{self.model.config.n_positions} positions; ask for fewer"
            )
        first = [] if self.persona is None else [*self.persona, history.eos_id]
        if len(first) >= min(self.history_tokens, window):
            raise DialogueError(
                f"the persona takes {len(first)} of {min(self.history_tokens, window)} tokens; expected a shorter one"
            )
        prompt = history.prompt(self.history_tokens - len(first), window - len(first))
        prompt = replace(prompt, ids=[*first, *prompt.ids])
        if prompt.cut:
            logger.warning(
                "the last turn is longer than there is room for: its first %d tokens were cut off", prompt.cut
            )
        return prompt

    def _answer(self, turns: list[Turn], prompt: Prompt, stop: Stop | None) -> Generator[str, None, None]:
        """Stream the reply to `turns`; however that ends, the history holds whole exchanges."""
        before, shown = self.history.turns, self._shown
        said: list[int] | None = None  # ids whose text was handed out; None while there is none
        start = time.perf_counter()

        def count() -> None:
            self.statistics.count_token(time.perf_counter() - start)

        try:
            self.history.turns, self._shown = turns, prompt
            computed = len(prompt.ids) - cached_tokens(self._cache, prompt.ids)
            self.statistics = Statistics(len(prompt.ids), computed)
            ids: list[int] = []
            decoder = StreamDecoder(self.tokenizer)
            for tokens in stream_reply(
                self.model,
                self.tokenizer,
                self._plan(),
                Dialogue(prompt, turns, self._generators),
                self._cache,
                on_token=count,
                draft=self.draft,
                stop=stop,
            ):
                ids += tokens
                if text := "".join(map(decoder.feed, tokens)):
                    if said is None or not decoder.waiting:  # half a character is not kept
                        said = list(ids)
                    yield text
            said = ids
            if text := decoder.finish():
                yield text
        except Stopped:
            return
        finally:
            if said is None:
                self.history.turns, self._shown = before, shown
            else:
                self.history.turns = [*turns, Turn(said, BOT)]
