"""FED: what a network expects to be said next, as a judgement of a dialogue; a reply is good if praise may follow it.

Mehri and Eskenazi, "Unsupervised Evaluation of Interactive Dialog with DialoGPT" (2020). For each quality there are
sentences that a person might say after a good reply, and after a bad one. The figure is the mean loss of the dialogue
followed by each of the bad ones, minus that with the good ones, higher is better. As in Shikib/fed, fed.py, the loss is
the mean over the tokens of the dialogue and the sentence together, and a side without sentences counts 0, so that such
qualities compare dialogues of similar length only. `PROTOCOL` says how a dialogue is written, on which the figures
depend much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dialogpt.decoding.stop import Stop
from dialogpt.history import BOT, alternating
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import score
from dialogpt.tokenizer import Tokenizer

PROTOCOL = (
    "turns joined by the end token, which also begins the dialogue; no speaker names, no blanks around end tokens, no "
    "end token after the sentence; loss averaged over all tokens but the first; a dialogue that does not fit loses its "
    "oldest tokens"
)
_MAKES_SENSE = ("That makes sense!", "You have a good point.")
QUALITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what follows a good reply, and a bad one
    "interesting": (
        ("Wow that is really interesting.", "That's really interesting!", "Cool! That sounds super interesting."),
        ("That's not very interesting.", "That's really boring.", "That was a really boring response."),
    ),
    "engaging": (
        ("Wow! That's really cool!", "Tell me more!", "I'm really interested in learning more about this."),
        (
            "Let's change the topic.",
            "I don't really care. That's pretty boring.",
            "I want to talk about something else.",
        ),
    ),
    "specific": (
        ("That's good to know. Cool!", "I see, that's interesting.", "That's a good point."),
        ("That's a very generic response.", "Not really relevant here.", "That's not really relevant here."),
    ),
    "relevant": (
        (),
        ("That's not even related to what I said.", "Don't change the topic!", "Why are you changing the topic?"),
    ),
    "correct": (
        (),
        ("You're not understanding me!", "I am so confused right now!", "I don't understand what you're saying."),
    ),
    "semantically appropriate": (_MAKES_SENSE, ("That makes no sense!",)),
    "understandable": (
        _MAKES_SENSE,
        ("I don't understand at all!", "I'm so confused!", "That makes no sense!", "What does that even mean?"),
    ),
    "fluent": (_MAKES_SENSE, ("Is that real English?", "I'm so confused right now!", "That makes no sense!")),
}  # the paper's qualities of a single reply; those of whole dialogues need the person's side too


def judge(
    model: GPT2, tokenizer: Tokenizer, turns: Sequence[str], reply: str, *, stop: Stop | None = None
) -> dict[str, float]:
    """Judge a reply by what may follow it: a figure for each of `QUALITIES`, in nats per token.

    Args:
        model: the network that judges; DialoGPT-large in the paper.
        tokenizer: of the same checkpoint.
        turns: what was said before.
        reply: what is judged.
        stop: asked before every few sentences are read; true ends it all.

    Raises:
        Stopped: `stop` returned true.
    """
    dialogue = [tokenizer.eos_id]
    for text, role in zip((*turns, reply), (*alternating(len(turns)), BOT), strict=True):
        dialogue += tokenizer.whole_turn(text, role)
    sentences = sorted({sentence for sides in QUALITIES.values() for side in sides for sentence in side})
    room = model.config.n_positions
    sequences = []
    for sentence in sentences:
        ids = tokenizer.encode(sentence)
        sequences.append([*dialogue[max(0, len(dialogue) + len(ids) - room) :], *ids])
    scores = score(model, sequences, stop=stop)
    losses = {sentence: -each.total / len(each.ids) for sentence, each in zip(sentences, scores, strict=True)}
    return {quality: _mean(bad, losses) - _mean(good, losses) for quality, (good, bad) in QUALITIES.items()}


def _mean(sentences: Sequence[str], losses: dict[str, float]) -> float:
    return math.fsum(losses[sentence] for sentence in sentences) / max(1, len(sentences))
