"""A conversation: one history, one cache, one seed.

Typed text becomes a turn; the reply is streamed as text and becomes the next turn. The cache holds the last prompt and
mostly its reply, and the decoder crops it to what the next prompt shares with them, so a turn costs its own tokens.
Replies are made in `dialogpt.replies`, several to one dialogue in `dialogpt.candidates`; the keyboard and the screen
are left to `dialogpt.cli.terminal`.

docs/architecture.md, "One turn", has the calls of a turn in their order.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from dialogpt.conversation_lock import ConversationLock
from dialogpt.decoding.prefill import cached_tokens
from dialogpt.decoding.speculative import Draft
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.history import BOT, DEFAULT_HISTORY_TOKENS, SYSTEM, USER, History, Prompt, Turn, alternating
from dialogpt.logits.known_tokens import check_tokens
from dialogpt.model import GPT2, KVCache
from dialogpt.networks import load_network
from dialogpt.ranking.rerankers import Reranker
from dialogpt.replies import Dialogue, Plan, Seeds, Statistics, stream_reply
from dialogpt.settings import POSITIVE, require_names, required
from dialogpt.text.normalize import normalize
from dialogpt.text.stream_decoder import StreamDecoder
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, open_checkpoint
from dialogpt.whole_replies import generate_replies

logger = logging.getLogger(__name__)


class Chat:
    """One conversation with one network; the network itself may serve many.

    Attributes:
        generation: settings of the next reply, as they were given; checked when set, like the three after it.
        history_tokens: how many tokens of dialogue the network is shown.
        num_candidates: how many candidates the reranker chooses among.
        draft: drafts tokens of a single reply without beams, which makes it faster and changes no token.
        history: the turns of the user and the bot.
        reranker: chooses each reply among candidates; None takes the only one.
        normalize: whether typed text is spelled as the training data were; see `dialogpt.text.normalize`.
        persona: a first turn that precedes every dialogue, whatever else is dropped; None for none.
        last_prompt: what the network is shown for the last reply; None without one, and after `restore`, `set_persona`.
        statistics: of the last reply.
        seeds: of all samples; the random numbers go on from reply to reply.
        cache: what the network has computed of the conversation.
        lock: lets one thread at a time change this conversation.
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
            seed: of all samples of this conversation; None is a different one each time.
            history_tokens: None is 256.
            reranker: None takes the only reply.
            num_candidates: for a reranker.
            draft: None decodes plainly.
            normalize: whether typed text is normalized.

        Raises:
            DialogueError: a setting is out of range, or the draft does not fit the network.
        """
        self.lock = ConversationLock()
        self.model, self.tokenizer = model, tokenizer  # first, as settings are checked against them
        self.generation = generation or GenerationConfig.chat().fitted(model.config.n_positions)
        self.history = History(tokenizer.eos_id, prefix=tokenizer.turn_prefix)
        self.history_tokens = DEFAULT_HISTORY_TOKENS if history_tokens is None else history_tokens
        self.reranker, self.num_candidates, self.normalize, self.draft = reranker, num_candidates, normalize, draft
        self.persona: Turn | None = None
        self.statistics = Statistics()
        self.seeds = Seeds(model.device, seed)
        self.cache = KVCache.for_model(model)
        self.last_prompt: Prompt | None = None
        # Weak, so that Python closes a stream at once when nobody holds it any more, and not at the next call.
        self._current: weakref.ref[Generator[str, None, None]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; settings are checked first.

        Raises:
            DialogueError: a value is out of range, names unknown tokens or leaves no room for a prompt;
                or a draft is for another network.
        """
        if name == "generation":
            self._for_one_reply = self._require_reply(value)
        elif name in ("history_tokens", "num_candidates"):
            required(name, value, POSITIVE)
        elif name == "draft" and value is not None:
            value.require_fits(self.model)
        super().__setattr__(name, value)

    def _require_reply(self, config: GenerationConfig) -> GenerationConfig:
        """Return settings for one reply, ended by the end of a turn; refuse at once what cannot give one."""
        for_one = config.with_end_token(self.tokenizer.eos_id).with_replies(1)
        check_tokens(for_one, self.model.config.vocab_size)
        if config.prompt_room(n_positions := self.model.config.n_positions) < 1:
            if config.max_new_tokens is None:
                raise SettingsError([Problem("max_length", config.max_length, "above 1, the shortest prompt")])
            expected = f"below the network's {n_positions} positions, so that there is room for a prompt"
            raise SettingsError([Problem("max_new_tokens", config.max_new_tokens, expected)])
        return for_one

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Chat holds a network and cannot be pickled; keep its history.turns, and restore() them")

    def __repr__(self) -> str:
        config, turns = self.model.config, len(self.history.turns)
        network = f"{config.n_layer} layers, {config.n_embd} wide, on {self.model.device}"
        return f"<Chat: {network}; {turns} turns, {self.history_tokens} tokens of them shown>"

    @classmethod
    def load(
        cls,
        source: Source = "tiny",
        *,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        generation: GenerationConfig | None = None,
        seed: int | None = None,
        history_tokens: int | None = None,
        **settings: Any,
    ) -> Chat:
        """Begin a conversation with a checkpoint.

        Arguments are as for `weights.load` and the constructor; a reranker, a draft and `normalize` are set afterwards.
        Settings go on top of `generation`: `temperature=0.7`. `history_tokens` is the checkpoint's own if it has one.
        Errors are those of `open_checkpoint`, and a TypeError for a setting that does not exist.
        """
        require_names(settings, GenerationConfig, "dtype", "device", "generation", "seed", "history_tokens")
        checkpoint = open_checkpoint(source)
        model, tokenizer = load_network(checkpoint, dtype=dtype, device=device)
        if history_tokens is None:
            history_tokens = checkpoint.history_tokens
        if generation is None:
            generation = GenerationConfig.chat(checkpoint.chat).fitted(model.config.n_positions)
        return cls(model, tokenizer, generation.merged(settings), seed=seed, history_tokens=history_tokens)

    def reply(self, text: str) -> str:
        """Return the whole reply to a text; errors are those of `stream`."""
        with self.lock:
            return "".join(self.stream(text))

    def stream(self, text: str, stop: Stop | None = None) -> Generator[str, None, None]:
        """Stream the reply to a text while it is generated.

        A stream that is abandoned (stopped, closed, deleted, or overtaken by the next call) counts as an interruption:
        what was yielded is kept as the reply, the first text and then whole characters; if nothing was, the user's turn
        is removed too.
        A stream that is never read generates nothing.

        Args:
            text: the user's turn.
            stop: true ends the reply before the token just generated is yielded; see `Stop` for when it is asked.

        Raises:
            DialogueError: the text is not valid, or the settings leave no room for it; the history is as it was.
            GenerationError: while iterating; as after an interruption, what was yielded is kept.
        """
        turn = self._turn(text, USER)
        self.close_stream()
        return self._begin([*self.history.turns, turn], stop)

    def stream_retry(self, stop: Stop | None = None) -> Generator[str, None, None]:
        """Stream another reply to the last turn; the old one is kept if this is abandoned before its first word.

        Raises:
            DialogueError: there is no reply yet.
        """
        self.close_stream()
        self._require_exchange()
        return self._begin(self.history.turns[:-1], stop)

    def stream_edit(self, text: str, stop: Stop | None = None) -> Generator[str, None, None]:
        """Replace the user's last turn, and stream the reply to it.

        Raises:
            DialogueError: as `stream`, or there is no exchange yet.
        """
        turn = self._turn(text, USER)
        self.close_stream()
        self._require_exchange()
        return self._begin([*self.history.turns[:-2], turn], stop)

    def retry(self) -> str:
        """Return the whole reply of `stream_retry`."""
        with self.lock:
            return "".join(self.stream_retry())

    def undo(self) -> str:
        """Remove the last exchange, and return the user's turn.

        Raises:
            DialogueError: there is no exchange yet.
        """
        self.close_stream()
        self._require_exchange()
        *turns, removed, _reply = self.history.turns
        self.last_prompt = self.prompt(turns[:-1]) if turns else None
        self.history.turns = turns
        return self.tokenizer.turn_text(removed, USER)

    def reset(self) -> None:
        """Begin a new conversation with the same settings; the random numbers go on."""
        self.close_stream()
        self.history.turns.clear()
        self.last_prompt, self.statistics = None, Statistics()

    def close_stream(self) -> None:
        """Close the stream of an abandoned reply, as everything that changes the conversation does first.

        Raises:
            DialogueError: it is another thread's, or generating.
        """
        self.lock.close(self._current() if self._current is not None else None)

    def texts(self) -> list[str]:
        """Return the text of each turn."""
        special = self.tokenizer.skip_special_tokens
        return [self.tokenizer.turn_text(each, each.role, skip_special_tokens=special) for each in self.history.turns]

    def restore(self, turns: Sequence[Sequence[int]]) -> None:
        """Continue from these turns, each with its reply; errors are those of `History.add`, and for an odd number."""
        self.close_stream()
        if len(turns) % 2:
            raise DialogueError(f"{len(turns)} turns were given; expected pairs: a turn and its reply")
        self.history = History(self.tokenizer.eos_id, turns, self.tokenizer.turn_prefix)
        self.last_prompt, self.statistics = None, Statistics()

    def set_persona(self, text: str) -> None:
        """Show the network this text as a first turn before every dialogue; an empty one shows none.

        Raises:
            DialogueError: the text is not valid, or leaves no room for a dialogue.
        """
        self.close_stream()
        persona = self._turn(text, SYSTEM) if text.strip() else None
        room = min(self.history_tokens, self.generation.prompt_room(self.model.config.n_positions))
        if persona is not None and 2 * (len(persona) + 1) > room:
            raise DialogueError(
                f"the persona has {len(persona)} tokens, and may fill half of the {room} that the network is shown"
            )
        self.persona, self.last_prompt = persona, None

    def turns_from(self, texts: Sequence[str]) -> list[Turn]:
        """Encode a dialogue as turns: the user speaks last.

        Raises:
            DialogueError: a text is not valid.
        """
        return [*map(self._turn, texts, alternating(len(texts)))]

    def plan(self, num_replies: int = 1) -> Plan:
        """Plan the next replies from the settings.

        Raises:
            DialogueError: they cannot give so many replies, or so many candidates.
        """
        return Plan.of(
            self._for_one_reply.with_replies(num_replies),  # refuses replies that would be equal
            self.tokenizer.eos_id,
            num_replies=num_replies,
            reranker=self.reranker,
            num_candidates=self.num_candidates,
        )

    def _begin(self, turns: list[Turn], stop: Stop | None) -> Generator[str, None, None]:
        # The conversation changes only when the stream is read.
        prompt = self.prompt(turns)
        stream = self._answer(turns, prompt, stop)
        self.lock.record_reader()
        self._current = weakref.ref(stream)
        return stream

    def _require_exchange(self) -> None:
        if len(self.history.turns) < 2:
            raise DialogueError("there is no exchange yet; type something first")

    def _turn(self, text: str, role: str) -> Turn:
        """Encode a turn, normalized unless nothing would be left of it."""
        text = (normalize(text) if self.normalize else text) or text
        return Turn(self.tokenizer.encode_turn(text, role), role)

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """Return what the network is shown of a dialogue; a truncated turn is logged."""
        history = History(self.history.eos_id, turns, self.history.prefix)
        prompt_room = self.generation.prompt_room(self.model.config.n_positions)
        persona = [] if self.persona is None else [*self.persona, history.eos_id]
        room = min(self.history_tokens, prompt_room)  # which may be less than when the persona was set
        if persona and len(persona) >= room:
            raise DialogueError(f"the persona takes {len(persona)} of {room} tokens; expected a shorter one")
        prompt = history.prompt(self.history_tokens - len(persona), prompt_room - len(persona))
        prompt = replace(prompt, ids=[*persona, *prompt.ids])
        if prompt.cut:
            logger.warning(
                "the last turn is longer than there is room for: its first %d tokens were truncated", prompt.cut
            )
        return prompt

    def _answer(self, turns: list[Turn], prompt: Prompt, stop: Stop | None) -> Generator[str, None, None]:
        """Stream the reply to `turns`; however that ends, the history holds complete exchanges."""
        before = self.history.turns, self.last_prompt
        yielded_ids: list[int] | None = None  # ids whose text was yielded; None while there is none
        complete, start = False, time.perf_counter()
        self.lock.record_reader()

        def count() -> None:
            self.statistics.count_token(time.perf_counter() - start)

        try:
            self.history.turns, self.last_prompt = turns, prompt  # `finally` may take both back
            computed = len(prompt.ids) - cached_tokens(self.cache, prompt.ids)
            self.statistics = Statistics(len(prompt.ids), computed)
            ids: list[int] = []
            text_stream = StreamDecoder(self.tokenizer, reply=True)
            for tokens in self._tokens(Dialogue(prompt, turns, self.seeds), count, stop):
                ids += tokens
                if text := "".join(map(text_stream.feed, tokens)):
                    # A token that ends within a character is kept only with the rest of it, unless it shows the first
                    # text: with nothing kept, the turn would be removed although something was shown.
                    if yielded_ids is None or not text_stream.waiting:
                        yielded_ids = list(ids)
                    yield text
                    self.lock.record_reader()
            yielded_ids, complete = ids, True
            if text := text_stream.finish():
                yield text
        except Stopped:
            return
        finally:
            if yielded_ids is None:
                self.history.turns, self.last_prompt = before
            else:
                self.history.turns = [*turns, Turn(yielded_ids, BOT, interrupted=not complete)]

    def _tokens(self, dialogue: Dialogue, on_token: Callable[[], None], stop: Stop | None) -> Iterator[list[int]]:
        """Generate the tokens of a reply, as soon as they may be shown: those of beams and candidates at its end."""
        plan = self.plan()
        if plan.streams:
            yield from stream_reply(
                self.model,
                self.tokenizer,
                plan,
                dialogue,
                self.cache,
                on_token=on_token,
                draft=self.draft,
                stop=stop,
            )
            return
        ((best, *_),) = generate_replies(
            self.model, self.tokenizer, plan, [dialogue], cache=self.cache, draft=self.draft, stop=stop
        )
        for _ in best.ids:
            on_token()
        yield best.ids
