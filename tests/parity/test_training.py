"""Loss and gradients of training against transformers, in float64 with every parameter random.

Masked turns are compared with transformers' own loss, weighted ones with a plain formula over its logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dialogpt.model import GPT2
from dialogpt.train import objective
from dialogpt.train.data.batches import IGNORED, Batches
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import prepare
from dialogpt.train.distributed import Processes
from dialogpt.train.objective import Objective
from dialogpt.train.settings import TrainConfig
from dialogpt.train.trainer import Trainer
from dialogpt.weights.names import RULES
from tests.helpers import pair, seeded, small_vocabulary

NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    ours, theirs = pair(tmp_path_factory.mktemp("networks"), **NO_DROPOUT)
    return ours.train(), theirs.train()


def a_batch(rows: int = 4, width: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels with masked turns and padding, and weights between 0.1 and 2."""
    generator = seeded(3)
    ids = torch.randint(0, 97, (rows, width), generator=generator)
    labels = ids.clone()
    labels[:, :5] = IGNORED
    labels[1, 9:13] = IGNORED
    labels[2, 15:] = IGNORED
    return ids, labels, torch.rand(rows, width, generator=generator) * 1.9 + 0.1


def their_gradients(theirs: Any, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of transformers' network under our names and in our orientation."""
    theirs.zero_grad()
    loss.backward()
    found = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    gradients = {}
    for rule in RULES:
        for layer in range(theirs.config.n_layer) if "{" in rule.ours else (0,):
            gradient = found[rule.published.format(layer)]
            gradients[rule.ours.format(layer)] = gradient.t() if rule.transpose else gradient
    return gradients


def our_gradients(ours: GPT2, loss: Tensor) -> dict[str, Tensor]:
    ours.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def weighted(theirs: Any, ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The plain formula: the weighted mean of the target tokens' cross entropies."""
    logits = theirs(ids).logits[:, :-1]
    learned = labels[:, 1:] != IGNORED
    each = F.cross_entropy(logits[learned], labels[:, 1:][learned], reduction="none")
    return (each * weights[:, 1:][learned]).sum() / weights[:, 1:][learned].sum()


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_masked_loss_and_gradients_equal_theirs(
    networks: tuple[GPT2, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "CHUNK_ROWS", rows)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # their loss would round the logits to float32
    ours, theirs = networks
    ids, labels, _ = a_batch()
    reference = theirs(ids, labels=labels).loss
    loss = Objective(ours)(ids, labels) / (labels[:, 1:] != IGNORED).sum()
    assert abs(loss.item() - reference.item()) < 1e-9
    assert largest_difference(our_gradients(ours, loss), their_gradients(theirs, reference)) < 1e-9


def test_weighted_loss_and_gradients_equal_a_plain_formula(networks: tuple[GPT2, Any]) -> None:
    ours, theirs = networks
    ids, labels, weights = a_batch()
    reference = weighted(theirs, ids, labels, weights)
    loss = Objective(ours)(ids, labels, weights) / weights[:, 1:][labels[:, 1:] != IGNORED].sum()
    assert abs(loss.item() - reference.item()) < 1e-9
    assert largest_difference(our_gradients(ours, loss), their_gradients(theirs, reference)) < 1e-9


def shifted_twice(ids: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DialoGPT's own labels come shifted; shifting them once more teaches the token after the next."""
    return ids, labels.roll(-1, 1), weights


def learned_padding(ids: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ids, torch.where(labels == IGNORED, ids, labels), weights


def weights_of_the_token_before(ids: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ids, labels, weights.roll(1, 1)


@pytest.mark.parametrize("fault", [shifted_twice, learned_padding, weights_of_the_token_before])
def test_the_judge_sees_a_fault(
    networks: tuple[GPT2, Any], fault: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> None:
    ours, theirs = networks
    ids, labels, weights = a_batch()
    reference = weighted(theirs, ids, labels, weights)
    ids, labels, weights = fault(ids, labels, weights)
    loss = Objective(ours)(ids, labels, weights) / weights[:, 1:][labels[:, 1:] != IGNORED].sum()
    assert abs(loss.item() - reference.item()) > 1e-4


def test_a_step_averages_over_the_tokens_of_all_its_batches(networks: tuple[GPT2, Any], tmp_path: Path) -> None:
    """Two batches of unequal weight; the mean of their means, as DialoGPT's code and many others have it, differs."""
    vocabulary = small_vocabulary(merges=0)
    ours, theirs = pair(tmp_path / "pair", vocab_size=vocabulary.size, **NO_DROPOUT)
    turns = [["how are you", "well"], ["why", "because it is so"], ["a", "b", "c"], ["long " * 5, "long " * 3]]
    lines = [{"turns": each, "weights": [1, *(0.5 + n for n in range(1, len(each)))]} for each in turns]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = prepare([tmp_path / "data.jsonl"], tmp_path / "data", vocabulary, Format(window=48))
    batches = Batches(data, window=48, batch_tokens=60, first_is_target=False, seed=0)
    assert batches.per_epoch >= 2
    config = TrainConfig(steps=1, accumulation=batches.per_epoch, batch_tokens=60, dtype="float64", max_grad_norm=1e9)
    measured = Trainer(ours, batches, None, config, Processes(0, 1, torch.device("cpu"))).step()

    sums, means, weight = torch.zeros(()), [], 0.0
    for batch in (batches[n] for n in range(batches.per_epoch)):
        mean = weighted(theirs, batch.ids, batch.labels, batch.weights.double())
        sums, weight = sums + mean * batch.weight, weight + batch.weight
        means.append(mean.item())
    gradients = their_gradients(theirs, sums / weight)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert abs(measured.loss - sums.item() / weight) < 1e-9
    assert measured.grad_norm == pytest.approx(norm.item(), rel=1e-9)
    assert abs(measured.loss - sum(means) / len(means)) > 1e-4


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """With dropout, too: what is computed twice must draw the same numbers."""
    from dialogpt.train.dropout import use_cheap_dropout
    from dialogpt.train.trainer import recompute_blocks

    plain, _ = pair(tmp_path)
    again, _ = pair(tmp_path / "again")
    again.load_state_dict(plain.state_dict())
    recompute_blocks(again)
    computed: list[int] = []
    again.blocks[0].mlp.register_forward_pre_hook(lambda *_: computed.append(1))
    ids, labels, weights = a_batch()
    gradients = []
    for network in (plain, again):
        use_cheap_dropout(network)
        torch.manual_seed(5)
        gradients.append(our_gradients(network, Objective(network.train())(ids, labels, weights)))
    assert largest_difference(*gradients) < 1e-12
    assert len(computed) == 2  # once forwards, once on the way back
