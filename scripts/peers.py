"""Other inference engines and ours behind one interface: prefill a prompt, then generate tokens greedily.

`scripts/benchmark.py decode` times them, each in a process of its own, as threads of one that spin while idle
slow down the next. A peer that is not installed is skipped: transformers and CTranslate2 come with the test
install; for llama.cpp, `pip install llama-cpp-python gguf`, which compiles for about five minutes; for ONNX Runtime,
`pip install onnxruntime onnxscript`; for OpenVINO, `pip install openvino nncf`; for MLX, `pip install mlx-lm` on a Mac,
where it runs on the GPU, and `pip install mlx-lm "mlx[cpu]"` on Linux.

    python -m scripts.peers ours int8 PUBLISHED OURS   # stdin: a line of JSON per request, the prompt's ids and a count
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dialogpt import Draft, GenerationConfig, generate
from dialogpt.model import GPT2Config, KVCache
from dialogpt.model.precision import CPU_PRECISIONS
from dialogpt.weights import convert, export_gguf, load, open_checkpoint
from dialogpt.weights.llama_cpp import FILE, KINDS
from scripts.exported import openvino_model, write_onnx


class Generated(NamedTuple):
    """What a peer generated, and the seconds until the first token and for all that follow."""

    first: float
    rest: float
    ids: list[int]


Peer = Callable[[list[int], int], Generated]  # takes the prompt's ids, and how many tokens to generate after the first

ROOT = Path(__file__).parents[1]
ANSWER = "generated: "
STORED_SMALLER = "float32 of float16"  # a checkpoint in float16, as DialoGPT's are, computed in float32
BITS = {  # of a weight; groups of 32 have one number of 16 bits in q8_0, and two in int4
    "float32": 32, STORED_SMALLER: 16, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 5,
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5,
}  # fmt: skip
EXACT = {"float32", "f32"}  # computed as transformers does, so that greedy tokens are the same


def installed() -> list[tuple[str, str]]:
    """Return name and precision of every peer that is installed here."""
    names = [("ours", dtype) for dtype in (*CPU_PRECISIONS, STORED_SMALLER, "float32+int8")]
    if importlib.util.find_spec("transformers"):
        names += [("transformers", dtype) for dtype in ("float32", "bfloat16")]
    if importlib.util.find_spec("ctranslate2"):
        names += [("CTranslate2", dtype) for dtype in ("float32", "int8")]
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        names += [("llama.cpp", kind) for kind in ("f32", "f16", "q8_0")]
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        names += [("ONNX Runtime", dtype) for dtype in ("float32", "int8")]
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        names += [("OpenVINO", kind) for kind in ("f32", "bf16", "int8")]
    if importlib.util.find_spec("mlx") and importlib.util.find_spec("mlx_lm"):  # on Linux mlx-lm installs no mlx
        names.append(("MLX", "float32"))
    return names


@contextmanager
def served(name: str, precision: str, published: Path, ours: Path) -> Iterator[Peer]:
    """Start a peer in a process of its own.

    Args:
        name: of the peer.
        precision: of its weights; of ours also `STORED_SMALLER`, and "float32+int8", where float32 has the same network
            in int8 as its draft.
        published: a checkpoint as transformers saves it.
        ours: the same in this project's format.
    """
    command = [sys.executable, "-m", "scripts.peers", name, precision, str(published), str(ours)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def run(prompt: list[int], new: int) -> Generated:
            with suppress(BrokenPipeError):  # the peer has ended
                questions.write(json.dumps([prompt, new]) + "\n")
                questions.flush()
            for line in answers:
                if line.startswith(ANSWER):  # libraries print to stdout as well
                    return Generated(*json.loads(line.removeprefix(ANSWER)))
            raise RuntimeError(f"{name} {precision} ended; run it by hand: {shlex.join(command)}")

        yield run
        with suppress(BrokenPipeError):
            questions.close()


def main(argv: list[str]) -> int:
    """Load one peer, and time the requests on stdin."""
    name, precision, published, ours = argv
    peer = LOADERS[name](Path(ours if name in ("ours", "llama.cpp") else published), precision)
    for line in sys.stdin:
        prompt, new = json.loads(line)
        print(ANSWER + json.dumps(peer(prompt, new)), flush=True)
    return 0


def weight_bytes(config: GPT2Config, precision: str) -> float:
    """Return the bytes that a decoding step must read: every weight once, without position embeddings and draft."""
    numbers = config.vocab_size * config.n_embd
    numbers += config.n_layer * (4 * config.n_embd**2 + 2 * config.n_embd * config.inner_dim)
    return numbers * BITS[precision.partition("+")[0]] / 8


def _ours(folder: Path, precision: str) -> Peer:
    dtype, _, of_guesses = precision.partition("+")
    if dtype == STORED_SMALLER:
        folder, dtype = _in_float16(folder), "float32"
    network = load(folder, dtype=dtype)
    guessing = load(folder, dtype=of_guesses) if of_guesses else None

    def run(prompt: list[int], new: int) -> Generated:
        start = time.perf_counter()
        config = GenerationConfig(max_new_tokens=new + 1, eos_token_id=network.config.vocab_size)
        draft = None if guessing is None else Draft(guessing)
        stream = generate(network, prompt, config, cache=KVCache.for_model(network), draft=draft)
        ids = [next(stream).id]
        first = time.perf_counter()
        ids += [step.id for step in stream]
        return Generated(first - start, time.perf_counter() - first, ids)

    return run


def _in_float16(folder: Path) -> Path:
    """Write the same checkpoint rounded to float16 beside it."""
    target = folder.parent / f"{folder.name}-float16"
    if not target.exists():
        convert(folder, target, dtype="float16")
    return target


def _transformers(folder: Path, dtype: str) -> Peer:
    from transformers import GPT2LMHeadModel

    network: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def say(prompt: list[int], new: int) -> tuple[float, list[int]]:
        ids = torch.tensor([prompt])
        start = time.perf_counter()
        generated = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=network.config.vocab_size - 1,
        )  # fmt: skip
        return time.perf_counter() - start, generated[0, len(prompt) :].tolist()

    return lambda prompt, new: _apart(lambda number: say(prompt, number), new)


def _ctranslate2(folder: Path, dtype: str) -> Peer:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    target = folder.parent / f"ctranslate2-{dtype}"
    TransformersConverter(str(folder)).convert(str(target), quantization=dtype)
    threads = torch.get_num_threads()
    generator = ctranslate2.Generator(str(target), device="cpu", intra_threads=threads, compute_type=dtype)
    vocabulary = open_checkpoint(folder).vocabulary
    assert vocabulary is not None
    tokens = {number: token for token, number in vocabulary.ids.items()}

    def say(prompt: list[int], new: int) -> tuple[float, list[int]]:
        words = [[tokens[number] for number in prompt]]
        start = time.perf_counter()
        (generated,) = generator.generate_batch(
            words, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False
        )
        return time.perf_counter() - start, generated.sequences_ids[0]

    return lambda prompt, new: _apart(lambda number: say(prompt, number), new)


def _apart(say: Callable[[int], tuple[float, list[int]]], new: int) -> Generated:
    """Take the time to the first token and that of the rest apart, for a peer that returns whole replies only."""
    first, _ = say(1)
    whole, ids = say(new + 1)
    return Generated(first, whole - first, ids)


def _llama(folder: Path, kind: str) -> Peer:
    from llama_cpp import Llama

    dtype = next(dtype for dtype, name in KINDS.items() if name == kind.upper())
    export_gguf(folder, folder.parent / kind, dtype=dtype)
    file = folder.parent / kind / FILE
    threads = torch.get_num_threads()
    network: Any = Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def step(ids: list[int]) -> int:
        network.eval(ids)
        token: int = network.sample(temp=0.0)
        return token

    return lambda prompt, new: _by_steps(step, network.reset, prompt, new)


def _onnxruntime(folder: Path, dtype: str) -> Peer:
    """Run ONNX Runtime, whose cache stays in its own tensors; int8 has its dynamic quantization of all products."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = folder.parent / f"onnx-{dtype}" / "model.onnx"
    write_onnx(folder, file)
    if dtype == "int8":
        quantize_dynamic(file, file.with_name("quantized.onnx"), weight_type=QuantType.QInt8)
        file = file.with_name("quantized.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    tensor = onnxruntime.OrtValue.ortvalue_from_numpy
    names = [each.name for each in session.get_inputs()]
    _, H, _, D = session.get_inputs()[-1].shape
    order = tensor(np.zeros(1, np.int32))
    past: list[Any] = []

    def reset() -> None:
        past[:] = [tensor(np.zeros((1, H, 0, D), np.float32)) for _ in names[2:]]

    def step(ids: list[int]) -> int:
        inputs = dict(zip(names, (tensor(np.array([ids])), order, *past), strict=True))
        logits, *past[:] = session.run_with_ort_values(None, inputs)
        return int(logits.numpy()[0].argmax())

    return lambda prompt, new: _by_steps(step, reset, prompt, new)


def _openvino(folder: Path, kind: str) -> Peer:
    """Run OpenVINO for latency; int8 has its weights compressed by NNCF, and what it chooses for all else."""
    import nncf
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino_model(folder)
    if kind == "int8":
        model = nncf.compress_weights(model)
    else:
        settings["INFERENCE_PRECISION_HINT"] = kind
    if kind == "f32":
        settings["KV_CACHE_PRECISION"] = kind  # else of 8 bits
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    order = np.zeros(1, np.int32)

    def step(ids: list[int]) -> int:
        (logits,) = request.infer([np.array([ids]), order], share_inputs=True, share_outputs=True).values()
        return int(logits[0].argmax())

    return lambda prompt, new: _by_steps(step, request.reset_state, prompt, new)


def _mlx(folder: Path, _: str) -> Peer:
    """Run MLX by its own GPT-2, which knows the names of a network without its head, and a config's older field."""
    import mlx.core
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    target = folder.parent / "mlx"
    target.mkdir()
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("transformer."): each for name, each in tensors.items()}, target / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}), encoding="utf-8")
    network, _config = load_model(target)
    cache: list[Any] = []

    def reset() -> None:
        cache[:] = make_prompt_cache(network)

    def step(ids: list[int]) -> int:
        return int(network(mlx.core.array([ids]), cache=cache)[0, -1].argmax().item())

    return lambda prompt, new: _by_steps(step, reset, prompt, new)


def _by_steps(step: Callable[[list[int]], int], reset: Callable[[], object], prompt: list[int], new: int) -> Generated:
    """Generate with a peer that reads new ids and returns the token that follows."""
    reset()
    start = time.perf_counter()
    ids = [step(prompt)]
    first = time.perf_counter()
    for _ in range(new):
        ids.append(step(ids[-1:]))
    return Generated(first - start, time.perf_counter() - first, ids)


LOADERS: dict[str, Callable[[Path, str], Peer]] = {
    "ours": _ours, "transformers": _transformers, "CTranslate2": _ctranslate2, "llama.cpp": _llama,
    "ONNX Runtime": _onnxruntime, "OpenVINO": _openvino, "MLX": _mlx,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
