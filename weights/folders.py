"""Which files of a folder hold a checkpoint's weights, by their names; what other systems' files are, and what helps.

Reading them is left to `dialogpt.weights.formats`, opening a checkpoint to `checkpoint.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from dialogpt.errors import first_names
from dialogpt.files.disk import LINK_LIMIT
from dialogpt.weights.formats import CheckpointError, FileContent, read_json, read_tensors

WEIGHT_FILES = (  # in the order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".ckpt",
)  # others count as weights only by their content
MAX_SHARDS = 1000
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+\.")
_MODEL_PARALLEL = re.compile(r"mp_rank_[0-9]+_model_states\.pt")  # one alone, of DeepSpeed, is the whole network
_RUN_STEP = re.compile(r"(?:(?:checkpoint|step|checkpoint_step)[-_]|global_step)([0-9]{1,18})")
RUN = "run.json"  # what a training run's folder has
STEP = re.compile(r"step-[0-9]{8,}")  # how a run names its checkpoints
_NO_WEIGHTS = (  # what training leaves next to them
    "training_args.bin",
    "optimizer*",
    "*optim_states.pt",
    "zero_pp_rank_*_model_states.pt",
    "scheduler*",
    "scaler*",
    "sampler*",
    "rng_state*",
    "random_states*",
    "adapter_model.*",
)
_BESIDE = (
    "fetch the model.safetensors or pytorch_model.bin that is published beside it, or convert it with transformers 4 "
    "and its framework (from_pretrained with from_tf or from_flax, then save_pretrained)"
)
_FOREIGN = {  # other systems' files: what each is, and what helps
    "*.h5": ("TensorFlow's weights", _BESIDE),
    "*.msgpack": ("Flax's weights", _BESIDE),
    "*.ot": ("rust-bert's weights", "fetch the model.safetensors or pytorch_model.bin that is published beside it"),
    **dict.fromkeys(
        ("*.ckpt*.index", "*.ckpt*.meta", "*.ckpt*.data-*"),
        (
            "a part of OpenAI's original TensorFlow checkpoint",
            "the same weights are published for PyTorch: openai-community/gpt2 on the Hugging Face hub, or gpt2-medium,"
            " gpt2-large and gpt2-xl there",
        ),
    ),
    "*.gguf": (
        "llama.cpp's weights, mostly rounded to few bits",
        "run it with llama.cpp, or fetch the checkpoint that it was made from (convert --to gguf makes one of any)",
    ),
    "*.distcp": (
        "a shard of torch's distributed checkpoints",
        "make one file of the folder: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    ),
    "zero_pp_rank_*_model_states.pt": (
        "a shard of DeepSpeed's ZeRO-3, with a part of each weight",
        "merge the shards by the script that DeepSpeed wrote into the run's folder: python zero_to_fp32.py . MERGED",
    ),
    "*.gz": ("a packed file", "unpack it first"),
    "*.zip": ("a packed file", "unpack it first"),
    "*.onnx": ("an ONNX program", "fetch the checkpoint that it was made from"),
}


def pointed_folder(path: Path) -> Path | None:
    """The checkpoint that a run's `last` or `best` stands for; None if the path is no such thing.

    Each is a small text file that names a folder beside it, as links need a right on Windows that few people have.
    Earlier versions made links, which are still followed.

    Raises:
        CheckpointError: the folder that it names is not there.
    """
    try:
        if path.is_dir():
            return path.resolve()
        if not path.is_file() or path.stat().st_size > LINK_LIMIT:
            return None
        name = path.read_bytes().strip().decode("ascii", "replace")
    except OSError:
        return None
    if not STEP.fullmatch(name):
        return None
    folder = path.parent.resolve() / name
    if not folder.is_dir():
        raise CheckpointError(f"{path} names {name}, which is not in the same folder; pass another of its checkpoints")
    return folder


def best_of_run(folder: Path) -> Path | None:
    """The best checkpoint of a training run, else its last; None if the folder is no run's."""
    if not (folder / RUN).is_file():
        return None
    return pointed_folder(folder / "best") or pointed_folder(folder / "last")


def weights_among(names: Iterable[str]) -> str | None:
    """The file that holds a checkpoint's weights, or their index, by its name; None where that is not clear.

    Args:
        names: of all files in a folder.
    """
    names = sorted(names)
    usual = next((name for name in WEIGHT_FILES if name in names), None)
    others = _other_weights(names)
    return usual or (others[0] if len(others) == 1 else None)


def _other_weights(names: Iterable[str]) -> list[str]:
    """Files that may hold weights under any name, as Microsoft's `small_ft.pkl` does."""
    fitting = [name for name in names if Path(name).suffix in WEIGHT_SUFFIXES]
    return [name for name in fitting if not any(fnmatch(name, pattern) for pattern in _NO_WEIGHTS)]


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights, in a fixed order."""
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        chosen = weights_among(names)
        if chosen is None:
            raise CheckpointError(no_weights(path, names))
        path = path / chosen
    if not path.name.endswith(".index.json"):
        return (path,)
    return tuple(path.parent / name for name in shard_names(path))


def no_weights(folder: str | Path, names: list[str]) -> str:
    """Why a folder, or a repository on the hub, holds no weights that can be used."""
    several = _other_weights(names)
    if any(_SHARD.search(name) for name in several):
        return f"{folder} holds shards of weights ({several[0]}, ...) without their index, a .index.json; fetch it too"
    if several and all(map(_MODEL_PARALLEL.fullmatch, several)):
        return (
            f"{folder} holds a network that was divided among {len(several)} GPUs ({several[0]}, ...): each file has a "
            f"part of each weight; merge them with the program that trained it"
        )
    if several:
        return f"{folder} holds several files of weights ({first_names(several)}); pass the one that is meant"
    usual = ", ".join(WEIGHT_FILES)
    if "adapter_config.json" in names:
        return (
            f"{folder} is a PEFT adapter, which changes a base checkpoint's weights; pass the base as the model, and "
            f"this folder with --adapter"
        )
    if checkpoints := _checkpoints_in(Path(folder), names):
        return (
            f"{folder} has no weights, but checkpoints of a training run: {', '.join(checkpoints[-4:])}; pass one of "
            f"them, such as {Path(folder) / checkpoints[-1]}"
        )
    return foreign_file(folder, names) or f"{folder} has no weights; expected one of {usual}, or one .pkl of any name"


def _checkpoints_in(folder: Path, names: Iterable[str]) -> list[str]:
    """The folders that transformers' Trainer, accelerate or a run of ours wrote into a folder, by their steps."""
    steps = sorted((int(match[1]), name) for name in names if (match := _RUN_STEP.fullmatch(name)))
    return [name for _, name in steps if (folder / name).is_dir()]


def foreign_file(folder: str | Path, names: Iterable[str]) -> str | None:
    """The error for another framework's file, if there is one."""
    for name in names:
        for pattern, (kind, advice) in _FOREIGN.items():
            if fnmatch(name, pattern):
                return f"{Path(folder) / name} is {kind}, which is not read here: {advice}"
    return None


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, in a fixed order; all are in the same folder.

    Raises:
        CheckpointError: it is no index, or points elsewhere.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(shards.values()))
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names):,} files; expected at most {MAX_SHARDS}")
    foreign = [name for name in names if Path(name).name != name or name in (".", "..") or "\\" in name]
    if foreign:
        raise CheckpointError(f"{index} points outside its folder ({foreign[0]!r}); expected plain file names")
    return names


def read_all(files: tuple[Path, ...]) -> FileContent:
    """List the tensors of all files of one checkpoint.

    Raises:
        CheckpointError: files are missing, damaged, or hold the same tensor twice.
    """
    content = FileContent({})
    missing = [file.name for file in files if not os.path.isfile(file)]  # noqa: PTH113 - says no where a Path would raise
    if missing:
        raise CheckpointError(f"{files[0].parent} lacks files of weights: {first_names(missing)}; fetch them into it")
    for file in files:
        part = read_tensors(file)
        twice = sorted(content.tensors.keys() & part.tensors.keys())
        if twice:
            raise CheckpointError(f"{file} holds tensors that another shard holds too: {first_names(twice)}")
        content.tensors.update(part.tensors)
        content.ignored.update(part.ignored)
        content.settings.update(part.settings)
    return content
