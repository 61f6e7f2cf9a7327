"""Check once that a device computes what the CPU computes: wrong results without an error are a known fault of some.

One fixed pass of a small network is compared with float32 on the CPU. The verdict is kept by device, driver, dtype and
torch version, so that later starts read one small file.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from dialogpt.files.disk import write_atomically
from dialogpt.model import GPT2, GPT2Config
from dialogpt.weights.formats import CheckpointError

# How far logits may be apart, as a part of the largest: ten times what rounding to the dtype explains.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.05}
_NVIDIA = Path("/proc/driver/nvidia/version")  # of the loaded driver, on Linux; torch knows CUDA's version only
_SIZES = GPT2Config(vocab_size=512, n_positions=64, n_embd=128, n_layer=2, n_head=2, eos_token_id=511)


def check_device(device: torch.device, dtype: torch.dtype, cache: Path) -> None:
    """Compare a device with the CPU, unless that was done before.

    Args:
        device: not the CPU.
        dtype: what the network will compute in.
        cache: the folder in which the verdict is kept.

    Raises:
        CheckpointError: they differ by more than the dtype explains.
    """
    key = f"{device.type} {_driver(device)} {str(dtype).removeprefix('torch.')} torch {torch.__version__}"
    path = cache / "devices.json"
    known = _known(path)
    if key in known:
        return
    difference = measured_difference(device, dtype)
    if not difference <= TOLERANCE[dtype]:  # also where it is NaN
        raise CheckpointError(
            f"the device {device} computes something else than the CPU in {dtype}: logits differ by {difference:.0%} "
            f"of the largest (torch {torch.__version__}); use --device cpu, or another version of torch or the driver"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known | {key: difference}, indent=2) + "\n")
    except OSError:  # a read-only home: the check runs again next time
        return


def measured_difference(device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference of the logits of one fixed pass, as a part of the largest logit on the CPU."""
    generator = torch.Generator().manual_seed(0)
    network = GPT2(_SIZES).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    ids = torch.randint(0, _SIZES.vocab_size, (2, 48), generator=generator)  # (B, T)
    with torch.inference_mode():
        expected = network(ids)  # (B, T, V)
        found = network.to(device, dtype)(ids.to(device)).float().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def _driver(device: torch.device) -> str:
    """Name what computes: the card, its driver and CUDA or ROCm; elsewhere the system, whose drivers come with it."""
    if device.type == "cuda":
        driver = _NVIDIA.read_text().partition("\n")[0] if _NVIDIA.is_file() else ""
        return f"{torch.cuda.get_device_name(device)} {torch.version.cuda or torch.version.hip} {driver}".rstrip()
    return f"{platform.machine()} {platform.version()[:80]}"


def _known(path: Path) -> dict[str, float]:
    """The devices that were found right."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < 1 << 20 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
