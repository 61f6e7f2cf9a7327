"""Files that are damaged or made to harm: each ends in a sentence, soon, with little memory, and leaves nothing.

The limits are above a process that has imported torch: 2 seconds, and 200 MB plus the files' size. A flipped bit that
no format can notice (in safetensors' and the older pickles' numbers, which have no checksum) is left to the hub's.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import pickle
import random
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dialogpt.weights import CheckpointError, convert
from tests.helpers import LINUX, WINDOWS, weights_of, write_published

SECONDS, MEGABYTES = 2, 200  # of the processor: other programs may run beside it
CONTAINERS = ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin", "last.ckpt", "old last.ckpt"]
FLIPS, CUTS = 60, 25  # of each container, in the parts that a reader can judge


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("published") / "small"
    write_published(folder, n_embd=8, n_head=2, n_layer=1, n_positions=16)
    return folder


@pytest.fixture(scope="module")
def containers(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same weights in each container."""
    folder = tmp_path_factory.mktemp("containers")
    state = load_file(small / "model.safetensors")
    torch.save(state, folder / "new")
    torch.save(state, folder / "old", _use_new_zipfile_serialization=False)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    options = argparse.Namespace(lr=1e-4)
    training = {"state_dict": state, "optimizer_states": [optimizer], "hyper_parameters": options, "epoch": 3}
    torch.save(training, folder / "training")
    torch.save(training, folder / "old training", _use_new_zipfile_serialization=False)
    return {
        "last.ckpt": (folder / "training").read_bytes(),
        "old last.ckpt": (folder / "old training").read_bytes(),
        "model.safetensors": (small / "model.safetensors").read_bytes(),
        "pytorch_model.bin": (folder / "new").read_bytes(),
        "old pytorch_model.bin": (folder / "old").read_bytes(),
    }


def peak() -> float:
    """The most memory that this process has held since `forget_peak`, in MB; 0 where the system does not say."""
    if not LINUX:
        return 0.0
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Reset the peak, without what earlier files left in the heap, which would hide the memory of the next."""
    if not LINUX:
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def judge(folder: Path) -> str | None:
    """Convert a folder; returns the sentence of its refusal, or None if it was converted.

    Whatever happens, it takes little time and memory, and what is refused leaves nothing.
    """
    outside = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    megabytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    forget_peak()
    before, start = peak(), time.process_time()
    try:
        convert(folder, folder.parent / "ours")
    except CheckpointError as error:
        sentence = str(error)
    else:
        sentence = None
    assert time.process_time() - start < SECONDS
    assert peak() - before < MEGABYTES + megabytes
    if sentence is None:
        return None
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == outside
    assert "\n" not in sentence
    assert len(sentence) < 1200
    assert "weights_only" not in sentence
    return sentence


def refused(folder: Path, expected: str) -> None:
    """See that a folder is refused, and for the reason that it was made for."""
    sentence = judge(folder)
    assert sentence is not None
    assert re.search(expected, sentence), sentence


def with_weights(small: Path, tmp_path: Path, container: str, data: bytes) -> Path:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / container.removeprefix("old ")).write_bytes(data)
    return folder


def judged_part(container: str, data: bytes) -> list[int]:
    """The places whose change a reader can see: all but numbers that no checksum guards."""
    if container == "model.safetensors":
        return list(range(8 + int.from_bytes(data[:8], "little")))
    if container in ("pytorch_model.bin", "last.ckpt"):
        return list(range(len(data)))
    end = data.rindex(b"e.") + 2  # of the last pickle, the list of storages
    return list(range(end))


@pytest.mark.parametrize("container", CONTAINERS)
def test_flipped_bits_are_refused_or_harmless(
    small: Path, containers: dict[str, bytes], tmp_path: Path, container: str
) -> None:
    chance, data = random.Random(container), containers[container]
    expected, refused = weights_of(small), 0
    for place in chance.sample(judged_part(container, data), FLIPS):
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        folder = with_weights(small, tmp_path, container, bytes(changed))
        if judge(folder) is None:  # a note in the header, the name of a device, the padding between records
            found = weights_of(tmp_path / "ours")
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            shutil.rmtree(tmp_path / "ours")
        else:
            refused += 1
    assert refused > FLIPS // 4


@pytest.mark.parametrize("container", CONTAINERS)
def test_files_that_are_cut_short_are_refused(
    small: Path, containers: dict[str, bytes], tmp_path: Path, container: str
) -> None:
    chance, data = random.Random(container), containers[container]
    for length in [0, 1, 8, 9, len(data) - 1, *chance.sample(range(len(data)), CUTS - 5)]:
        assert judge(with_weights(small, tmp_path, container, data[:length])) is not None, length


# ---- pickles that would run code, in both of torch's formats ----


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


MARK = text("touch MARK")
RUNNING = {
    "a call": b"\x80\x02cos\nsystem\n" + MARK + b"\x85R.",
    "a call by a name on the stack": b"\x80\x04" + text("os") + text("system") + b"\x93" + MARK + b"\x85R.",
    "INST": b"(S'touch MARK'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + MARK + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + MARK + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + MARK + b"\x85}\x92.",
    "a registered extension": b"\x80\x02\x82\x01" + MARK + b"\x85R.",
    "a persistent name": b"Pos.system\n.",
    "a state to set": b"\x80\x02ccollections\nOrderedDict\n)R" + b"cos\nsystem\n" + b"b.",
    "a constructor": b"\x80\x02ccopyreg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n" + text("os") + text("system") + b"\x86R.",
    "eval": b"\x80\x02cbuiltins\neval\n" + text("__import__('os').system('touch MARK')") + b"\x85R.",
    "torch's rebuilding by type": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN" + MARK
    + b"\x85NtR.",
    "torch's nested loading": b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x04abcd\x85R.",
    "torch.load": b"\x80\x02ctorch.serialization\nload\n" + text("x") + b"\x85R.",
    "torch.hub": b"\x80\x02ctorch.hub\nload\n" + text("x") + text("y") + b"\x86R.",
    "torch's rebuilding of a wrapper": b"\x80\x02ctorch._utils\n_rebuild_wrapper_subclass\n(NtR.",
    "a storage that is a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
    + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQK\x00)K\x01\x85\x89NtR.",
    "a parameter that is a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n\x88NtR.",
    "a name with spaces": b"\x80\x02ccollections OrderedDict os\nsystem\n)R.",
}  # fmt: skip
BROKEN: dict[str, tuple[bytes, str]] = {
    "no tensor": (b"\x80\x02K\x01.", "does not hold a dictionary"),
    "nothing": (b"", "damaged pickle"),
    "no end": (b"\x80\x02}", "damaged pickle"),
    "a mark that is missing": (b"\x80\x02t.", "damaged pickle"),
    "an empty stack": (b"\x80\x02R.", "damaged pickle"),
    "what was never kept": (b"\x80\x02h\x07.", "damaged pickle"),
    "a place to keep far away": (b"\x80\x02}r\xff\xff\xff\x7f.", "declares other sizes|damaged pickle"),
    "text of 2 GB": (b"\x80\x02X\xff\xff\xff\x7f", "damaged pickle"),
    "text of 2^60 bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60), "damaged pickle"),
    "bytes of 2^60": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 60), "damaged pickle"),
    "a frame of 2^60": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.", "declares other sizes|damaged pickle"),
    "a number of 255 bytes": (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "does not hold a dictionary"),
    "a million empty dictionaries": (b"\x80\x02" + b"}" * 1_000_000 + b".", "takes more than 200,000 steps|damaged"),
    "300,000 steps": (b"\x80\x02}q\x00" + b"h\x00q\x00" * 150_000 + b".", "more than 200,000 steps"),
    "tuples in tuples as keys": (b"\x80\x02})" + b"q\x000h\x00h\x00\x86" * 60 + b"K\x01s.", "does not hold"),
    "a tuple of tuples as a key": (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "does not hold a dictionary"),
    "a function that is a tuple": (b"\x80\x02)(tR.", "damaged pickle"),
    "a storage in a storage": (b"\x80\x02(Qt.", "damaged pickle"),
    "keys that are numbers": (b"\x80\x02}K\x01K\x02s.", "does not hold a dictionary from names"),
    "half a surrogate pair": (b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.", "does not hold a dictionary"),
    "a name twice": (b"\x80\x02}" + (text("a") + b"K\x01s") * 2 + b".", "names 'a' twice"),
    "a dictionary in itself": (b"\x80\x02}q\x00" + text("a") + b"h\x00s.", "does not hold a dictionary"),
    "a list": (b"\x80\x02].", "does not hold a dictionary"),
    # A memoised argument is work each time that it is named, and few instructions name it often.
    "a long list again and again": (
        b"\x80\x02ccollections\nOrderedDict\nq\x02](" + b")" * 20_000 + b"e\x85q\x01" + b"h\x02h\x01R" * 1000 + b".",
        "damaged pickle|more than 200,000 steps",
    ),
    "many keys again and again": (
        b"\x80\x02ccollections\nOrderedDict\nq\x02]("
        + b"".join(text(str(n)) + b"K\x01\x86" for n in range(30_000))
        + b"e\x85q\x01" + b"h\x02h\x01R" * 1000 + b".",
        "more than 200,000 steps",
    ),
    "a storage that is a part of another": (
        b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04(" + text("1")
        + b"K\x00K\x04ttQK\x00K\x04\x85K\x01\x85\x89NtRs.",
        "storages that are parts of others",
    ),
    "numbers that are complex": (
        b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + b"ctorch\nComplexFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQK\x00K\x04\x85K\x01\x85\x89NtRs.",
        r"numbers that no GPT-2 has \(torch.ComplexFloatStorage\)",
    ),
}  # fmt: skip


def in_archive(small: Path, change: Callable[[bytes], bytes], path: Path) -> None:
    """Torch's archive, with the pickle in it changed, and its checksum right."""
    torch.save(load_file(small / "model.safetensors"), path)
    with zipfile.ZipFile(path) as source:
        records = [(name, source.read(name)) for name in source.namelist()]
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records:
            target.writestr(name, change(data) if name.endswith("data.pkl") else data)


def in_old_file(small: Path, change: Callable[[bytes], bytes], path: Path) -> None:
    """Torch's older file, with the fourth pickle in it, the state_dict, changed."""
    torch.save(load_file(small / "model.safetensors"), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    first = data.index(b"\x80\x02}q\x00(", 30)
    last = data.index(b".\x80\x02]q\x00(", first) + 1
    assert pickle.loads(data[last : data.rindex(b"e.") + 2])  # the list of storages comes next
    path.write_bytes(data[:first] + change(data[first:last]) + data[last:])


@pytest.mark.parametrize("write", [in_archive, in_old_file])
@pytest.mark.parametrize("case", [*RUNNING, *BROKEN])
def test_a_pickle_that_does_more_than_describe_tensors_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], case: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where MARK would be made
    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    content, expected = BROKEN[case] if case in BROKEN else (RUNNING[case], "would run code when loaded")
    write(small, lambda _: content, folder / "pytorch_model.bin")
    refused(folder, expected)
    assert not list(tmp_path.rglob("MARK"))


def test_the_pickles_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: Python's own reader makes MARK."""
    for case in ("a call", "a call by a name on the stack", "INST", "OBJ", "eval"):
        monkeypatch.chdir(tmp_path)
        pickle.loads(RUNNING[case])
        (tmp_path / "MARK").unlink()


# ---- tensors that are not what they say ----


def claiming(count: bytes) -> Callable[[bytes], bytes]:
    """Change the count of a storage of 24 numbers, which ends its description (before a None in the older format)."""
    return lambda data: re.sub(rb"K\x18(N?t)", lambda match: count + match[1], data, count=1)


DESCRIBED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a storage that claims more": (claiming(b"K\x19"), "declares other sizes"),
    "a storage that claims 2^40": (claiming(b"\x8a\x06\0\0\0\0\0\x01"), "declares other sizes"),
    "a storage that claims less than nothing": (claiming(b"J\xff\xff\xff\xff"), "damaged pickle"),
    "an unknown type of storage": (lambda data: data.replace(b"FloatStorage", b"GloatStorage"), "that no GPT-2 has"),
    "another type of storage": (lambda data: data.replace(b"FloatStorage", b"HalfStorage"), "declares other sizes"),
    "a tensor beyond its storage": (lambda data: data.replace(b"K\x18\x85", b"K\x19\x85", 1), "beyond its storage"),
    "a tensor at an offset": (
        lambda data: data.replace(b"QK\x00K\x18\x85", b"QK\x01K\x18\x85", 1),
        "beyond its storage",
    ),
    "a tensor of fewer numbers": (lambda data: data.replace(b"K\x18\x85q", b"K\x17\x85q", 1), "wrong shapes"),
    "a stride of nothing": (
        lambda data: data.replace(b"K\x08K\x01\x86", b"K\x00K\x00\x86", 1),
        "not stored row by row",
    ),
    "a shape of nine": (lambda data: data.replace(b"K\x08K\x01\x86", b"(" + b"K\x01" * 9 + b"t", 1), "damaged pickle"),
}


@pytest.mark.parametrize("write", [in_archive, in_old_file])
@pytest.mark.parametrize("case", DESCRIBED)
def test_a_description_that_does_not_fit_the_numbers_is_refused(
    small: Path, tmp_path: Path, write: Callable[..., None], case: str
) -> None:
    make, expected = DESCRIBED[case]

    def change(data: bytes) -> bytes:
        changed = make(data)
        assert changed != data
        return changed

    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    write(small, change, folder / "pytorch_model.bin")
    refused(folder, expected)


VIEWS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "turned": (lambda tensor: torch.ones(24, 8).t(), "not stored row by row; save it as tensor.contiguous"),
    "expanded": (lambda tensor: torch.ones(1).expand(8), "not stored row by row"),
    "negated": (lambda tensor: torch._neg_view(-tensor), "negated or conjugated view"),
    "sparse": (lambda tensor: torch.ones(8).to_sparse(), "would run code"),
    "complex": (lambda tensor: torch.ones(8, dtype=torch.complex64), "numbers that no GPT-2 has"),
    "without numbers": (lambda tensor: torch.empty(8, device="meta"), "would run code"),
    "whole numbers": (lambda tensor: torch.ones(8, dtype=torch.int64), "not float64, float32"),
    "a number": (lambda tensor: 3, "'transformer.ln_f.bias' is none"),
    "nested": (lambda tensor: {"a": torch.ones(8)}, "ln_f.bias' is none"),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("case", VIEWS)
def test_what_is_no_plain_tensor_is_refused(small: Path, tmp_path: Path, case: str, new: bool) -> None:
    """A view that torch stores with a note, such as a negated one, loaded without its note would be wrong weights."""
    make, expected = VIEWS[case]
    state: dict[str, object] = dict(load_file(small / "model.safetensors"))
    name = "transformer.h.0.attn.c_attn.weight" if case == "turned" else "transformer.ln_f.bias"
    tensor = state[name]
    assert isinstance(tensor, Tensor)
    state[name] = make(tensor)
    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    refused(folder, expected)


def test_layers_that_share_their_numbers_are_refused(small: Path, tmp_path: Path) -> None:
    """A small file would make a large network of itself."""
    state = load_file(small / "model.safetensors")
    layer = {name: tensor for name, tensor in state.items() if ".h.0." in name}
    shared = {name.replace(".h.0.", f".h.{n}."): tensor for n in range(50) for name, tensor in layer.items()}
    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 50}))
    torch.save(state | shared, folder / "pytorch_model.bin")
    refused(folder, "bytes of tensors that share .*; expected no layer twice")


# ---- archives, headers and text that declare more than they hold ----


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


def entry(shape: object, offsets: object, dtype: str = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


SAFETENSORS = {
    "a header of 2^63 bytes": struct.pack("<Q", (1 << 63) - 1) + b"{",
    "a header of all but one byte": struct.pack("<Q", 6 << 20) + b"{" + b" " * (7 << 20),
    "no object": header(b"[]"),
    "no JSON": header(b"{" + b"x" * 50),
    "not UTF-8": header(b'{"\xff": 1}'),
    "a name twice": header(f'{{"a": {entry([1], [0, 4])}, "a": {entry([1], [0, 4])}}}'.encode(), b"0000"),
    "a tensor of 2^62 numbers": header(f'{{"a": {entry([1 << 62], [0, 1 << 64 - 1])}}}'.encode()),
    "shapes that overflow": header(f'{{"a": {entry([1 << 33, 1 << 33], [0, 4])}}}'.encode(), b"0000"),
    "a negative shape": header(f'{{"a": {entry([-1], [0, 4])}}}'.encode(), b"0000"),
    "offsets turned around": header(f'{{"a": {entry([1], [4, 0])}}}'.encode(), b"0000"),
    "offsets that overlap": header(f'{{"a": {entry([1], [0, 4])}, "b": {entry([1], [2, 6])}}}'.encode(), b"000000"),
    "offsets beyond the end": header(f'{{"a": {entry([2], [0, 8])}}}'.encode(), b"0000"),
    "a tensor as a list": header(b'{"a": ["F32", [1], [0, 4]]}', b"0000"),
    "a hole": header(f'{{"a": {entry([1], [4, 8])}}}'.encode(), b"00000000"),
    "an unknown dtype": header(f'{{"a": {entry([1], [0, 4], "Q7")}}}'.encode(), b"0000"),
    "more behind": header(f'{{"a": {entry([1], [0, 4])}}}'.encode(), b"00000000"),
    "nested too deep": header(b'{"a":' * 100_000),
    "a note twice": header(b'{"__metadata__":{' + b",".join(b'"%d":""' % (n % 20_000) for n in range(20_001)) + b"}}"),
    "half a million notes": header(b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(300_000)) + b"}}"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_header_that_does_not_fit_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    usual = "not a whole safetensors file|is not valid JSON|are not those of a GPT-2|declares a header"
    special = {
        "a name twice": "is duplicate",
        "a tensor as a list": "does not describe 'a' as an object",
        "a note twice": "is duplicate",
        "half a million notes": "are not those of a GPT-2",
    }
    refused(with_weights(small, tmp_path, "model.safetensors", SAFETENSORS[case]), special.get(case, usual))


def zipped(path: Path, *records: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)


EMPTY = ("archive/data.pkl", b"\x80\x02}.")


def many_records(path: Path) -> None:
    zipped(path, *((str(number), b"") for number in range(30_000)))


def compressed_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b"\0" * (400 << 20))


def overlapping(path: Path) -> None:
    """Records under many names that all lie in the same bytes: small on the disk, large together."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b"\0" * 1000)
        for number in range(2000):
            record = copy.copy(archive.filelist[0])
            record.filename = f"archive/data/{number}"
            archive.filelist.append(record)


def changed_end(place: int, value: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        zipped(path, EMPTY)
        data = bytearray(path.read_bytes())
        data[len(data) + place : len(data) + place + len(value)] = value
        path.write_bytes(bytes(data))

    return write


def two_long_ends(path: Path) -> None:
    """Two directories for archives of more than 4 GB: Python reads the nearer, its locator points to the other."""
    zipped(path, EMPTY)
    data = path.read_bytes()
    end = data[-22:-10] + b"\xff" * 8 + b"\0\0"
    small = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 46, len(data) - 22 - 62)
    large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 20, 1 << 20, 60 << 20, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    path.write_bytes(data[:-22] + small + large + locator + end)


def wrong_header(path: Path) -> None:
    zipped(path, EMPTY)
    data = path.read_bytes()
    path.write_bytes(b"PK\3\4" + b"\xff" * 26 + data[30:])


def encrypted(path: Path) -> None:
    zipped(path, EMPTY)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))


HUGE = struct.pack("<I", 0xFFFFFFF0)
ARCHIVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "thirty thousand records": (many_records, "its list of records has [0-9,]+ bytes"),
    "a pickle of 400 MB in 400 kB": (compressed_bomb, "compressed or repeated records"),
    "records in the same bytes": (overlapping, "declares more data than it holds"),
    "a directory at 4 GB": (changed_end(-6, HUGE), "two directories|cut short or damaged"),
    "a directory one byte off": (changed_end(-6, b"\x2e"), "two directories|cut short or damaged"),
    "a directory of 4 GB": (changed_end(-10, HUGE), "its list of records has 4,294,967,280 bytes"),
    "two directories of the long form": (two_long_ends, "its end contradicts itself"),
    "a record's header that is nonsense": (wrong_header, "does not lie where its list says"),
    "encrypted": (encrypted, "is encrypted"),
    "another byte order": (lambda path: zipped(path, EMPTY, ("archive/byteorder", b"big")), "another byte order"),
    "two pickles": (lambda path: zipped(path, EMPTY, ("b/data.pkl", b"")), "not an archive of tensors"),
    "a pickle of 2 MB": (lambda path: zipped(path, (EMPTY[0], b"\0" * (2 << 20))), "not an archive of tensors"),
    "names that differ in case": (lambda path: zipped(path, EMPTY, ("archive/DATA.PKL", b"")), "repeated records"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_torch_never_writes_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    write, expected = ARCHIVES[case]
    write(folder / "pytorch_model.bin")
    refused(folder, expected)


def test_the_older_format_of_another_machine_is_refused(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "old"
    torch.save(load_file(small / "model.safetensors"), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    big = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89", 1)
    assert big != data
    refused(with_weights(small, tmp_path, "pytorch_model.bin", big), "written by another machine")
    other = data.replace(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xea\x03.", 1)
    assert other != data
    refused(with_weights(small, tmp_path, "pytorch_model.bin", other), "another machine or version of torch")


OUTSIDE = "points outside its folder"
INDEX = {
    "up": ({"weight_map": {"a": "../model.safetensors"}}, OUTSIDE),
    "from the root": ({"weight_map": {"a": "/etc/passwd"}}, OUTSIDE),
    "down": ({"weight_map": {"a": "sub/model.safetensors"}}, OUTSIDE),
    "a Windows path": ({"weight_map": {"a": "..\\model.safetensors"}}, OUTSIDE),
    "the folder itself": ({"weight_map": {"a": "."}}, OUTSIDE),
    "nothing": ({"weight_map": {"a": ""}}, "lacks files of weights"),
    "a NUL": ({"weight_map": {"a": "model\0.safetensors"}}, "lacks files of weights"),
    "a long name": ({"weight_map": {"a": "x" * 5000}}, "lacks files of weights"),
    "a device": ({"weight_map": {"a": "null"}}, "lacks files of weights"),
    "not there": ({"weight_map": {"a": "gone.safetensors"}}, "lacks files of weights: gone"),
    "a hundred not there": ({"weight_map": {str(n): f"{n}.bin" for n in range(100)}}, "3.bin|and 96 more"),
    "200,000 not there": ({"weight_map": {str(n): f"{n}.bin" for n in range(200_000)}}, "names 200,000 files"),
    "numbers": ({"weight_map": {"a": 1}}, "has no weight_map"),
    "a list": ({"weight_map": ["model.safetensors"]}, "has no weight_map"),
    "no map": ({}, "has no weight_map"),
    "itself": ({"weight_map": {"a": "model.safetensors.index.json"}}, "no file of tensors"),
}


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_plays_tricks_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    content, expected = INDEX[case]
    folder = with_weights(small, tmp_path, "model.safetensors.index.json", json.dumps(content).encode())
    shutil.copy(small / "model.safetensors", tmp_path)
    if case == "a device":
        if WINDOWS:
            pytest.skip("Windows has no such devices")
        (folder / "null").symlink_to("/dev/zero")
    refused(folder, expected)


def wide_keys(count: int) -> bytes:
    return ("{" + ",".join(f'"\u0100{n}":{n + 300}' for n in range(count)) + "}").encode()


TEXTS = {
    "config.json": {
        "a key twice": b'{"n_layer": 1, "n_layer": 2}',
        "nested too deep": b'{"a":' * 100_000,
        "a number of a million digits": b'{"n_layer": ' + b"9" * 1_000_000 + b"}",
        "too large": b" " * (9 << 20),
        "millions of values": b'{"n_layer": [' + b"[]," * 2_500_000 + b"0]}",
        "many values": b'{"n_layer": [' + b"[]," * 280_000 + b"0]}",
        "NaN": b'{"layer_norm_epsilon": NaN}',
        "20,000 keys and one again": ("{" + ",".join(f'"{n % 20_000}": 1' for n in range(20_001)) + "}").encode(),
    },
    "vocab.json": {
        "half a million tokens": wide_keys(520_000),
        "ids that repeat": b'{"a": 1, "b": 1}',
        "long tokens": b'{"' + b"x" * (7 << 20) + b'": 1}',
        "a wide letter": ('{"' + "x" * (7 << 20) + '\U0001f600": 1}').encode(),
    },
    "merges.txt": {
        "half a million merges": b"\xc4\xa0 t\n" * 550_000,
        "millions of lines": b"\n" * 8_000_000,
        "one long line": b"a " * 4_000_000,
        "not UTF-8": b"\xff\xfe",
    },
    "tokenizer.json": {"many merges": b'{"model": {"merges": [' + b'"a b",' * 500_000 + b'"a b"], "vocab": {}}}'},
    "tokenizer_config.json": {"ids that are huge": b'{"added_tokens_decoder": {"999999999": "x"}}'},
    "added_tokens.json": {"half a million": wide_keys(500_000), "an id beyond all": b'{"x": 99999999999999999999}'},
    "generation_config.json": {"a list": b"[1]", "not JSON": b"{"},
}  # fmt: skip


@pytest.mark.parametrize(("file", "case"), [(file, case) for file, cases in TEXTS.items() for case in cases])
def test_text_that_is_damaged_or_made_to_swell_is_refused(small: Path, tmp_path: Path, file: str, case: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    (folder / file).write_bytes(TEXTS[file][case])
    refused(folder, file.split(".")[0] + "|vocabulary")
