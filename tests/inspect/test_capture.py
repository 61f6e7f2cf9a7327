"""What is recomputed outside the network equals what the network computed, and what transformers reports."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dialogpt.inspect.attention import attention_weights, queries_keys_values, summed_by_turn
from dialogpt.inspect.capture import Capture, capture
from dialogpt.inspect.contributions import contributions, parts_of
from dialogpt.inspect.lens import lens_logits, read_lens
from dialogpt.model import GPT2
from dialogpt.weights import load
from tests.helpers import needs_int8, pair, random_model

IDS = [5, 17, 3, 3, 88, 41, 0, 96, 23, 9]
EVERYWHERE = range(len(IDS))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    """The same random network here and in transformers, whose eager attention returns its weights."""
    ours, theirs = pair(tmp_path_factory.mktemp("pair"))
    theirs.set_attn_implementation("eager")
    return ours, theirs


@pytest.fixture(scope="module")
def theirs_said(networks: tuple[GPT2, Any]) -> Any:
    with torch.no_grad():
        return networks[1](torch.tensor([IDS]), output_attentions=True, output_hidden_states=True)


@pytest.fixture(scope="module")
def captured(networks: tuple[GPT2, Any]) -> Capture:
    return capture(networks[0], IDS)


@torch.inference_mode()
def mixed(captured: Capture, layer: int, weights: Tensor) -> Tensor:
    """Attention weights times values, through the output projection: (T, C)."""
    values = queries_keys_values(captured, layer)[2]  # (H, T, D)
    heads = (weights @ values).transpose(0, 1).flatten(1)  # (T, C)
    result: Tensor = captured.model.blocks[layer].attention.output(heads)  # type: ignore[union-attr, operator]
    return result


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_the_network_used(captured: Capture, layer: int) -> None:
    found = mixed(captured, layer, attention_weights(captured, layer, EVERYWHERE))
    torch.testing.assert_close(found, captured.attention_output[layer], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_transformers_returns(captured: Capture, theirs_said: Any, layer: int) -> None:
    found = attention_weights(captured, layer, EVERYWHERE)
    torch.testing.assert_close(found, theirs_said.attentions[layer][0], rtol=0, atol=1e-12)


def test_the_test_of_attention_sees_a_lost_scale(captured: Capture) -> None:
    """Scores that are not divided by the root of D give other weights, which the comparison above must notice."""
    queries, keys, _ = queries_keys_values(captured, 0)
    future = torch.ones(len(IDS), len(IDS), dtype=torch.bool).triu(1)
    weights = (queries @ keys.transpose(1, 2)).masked_fill(future, -torch.inf).softmax(dim=-1)
    assert not torch.allclose(mixed(captured, 0, weights), captured.attention_output[0], atol=1e-3)


def test_some_positions_alone_look_as_they_do_among_all(captured: Capture) -> None:
    every = attention_weights(captured, 1, EVERYWHERE)
    torch.testing.assert_close(attention_weights(captured, 1, [7, 2]), every[:, [7, 2]], rtol=0, atol=1e-15)


def test_attention_by_turn_sums_to_one(captured: Capture) -> None:
    weights = attention_weights(captured, 0, EVERYWHERE)
    by_turn = summed_by_turn(weights, [0, 4, 8])
    assert by_turn.shape == (len(IDS), 3)
    torch.testing.assert_close(by_turn.sum(dim=1), torch.ones(len(IDS), dtype=torch.float64))
    torch.testing.assert_close(by_turn[9, 2], weights[:, 9, 8:].sum(dim=1).mean())
    assert float(by_turn[2, 1:].abs().max()) == 0  # turns that come later


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_lens_is_transformers_hidden_state_through_norm_and_head(
    captured: Capture, networks: tuple[GPT2, Any], theirs_said: Any, layer: int
) -> None:
    theirs = networks[1]
    hidden = theirs_said.hidden_states[layer][0]
    if layer < 2:  # the last is normed already
        hidden = theirs.transformer.ln_f(hidden)
    torch.testing.assert_close(lens_logits(captured, layer, EVERYWHERE), theirs.lm_head(hidden), rtol=0, atol=1e-12)


def test_the_lens_after_the_last_layer_is_the_network(captured: Capture, networks: tuple[GPT2, Any]) -> None:
    logits = networks[0](torch.tensor([IDS]))[0]
    torch.testing.assert_close(lens_logits(captured, 2, EVERYWHERE), logits, rtol=0, atol=1e-12)
    targets = [*IDS[1:], 1]
    last = read_lens(captured, EVERYWHERE, targets, 4)[-1]
    expected = logits.log_softmax(dim=-1)
    torch.testing.assert_close(last.log_probability, expected[EVERYWHERE, targets])
    assert last.rank.tolist() == [
        1 + int((row > row[target]).sum()) for row, target in zip(expected, targets, strict=True)
    ]
    assert last.top_ids[:, 0].tolist() == expected.argmax(dim=-1).tolist()


def test_a_long_sequence_is_read_in_pieces_with_the_same_result() -> None:
    model = random_model(n_positions=160)
    ids = torch.randint(97, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    found = read_lens(capture(model, ids), range(149), ids[1:], 3)[-1]
    expected = model(torch.tensor([ids]))[0, :-1].log_softmax(dim=-1)
    torch.testing.assert_close(found.log_probability, expected[range(149), ids[1:]])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_contributions_sum_to_the_logit(networks: tuple[GPT2, Any], tmp_path: Path, dtype: str) -> None:
    """In float64 what is left over is rounding; float32 is packed, and its head is read from the file."""
    networks[1].save_pretrained(tmp_path)
    captured = capture(load(tmp_path, dtype=dtype), IDS)
    tokens = [*IDS[1:], 1]
    logits = lens_logits(captured, 2, EVERYWHERE)[EVERYWHERE, tokens]
    split = contributions(captured, EVERYWHERE, tokens, logits)
    assert split.shape == (len(IDS), len(parts_of(2)))
    torch.testing.assert_close(split.sum(dim=1), logits)
    tolerance = 1e-12 if dtype == "float64" else 2e-4
    assert float(split[:, -1].abs().max()) < tolerance * float(logits.abs().max())


@needs_int8
def test_contributions_of_int8_miss_the_logit_by_its_rounding() -> None:
    """The head of int8 rounds its input, which no sum of parts can follow: what it misses is a part of its own."""
    exact, rounded = (capture(load("tiny", dtype=dtype), IDS) for dtype in ("float32", "int8"))
    tokens = [*IDS[1:], 1]
    for captured, most in ((exact, 1e-3), (rounded, 0.5)):
        logits = lens_logits(captured, 6, EVERYWHERE)[EVERYWHERE, tokens]
        split = contributions(captured, EVERYWHERE, tokens, logits)
        torch.testing.assert_close(split.sum(dim=1), logits)
        assert float(split[:, -1].abs().max()) < most


@needs_int8
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("int8", 0.1)])
def test_packed_networks_are_recomputed_too(dtype: str, tolerance: float) -> None:
    captured = capture(load("tiny", dtype=dtype), IDS)
    for layer in range(6):
        found = mixed(captured, layer, attention_weights(captured, layer, EVERYWHERE))
        assert float((found - captured.attention_output[layer]).abs().max()) < tolerance


def test_the_network_is_left_as_it_was_while_others_use_it() -> None:
    """A server inspects a reply while other threads decode with the same network: hooks on it would catch theirs."""
    model = random_model()
    expected = capture(model, IDS)
    stop = threading.Event()

    def decode() -> None:
        while not stop.is_set():
            model(torch.tensor([[1, 2, 3]]))

    other = threading.Thread(target=decode)
    other.start()
    try:
        found = [capture(model, IDS) for _ in range(20)]
    finally:
        stop.set()
        other.join()
    for each in found:
        assert [tuple(residual.shape) for residual in each.residual] == [(len(IDS), 24)] * 3
        torch.testing.assert_close(each.residual[-1], expected.residual[-1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_reading_one_token_is_enough() -> None:
    captured = capture(random_model(), [5])
    assert attention_weights(captured, 0, [0]).tolist() == [[[1.0]]] * 3
