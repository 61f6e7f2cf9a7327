"""What training libraries themselves write: each form by the library that produces it, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import Chat
from dialogpt.weights import CheckpointError, load, open_checkpoint
from tests.helpers import write_published

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]  # each version warns of other things
TEXTS = ["Hi!<|endoftext|>Hello.<|endoftext|>", "How are you?<|endoftext|>Fine.<|endoftext|>"] * 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    write_published(folder, n_embd=64, n_head=1, n_positions=64)
    return folder


@pytest.fixture
def network(base: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(base)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def beside(base: Path, folder: Path, *names: str) -> None:
    """Copy a checkpoint's text files to weights, as users do."""
    for name in names or ("config.json", "vocab.json", "merges.txt"):
        (folder / name).write_bytes((base / name).read_bytes())


def holds(source: Path, network: Any) -> bool:
    """Whether a source holds a network's weights, to the bit."""
    network.save_pretrained(source.parent / "expected")
    ours, theirs = (load(path, trainable=True).state_dict() for path in (source, source.parent / "expected"))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def dataset(folder: Path) -> list[dict[str, Any]]:
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    return [{"input_ids": (ids := tokenizer(text).input_ids[:6]), "labels": ids} for text in TEXTS]


def test_transformers_trainer(base: Path, network: Any, tmp_path: Path) -> None:
    """Its output folder holds checkpoints only; each of them holds an optimizer, a scheduler and random states."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    rows = [row for row in dataset(base) if len(row["input_ids"]) == 6]
    tokenizer = GPT2Tokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    Trainer(model=network, args=settings, train_dataset=rows, processing_class=tokenizer).train()  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="checkpoint-1, checkpoint-2; pass one of them"):
        open_checkpoint(tmp_path / "out")
    assert holds(tmp_path / "out" / "checkpoint-2", network)
    assert Chat.load(tmp_path / "out" / "checkpoint-2", seed=1).reply("Hi!") is not None


def test_accelerate(base: Path, network: Any, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters()))
    prepared(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    assert {"random_states_0.pkl", "optimizer.bin"} <= {path.name for path in (tmp_path / "state").iterdir()}
    accelerator.save_model(prepared, str(tmp_path / "shards"), max_shard_size="100KB")
    for name in ("state", "shards"):
        beside(base, tmp_path / name)
        assert holds(tmp_path / name, network)


@pytest.mark.parametrize("old", [False, True])
def test_opacus(base: Path, network: Any, tmp_path: Path, old: bool) -> None:
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    (tmp_path / "out").mkdir()
    state = opacus.GradSampleModule(network, strict=False).state_dict()
    assert all(name.startswith("_module.") for name in state)
    torch.save(state, tmp_path / "out" / "private.pt", _use_new_zipfile_serialization=not old)
    beside(base, tmp_path / "out")
    assert holds(tmp_path / "out", network)


def test_ddp_around_a_compiled_network(base: Path, network: Any, tmp_path: Path, group: None) -> None:
    for number, wrapped in enumerate(
        (
            torch.nn.parallel.DistributedDataParallel(network),
            torch.nn.parallel.DistributedDataParallel(torch.compile(network)),
            torch.compile(torch.nn.parallel.DistributedDataParallel(network)),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save({"model": wrapped.state_dict(), "epoch": 3}, folder / "last.pt")
        beside(base, folder)
        assert holds(folder, network)


def test_fsdp(base: Path, network: Any, tmp_path: Path, group: None) -> None:
    """Its consolidated state loads; its shards are refused with the command that merges them."""
    from torch.distributed import checkpoint as distributed_checkpoint
    from torch.distributed.checkpoint import state_dict as state_dicts

    for folder in ("whole", "shards"):
        (tmp_path / folder).mkdir()
        beside(base, tmp_path / folder)
    options = state_dicts.StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = state_dicts.get_model_state_dict(network, options=options)
    torch.save(whole, tmp_path / "whole" / "pytorch_model_fsdp.bin")
    assert holds(tmp_path / "whole", network)
    distributed_checkpoint.save({"model": network.state_dict()}, checkpoint_id=tmp_path / "shards")
    with pytest.raises(CheckpointError, match="distcp is a shard of torch's distributed checkpoints.*dcp_to_torch"):
        open_checkpoint(tmp_path / "shards")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    (tmp_path / "made").mkdir()
    dcp_to_torch_save(tmp_path / "shards", tmp_path / "made" / "model.pt")
    beside(base, tmp_path / "made")
    assert holds(tmp_path / "made", network)


def test_lightnings_fabric(base: Path, network: Any, tmp_path: Path) -> None:
    fabric_of = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    fabric = fabric_of.Fabric(accelerator="cpu")
    module, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters()))
    module(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    (tmp_path / "out").mkdir()
    fabric.save(tmp_path / "out" / "state.ckpt", {"model": module, "optimizer": optimizer, "step": 1})
    beside(base, tmp_path / "out")
    assert holds(tmp_path / "out", network)


def test_lightning(base: Path, network: Any, tmp_path: Path) -> None:
    """A whole run, with the callbacks and loops that its file then holds."""
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Bot(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"optimizer": torch.optim.AdamW, "path": Path("data")})
            self.network = network

        def training_step(self, batch: Any, _: int) -> Any:
            return self.network(batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    saves = lightning.callbacks.ModelCheckpoint(dirpath=tmp_path / "out", every_n_train_steps=2)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, callbacks=[saves], enable_progress_bar=False
    )
    rows = torch.arange(32).view(4, 8)
    trainer.fit(Bot(), torch.utils.data.DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    beside(base, tmp_path / "out")
    assert holds(tmp_path / "out", network)


def test_trl(base: Path, network: Any, tmp_path: Path) -> None:
    """Supervised fine-tuning on conversations, which gives the tokenizer a pad token."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to=[], bf16=False, max_length=32
    )
    tokenizer = GPT2Tokenizer.from_pretrained(base)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    trainer = trl.SFTTrainer(model=network, args=settings, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert holds(tmp_path / "saved", trainer.model)
    assert Chat.load(tmp_path / "saved", seed=1).tokenizer.eos_id == 556


def test_peft_on_top_of_a_trainers_checkpoint(base: Path, network: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapted = peft.get_peft_model(network, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "adapter")
    assert holds_merged(open_checkpoint(base, adapter=tmp_path / "adapter"), adapted.merge_and_unload(), tmp_path)


def holds_merged(checkpoint: Any, network: Any, tmp_path: Path) -> bool:
    network.save_pretrained(tmp_path / "merged")
    ours, theirs = (load(source, trainable=True).state_dict() for source in (checkpoint, tmp_path / "merged"))
    return all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)
