"""A dialogue seen from inside, as plain data: what the page, the terminal, a picture and ``--json`` show.

`inspect_reply` runs the network once over the dialogue and its reply, once more without each turn, and collects what
the modules beside this one make of it. Everything about a token is computed at the position before it, where the
network chose it. Drawing is left to `page`, `text` and `picture`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, TypedDict

import torch
from torch import Tensor

from dialogpt.decoding.loop import Decoder
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.generation import Reply
from dialogpt.generation_config import OFF, GenerationConfig
from dialogpt.history import BOT, History, Prompt, Turn
from dialogpt.inspect.ablation import ablate
from dialogpt.inspect.attention import attention_weights, summed_by_turn
from dialogpt.inspect.capture import Capture, capture
from dialogpt.inspect.contributions import contributions, parts_of
from dialogpt.inspect.distributions import Stage, stages
from dialogpt.inspect.lens import LensReading, lens_logits, read_lens
from dialogpt.inspect.search import Considered
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.sampler import active_processors
from dialogpt.tokenizer import Tokenizer

FORMAT, VERSION = "dialogpt inspection", 1
ALTERNATIVES = 8  # of the likeliest tokens, how many are shown
LENS_TOKENS = 3  # that are shown of each layer
REMOVED_TOKENS = 6  # of the tokens that a processor removed, how many are shown
# Settings that are not about one token, each with whether it says something.
ABOUT_REPLIES: dict[str, Callable[[GenerationConfig], bool]] = {
    "max_new_tokens": lambda config: config.max_new_tokens is not None,
    "max_length": lambda config: config.max_new_tokens is None,
    "stop_strings": lambda config: config.stop_strings is not None,
    "num_beams": lambda config: config.num_beams > 1,
    "length_penalty": lambda config: config.num_beams > 1 and config.length_penalty != 1,
}
Proceed = Callable[[], None]  # called between pieces of the work; what it raises ends it


class Candidate(TypedDict):
    """A token that could have come, and how likely it was."""

    id: int
    text: str
    probability: float


class StageData(TypedDict):
    """What one processor left: probabilities of `candidates` of the token, in their order."""

    name: str
    settings: dict[str, Any]
    probabilities: list[float]
    kept: int
    removed: int
    removed_probability: float
    removed_tokens: list[Candidate]


class ChoiceData(TypedDict):
    """How the settings in use came to a token of the reply."""

    candidates: list[Candidate]
    stages: list[StageData]
    possible: bool


class LensData(TypedDict):
    """What one layer would have answered, and what it made of the token that came."""

    top: list[Candidate]
    probability: float
    rank: int


class AttentionData(TypedDict):
    """Where the heads looked: by layer and turn (averaged over heads), and, for the reply, by layer, head, position."""

    turns: list[list[float]]
    first: list[float]
    heads: list[list[list[float]]] | None


class ContributionData(TypedDict):
    """What every part added to the token's logit, and to that of its likeliest rival, in the order of `parts`."""

    logit: float
    parts: list[float]
    rival: Candidate
    rival_logit: float
    rival_parts: list[float]


class TokenData(TypedDict):
    """One token of the dialogue; what nothing precedes (the first one) has no prediction."""

    id: int
    text: str
    turn: int
    end: bool
    probability: float | None
    bits: float | None
    rank: int | None
    alternatives: list[Candidate]
    lens: list[LensData]
    settles: int | None
    norms: list[float]
    attention: AttentionData | None
    contributions: ContributionData | None
    choice: ChoiceData | None


class TurnData(TypedDict):
    """A turn: who spoke it, and the position of its first token; None where the network was not shown it."""

    role: str
    text: str
    start: int | None


class AblationData(TypedDict):
    """The reply's log-probability (natural logarithm) without some turns, by their indices."""

    removed: list[int]
    log_probability: float
    log_probabilities: list[float]


class Inspection(TypedDict):
    """All of it; see the fields' own types. `considered` is None unless the settings compare several replies."""

    format: str
    version: int
    model: dict[str, Any]
    settings: dict[str, Any]
    sampled: bool
    turns: list[TurnData]
    tokens: list[TokenData]
    reply: dict[str, Any]
    parts: list[dict[str, Any]]
    ablation: list[AblationData]
    considered: dict[str, Any] | None


@dataclass(frozen=True)
class _Sequence:
    """The tokens that are inspected.

    Attributes:
        prompt: what the network is shown of the dialogue.
        reply: its tokens, the end token among them where it ended.
        starts: the position of each shown turn's first token, the reply's last.
    """

    prompt: Prompt
    reply: list[int]
    starts: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt.ids, *self.reply]

    @property
    def shown(self) -> list[list[int]]:
        """The shown turns with their end tokens, without the reply."""
        return [self.prompt.ids[start:end] for start, end in zip(self.starts, self.starts[1:], strict=False)]


def inspect_reply(
    model: GPT2,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    turns: Sequence[Turn],
    reply: Sequence[int],
    *,
    history_tokens: int,
    ended: bool = True,
    name: str = "",
    considered: Considered | None = None,
    stop: Stop | None = None,
) -> Inspection:
    """Look inside a reply. Threads that share the network may go on using it.

    Args:
        model: the network, of any precision, as `dialogpt.weights.load` returns it.
        tokenizer: of the same checkpoint.
        config: the settings in use, which the reply need not follow.
        turns: the dialogue without end tokens, each turn with its speaker; the last one is answered.
        reply: its tokens, without an end token.
        history_tokens: how many tokens of dialogue the network is shown; see `History.prompt`.
        ended: whether the network ended the reply itself; its end token is then inspected, too.
        name: of the model, for people.
        considered: what there was beside the reply.
        stop: asked between pieces of the work; true ends it.

    Returns:
        Data that `json.dumps` writes.

    Raises:
        DialogueError: there is no turn or no reply, or both do not fit the network's positions.
        Stopped: `stop` returned true.
    """
    config = config.with_end_token(tokenizer.eos_id)
    sequence = _sequence(model, tokenizer, config, turns, reply, history_tokens, ended)
    proceed = _proceed_unless(stop)
    captured = capture(model, sequence.ids)
    readings = _readings(captured, sequence, proceed)
    tokens = _tokens(captured, tokenizer, sequence, len(turns), readings)
    _add_attention(captured, sequence, tokens, proceed)
    _add_contributions(captured, tokenizer, sequence, tokens, readings[-1])
    row = Decoder(model, tokenizer).add(sequence.prompt, config)  # words spelled out, and the bot's own turns
    _add_choices(captured, tokenizer, row, sequence, tokens, proceed)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": _model_data(model, name),
        "settings": _acting_settings(row.config, row.seen),
        "sampled": config.do_sample,
        "turns": _turns_data(tokenizer, turns, sequence, reply),
        "tokens": tokens,
        "reply": _reply_data(tokenizer, sequence, reply, ended, readings[-1]),
        "parts": [asdict(part) for part in parts_of(model.config.n_layer)],
        "ablation": _ablation_data(model, tokenizer, sequence, stop),
        "considered": None if considered is None else _considered_data(tokenizer, considered),
    }


def _proceed_unless(stop: Stop | None) -> Proceed:
    def proceed() -> None:
        if stop is not None and stop():
            raise Stopped

    return proceed


def _readings(captured: Capture, sequence: _Sequence, proceed: Proceed) -> list[LensReading]:
    """Read every layer at every position that predicts a token.

    Raises:
        DialogueError: the network's output is not finite.
    """
    positions = list(range(len(sequence.ids) - 1))
    readings = read_lens(captured, positions, sequence.ids[1:], max(ALTERNATIVES, LENS_TOKENS), proceed)
    if positions and not bool(torch.isfinite(readings[-1].log_probability).all()):
        raise DialogueError("the network's output holds NaN or infinity; its weights are damaged: convert it again")
    return readings


def _reply_data(
    tokenizer: Tokenizer, sequence: _Sequence, reply: Sequence[int], ended: bool, last: LensReading
) -> dict[str, Any]:
    first = len(sequence.prompt.ids)
    log_probabilities = last.log_probability[first - 1 :].tolist()
    return {
        "text": tokenizer.turn_text(reply, BOT),
        "first": first,
        "ended": ended,
        "log_probability": sum(log_probabilities),
        "log_probabilities": log_probabilities,
    }


def _ablation_data(model: GPT2, tokenizer: Tokenizer, sequence: _Sequence, stop: Stop | None) -> list[AblationData]:
    return [
        {
            "removed": [sequence.prompt.first_turn + place for place in found.removed],
            "log_probability": sum(found.log_probabilities),
            "log_probabilities": found.log_probabilities,
        }
        for found in ablate(model, sequence.shown, sequence.reply, tokenizer.eos_id, stop)
    ]


def _sequence(
    model: GPT2,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    turns: Sequence[Turn],
    reply: Sequence[int],
    history_tokens: int,
    ended: bool,
) -> _Sequence:
    """Put the dialogue and its reply together as the network reads them."""
    positions = model.config.n_positions
    prefix = tokenizer.turn_prefix
    prompt = History(tokenizer.eos_id, turns, prefix).prompt(history_tokens, max(1, config.prompt_room(positions)))
    tokens = [*reply, *([tokenizer.eos_id] if ended else [])]
    if not tokens:
        raise DialogueError("the reply is empty and was not ended, so there is nothing to look into; expected a token")
    if len(prompt.ids) + len(tokens) > positions:
        raise DialogueError(
            f"the dialogue has {len(prompt.ids)} tokens and the reply {len(tokens)}, but the network has {positions} "
            f"positions; shorten the reply, or show less of the dialogue (history_tokens)"
        )
    lengths = [len(prefix.of(turn.role)) + len(turn) + 1 for turn in turns[prompt.first_turn :]]
    lengths[0] -= prompt.cut  # only a lone last turn is cut
    lengths[-1] += len(prefix.of(BOT))  # what the reply begins with is shown before it
    return _Sequence(prompt, tokens, [0, *accumulate(lengths)])


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; bytes that are no whole character are spelled in hexadecimal."""
    spelled = tokenizer.bytes_of(token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in spelled)


def _candidates(tokenizer: Tokenizer, ids: Tensor, probabilities: Tensor) -> list[Candidate]:
    return [
        {"id": token, "text": token_text(tokenizer, token), "probability": probability}
        for token, probability in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]


def _tokens(
    captured: Capture, tokenizer: Tokenizer, sequence: _Sequence, turn_count: int, readings: list[LensReading]
) -> list[TokenData]:
    """Every token with what was predicted in its place; attention and the rest are added later."""
    norms = torch.stack([residual.norm(dim=-1) for residual in captured.residual], dim=1).tolist()  # (T, L + 1)
    shown_turns = len(sequence.starts) - 1
    tokens: list[TokenData] = []
    for place, token in enumerate(sequence.ids):
        turn = sum(start <= place for start in sequence.starts) - 1
        before = place - 1
        lens = [] if place == 0 else [_lens_data(tokenizer, reading, before) for reading in readings]
        last = readings[-1]
        log_probability = None if place == 0 else float(last.log_probability[before])
        tokens.append(
            {
                "id": token,
                "text": token_text(tokenizer, token),
                "turn": turn_count - shown_turns + turn,
                "end": token == tokenizer.eos_id,
                "probability": None if place == 0 else float(last.log_probability[before].exp()),
                "bits": None if log_probability is None else max(0.0, -log_probability / math.log(2)),
                "rank": None if place == 0 else int(last.rank[before]),
                "alternatives": []
                if place == 0
                else _candidates(
                    tokenizer, last.top_ids[before, :ALTERNATIVES], last.top_probabilities[before, :ALTERNATIVES]
                ),
                "lens": lens,
                "settles": _settles(lens),
                "norms": [] if place == 0 else norms[before],
                "attention": None,
                "contributions": None,
                "choice": None,
            }
        )
    return tokens


def _lens_data(tokenizer: Tokenizer, reading: LensReading, place: int) -> LensData:
    return {
        "top": _candidates(
            tokenizer, reading.top_ids[place, :LENS_TOKENS], reading.top_probabilities[place, :LENS_TOKENS]
        ),
        "probability": float(reading.log_probability[place].exp()),
        "rank": int(reading.rank[place]),
    }


def _settles(lens: list[LensData]) -> int | None:
    """The first layer from which on the likeliest token is that of the last layer; 0 stands for the embeddings."""
    favourites = [layer["top"][0]["id"] for layer in lens]
    settled = len(favourites) - 1
    while settled > 0 and favourites[settled - 1] == favourites[-1]:
        settled -= 1
    return settled if favourites else None


def _add_attention(captured: Capture, sequence: _Sequence, tokens: list[TokenData], proceed: Proceed) -> None:
    """Where each position looked; head by head for those that predict the reply."""
    positions = list(range(len(tokens) - 1))
    first = len(sequence.prompt.ids)
    data: list[AttentionData] = [
        {"turns": [], "first": [], "heads": [] if place + 1 >= first else None} for place in positions
    ]
    for layer in range(len(captured.attention_output)):
        proceed()
        weights = attention_weights(captured, layer, positions)  # (H, T - 1, T)
        by_turn = summed_by_turn(weights, sequence.starts).tolist()
        on_first = weights[:, :, 0].mean(dim=0).tolist()
        of_reply = weights[:, first - 1 :].transpose(0, 1)  # (R, H, T)
        for place, entry in enumerate(data):
            entry["turns"].append(by_turn[place])
            entry["first"].append(on_first[place])
            if entry["heads"] is not None:
                entry["heads"].append(of_reply[place + 1 - first, :, : place + 1].tolist())
    for token, entry in zip(tokens[1:], data, strict=True):
        token["attention"] = entry


def _add_contributions(
    captured: Capture, tokenizer: Tokenizer, sequence: _Sequence, tokens: list[TokenData], last: LensReading
) -> None:
    """What raised each token, and its likeliest rival: the first token of the ranking that is another one."""
    if len(tokens) < 2:
        return
    positions = list(range(len(tokens) - 1))
    chosen = torch.tensor(sequence.ids[1:], device=last.top_ids.device)
    is_chosen = (last.top_ids[:, 0] == chosen).long()  # then the second one is the rival
    places = torch.arange(len(positions), device=chosen.device)
    rivals = last.top_ids[places, is_chosen]  # (R,)
    rival_logits = last.top_logits[places, is_chosen]
    own = contributions(captured, positions, chosen.tolist(), last.logit).tolist()
    other = contributions(captured, positions, rivals.tolist(), rival_logits).tolist()
    rival_data = _candidates(tokenizer, rivals, last.top_probabilities[places, is_chosen])
    for place in positions:
        tokens[place + 1]["contributions"] = {
            "logit": float(last.logit[place]),
            "parts": own[place],
            "rival": rival_data[place],
            "rival_logit": float(rival_logits[place]),
            "rival_parts": other[place],
        }


def _add_choices(
    captured: Capture,
    tokenizer: Tokenizer,
    row: TokenSequence,
    sequence: _Sequence,
    tokens: list[TokenData],
    proceed: Proceed,
) -> None:
    """What the settings made of the distribution of each token of the reply."""
    first = len(sequence.prompt.ids)
    for place in range(first, len(tokens)):
        proceed()
        logits = lens_logits(captured, len(captured.residual) - 1, [place - 1])[0]  # (V,)
        seen = Seen(sequence.ids[:place], first, row.own_turns)
        tokens[place]["choice"] = _choice_data(tokenizer, stages(logits, row.config, seen), sequence.ids[place])


def _choice_data(tokenizer: Tokenizer, found: list[Stage], chosen: int) -> ChoiceData:
    """Describe the stages by the tokens that are likeliest before and after them, and the one that came."""
    count = min(ALTERNATIVES, len(found[0].probabilities))
    before, after = found[0].probabilities, found[-1].probabilities
    likeliest_after = [token for token in after.topk(count).indices.tolist() if after[token] > 0]
    shown = dict.fromkeys([*before.topk(count).indices.tolist(), *likeliest_after, chosen])
    ids = torch.tensor(sorted(shown, key=lambda token: -float(before[token])), device=before.device)
    data: list[StageData] = []
    previous = before
    for stage in found:
        removed = int(stage.removed.sum())
        likeliest = previous.masked_fill(~stage.removed, -1.0).topk(min(REMOVED_TOKENS, removed)).indices
        data.append(
            {
                "name": stage.name,
                "settings": stage.settings,
                "probabilities": stage.probabilities[ids].tolist(),
                "kept": int((stage.probabilities > 0).sum()),
                "removed": removed,
                "removed_probability": float(previous[stage.removed].sum()),
                "removed_tokens": _candidates(tokenizer, likeliest, previous[likeliest]),
            }
        )
        previous = stage.probabilities
    return {
        "candidates": _candidates(tokenizer, ids, before[ids]),
        "stages": data,
        "possible": bool(after[chosen] > 0),
    }


def _model_data(model: GPT2, name: str) -> dict[str, Any]:
    config = model.config
    return {
        "name": name,
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "vocabulary": config.vocab_size,
        "positions": config.n_positions,
    }


def _acting_settings(config: GenerationConfig, seen: Seen) -> dict[str, Any]:
    """The settings that say something, by name."""
    acting = [name for processor in active_processors(config, [seen]) for name in processor.settings]
    named = [name for name, speaks in ABOUT_REPLIES.items() if speaks(config)] + acting
    values = {name: getattr(config, name) for name in named}
    return {name: value for name, value in values.items() if value is not None and value != OFF.get(name)}


def _turns_data(
    tokenizer: Tokenizer, turns: Sequence[Turn], sequence: _Sequence, reply: Sequence[int]
) -> list[TurnData]:
    """All turns and the reply; those before the first that was shown have no position."""
    hidden = sequence.prompt.first_turn
    data: list[TurnData] = [
        {
            "role": turn.role,
            "text": tokenizer.turn_text(turn, turn.role),
            "start": None if place < hidden else sequence.starts[place - hidden],
        }
        for place, turn in enumerate(turns)
    ]
    return [*data, {"role": "assistant", "text": tokenizer.turn_text(reply, BOT), "start": sequence.starts[-1]}]


def _considered_data(tokenizer: Tokenizer, considered: Considered) -> dict[str, Any]:
    def described(reply: Reply) -> dict[str, Any]:
        return {**asdict(reply), "text": tokenizer.turn_text(reply.ids, BOT)}

    return {
        "candidates": [described(reply) for reply in considered.candidates],
        "branches": [{**asdict(branch), "text": token_text(tokenizer, branch.token)} for branch in considered.branches],
        "beams": [described(reply) for reply in considered.beams],
        "rounds": [
            {
                "start": part.start,
                "accepted": part.accepted,
                "tokens": [{"id": token, "text": token_text(tokenizer, token)} for token in part.tokens],
            }
            for part in considered.rounds
        ],
    }
