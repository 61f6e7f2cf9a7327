"""Write a checkpoint for llama.cpp, Ollama and LM Studio: one GGUF file, with tokens, chat template and weights.

The names are those of llama.cpp's architecture "gpt2"; its matrices are (out, in), as ours. The file is written by the
`gguf` package (the `gguf` extra). Other formats are left to `convert.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dialogpt.errors import install_hint
from dialogpt.model.config import TANH_GELUS
from dialogpt.weights.card import write_card
from dialogpt.weights.checkpoint import Checkpoint
from dialogpt.weights.convert import Report, make_report
from dialogpt.weights.formats import CheckpointError, Progress, new_folder, non_finite, refuse
from dialogpt.weights.vocabulary import Vocabulary, chat_template

FILE = "model.gguf"
KINDS = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}  # --dtype -> GGUF's name
NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "output_head": "output",
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.output": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType
_BLOCK = 32  # numbers that share a scale in q8_0; a row must be a multiple of it


def write_gguf(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    progress: Progress | None = None,
) -> Report:
    """Write a folder with ``model.gguf`` and a model card.

    Args:
        checkpoint: of any form, with a vocabulary.
        destination: a new folder.
        dtype: of the matrices, a name in `KINDS`; vectors and positions stay float32.
        progress: called before each tensor is written.

    Raises:
        CheckpointError: gguf is not installed; llama.cpp cannot compute this network; the weights hold NaN; or the
            destination exists or cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"writing GGUF takes the gguf package: {install_hint('gguf')}") from None
    vocabulary = _require_fits(checkpoint, dtype)
    with new_folder(Path(destination)) as folder:
        writer = gguf.GGUFWriter(str(folder / FILE), "gpt2")
        _add_settings(writer, checkpoint, vocabulary)
        damage: list[str] = []
        tensors = checkpoint.tensors
        for done, (name, stored) in enumerate(tensors.items()):
            if progress is not None:
                progress(done, len(tensors))
            values = stored.read().float()
            damage += non_finite(stored, values)
            _add_tensor(gguf, writer, _title(name), values.contiguous().numpy(), KINDS[dtype])
        if checkpoint.config.tie_word_embeddings:  # llama.cpp wants the head under its own name as well
            head = tensors["token_embedding.weight"].read().float()
            _add_tensor(gguf, writer, "output.weight", head.contiguous().numpy(), KINDS[dtype])
        refuse(checkpoint.path, damage)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_card(folder, checkpoint)
    return make_report(checkpoint, Path(destination), dtype)


def _require_fits(checkpoint: Checkpoint, dtype: str) -> Vocabulary:
    """Refuse a network that llama.cpp's gpt2 computes otherwise, or that has no vocabulary."""
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    if dtype not in KINDS:
        raise CheckpointError(f"there is no dtype {dtype!r} in GGUF here; expected one of {', '.join(KINDS)}")
    if vocabulary is None:
        raise CheckpointError(
            f"{checkpoint.path} has no vocabulary, which a GGUF file needs; put it in the folder of the weights"
        )
    odd = [f"activation_function {config.activation_function}"] * (config.activation_function not in TANH_GELUS)
    odd += ["scale_attn_weights false"] * (not config.scale_attn_weights)
    odd += ["scale_attn_by_inverse_layer_idx"] * config.scale_attn_by_inverse_layer_idx
    if odd:
        raise CheckpointError(f"llama.cpp's gpt2 does not compute {', '.join(odd)}; export it with --to hf instead")
    return vocabulary


def _add_settings(writer: Any, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    config = checkpoint.config
    writer.add_name(checkpoint.origin().name)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_dim)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    texts = {n: token for token, n in vocabulary.ids.items()}
    rows = range(config.vocab_size)
    writer.add_token_list([texts.get(n, f"[unused{n}]") for n in rows])
    writer.add_token_types([_kind_of(texts.get(n), vocabulary) for n in rows])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_bos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(checkpoint.chat_template or chat_template(checkpoint.turn_prefix))


def _kind_of(token: str | None, vocabulary: Vocabulary) -> int:
    if token is None:
        return _UNUSED
    if token in vocabulary.added:
        return _USER_DEFINED
    return _CONTROL if token in vocabulary.special else _NORMAL


def _title(name: str) -> str:
    """llama.cpp's name of one of our tensors."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert match is not None
    layer, own, part = match.groups()
    return f"{NAMES[own]}.{part}" if layer is None else f"blk.{layer}.{NAMES[own]}.{part}"


def _add_tensor(gguf: Any, writer: Any, title: str, values: Any, kind: str) -> None:
    matrix = values.ndim == 2 and title != "position_embd.weight"
    if kind == "Q8_0" and values.shape[-1] % _BLOCK:
        kind = "F16"
    if not matrix or kind == "F32":
        writer.add_tensor(title, values)
        return
    quantized = getattr(gguf.GGMLQuantizationType, kind)
    writer.add_tensor(title, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
