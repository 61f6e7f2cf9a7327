"""Files that are damaged or made to harm: each ends in a sentence, soon, with little memory, and leaves nothing.

The limits are above a process that has imported torch: 2 seconds, and 200 MB plus the files' size. A flipped bit that
no format can notice (in safetensors' and the older pickles' numbers, which have no checksum) is left to the hub's.
"""

from __future__ import annotations

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

from tests.helpers import write_published
from weights import CheckpointError, convert, load

SECONDS, MEGABYTES = 2, 200
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
    return {
        "model.safetensors": (small / "model.safetensors").read_bytes(),
        "pytorch_model.bin": (folder / "new").read_bytes(),
        "old pytorch_model.bin": (folder / "old").read_bytes(),
    }


def peak() -> float:
    """The most memory that this process has held since `forget_peak`, in MB; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def judge(folder: Path) -> str | None:
    """Convert a folder; returns the sentence of its refusal, or None if it was converted.

    Whatever happens, it takes little time and memory, and what is refused leaves nothing.
    """
    outside = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    megabytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    forget_peak()
    before, start = peak(), time.perf_counter()
    try:
        convert(folder, folder.parent / "ours")
    except CheckpointError as error:
        sentence = str(error)
    else:
        sentence = None
    assert time.perf_counter() - start < SECONDS
    assert peak() - before < MEGABYTES + megabytes
    if sentence is None:
        return None
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == outside
    assert "\n" not in sentence
    assert len(sentence) < 1200
    assert "weights_only" not in sentence
    return sentence


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
    if container == "pytorch_model.bin":
        return list(range(len(data)))
    end = data.rindex(b"e.") + 2  # of the last pickle, the list of storages
    return list(range(end))


@pytest.mark.parametrize("container", ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin"])
def test_flipped_bits_are_refused_or_harmless(
    small: Path, containers: dict[str, bytes], tmp_path: Path, container: str
) -> None:
    chance, data = random.Random(container), containers[container]
    expected, refused = load(small).state_dict(), 0
    for place in chance.sample(judged_part(container, data), FLIPS):
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        folder = with_weights(small, tmp_path, container, bytes(changed))
        if judge(folder) is None:  # a note in the header, the name of a device, the padding between records
            found = load(tmp_path / "ours").state_dict()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            shutil.rmtree(tmp_path / "ours")
        else:
            refused += 1
    assert refused > FLIPS // 4


@pytest.mark.parametrize("container", ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin"])
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
BROKEN = {
    "no tensor": b"\x80\x02K\x01.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "a mark that is missing": b"\x80\x02t.",
    "an empty stack": b"\x80\x02R.",
    "what was never kept": b"\x80\x02h\x07.",
    "a place to keep far away": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text of 2 GB": b"\x80\x02X\xff\xff\xff\x7f",
    "text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60),
    "bytes of 2^60": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60),
    "a frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
    "a number of 255 bytes": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
    "a million empty dictionaries": b"\x80\x02" + b"}" * 1_000_000 + b".",
    "tuples in tuples as keys": b"\x80\x02}" + b")" + b"q\x000h\x00h\x00\x86" * 60 + b"K\x01s.",
    "a function that is a tuple": b"\x80\x02)(tR.",
    "a storage in a storage": b"\x80\x02(Qt.",
    "an archive of 200,000 steps": b"\x80\x02" + b"N0" * 250_000 + b"N.",
    "keys that are numbers": b"\x80\x02}K\x01K\x02s.",
    "half a surrogate pair": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.",
    "a name twice": b"\x80\x02}" + (text("a") + b"K\x01s") * 2 + b".",
    "a dictionary in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "a list": b"\x80\x02].",
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
    write(small, lambda _: (RUNNING | BROKEN)[case], folder / "pytorch_model.bin")
    sentence = judge(folder)
    assert sentence is not None
    assert not list(tmp_path.rglob("MARK"))
    if case in RUNNING and case != "a state to set":
        assert "would run code when loaded" in sentence


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


DESCRIBED: dict[str, Callable[[bytes], bytes]] = {
    "a storage that claims more": claiming(b"K\x19"),
    "a storage that claims 2^40": claiming(b"\x8a\x06\0\0\0\0\0\x01"),
    "a storage that claims less than nothing": claiming(b"J\xff\xff\xff\xff"),
    "an unknown type of storage": lambda data: data.replace(b"FloatStorage", b"GloatStorage"),
    "another type of storage": lambda data: data.replace(b"FloatStorage", b"HalfStorage"),
    "a tensor beyond its storage": lambda data: data.replace(b"K\x18\x85", b"K\x19\x85", 1),
    "a tensor at an offset": lambda data: data.replace(b"QK\x00K\x18\x85", b"QK\x01K\x18\x85", 1),
    "a tensor that repeats one number": lambda data: data.replace(b"K\x18\x85q", b"M\xe8\x03\x85q", 1),
    "a stride of nothing": lambda data: data.replace(b"K\x08K\x01\x86", b"K\x00K\x00\x86", 1),
}


@pytest.mark.parametrize("write", [in_archive, in_old_file])
@pytest.mark.parametrize("case", DESCRIBED)
def test_a_description_that_does_not_fit_the_numbers_is_refused(
    small: Path, tmp_path: Path, write: Callable[..., None], case: str
) -> None:
    def change(data: bytes) -> bytes:
        changed = DESCRIBED[case](data)
        assert changed != data
        return changed

    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    write(small, change, folder / "pytorch_model.bin")
    assert judge(folder) is not None


def test_a_storage_that_is_a_view_or_stored_elsewhere_is_refused(small: Path, tmp_path: Path) -> None:
    state: dict[str, Tensor] = load_file(small / "model.safetensors")
    for change in (
        {"transformer.wte.weight": state["transformer.wte.weight"].t().contiguous().t()},
        {"transformer.ln_f.bias": torch.ones(1).expand(8)},
        {"transformer.ln_f.bias": torch.ones(8).to_sparse()},
        {"transformer.ln_f.bias": torch.ones(8, dtype=torch.complex64)},
        {"transformer.ln_f.bias": torch.empty(8, device="meta")},
        {"transformer.ln_f.bias": 3},
        {"transformer.ln_f.bias": {"nested": torch.ones(8)}},
        {"epoch": 3},
    ):
        for new in (True, False):
            folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
            torch.save(state | change, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
            assert judge(folder) is not None, (change, new)


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
    "a hole": header(f'{{"a": {entry([1], [4, 8])}}}'.encode(), b"00000000"),
    "an unknown dtype": header(f'{{"a": {entry([1], [0, 4], "Q7")}}}'.encode(), b"0000"),
    "more behind": header(f'{{"a": {entry([1], [0, 4])}}}'.encode(), b"00000000"),
    "nested too deep": header(b'{"a":' * 100_000),
    "half a million notes": header(b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(400_000)) + b"}}"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_header_that_does_not_fit_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    assert judge(with_weights(small, tmp_path, "model.safetensors", SAFETENSORS[case])) is not None


def many_records(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30_000):
            archive.writestr(str(number), b"")


def compressed_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b"\0" * (400 << 20))


def overlapping(path: Path) -> None:
    """Records that all lie in the same bytes: small on the disk, large together."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b"\0" * 1000)
        archive.writestr("archive/data/0", b"")
        archive.filelist += [archive.filelist[0]] * 2_000


def changed_end(place: int, value: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
        data = bytearray(path.read_bytes())
        data[place : place + 4 if place + 4 else None] = struct.pack("<I", value)
        path.write_bytes(bytes(data))

    return write


def wrong_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    data = path.read_bytes()
    path.write_bytes(b"PK\3\4" + b"\xff" * 26 + data[30:])


def big_endian(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"big")


ARCHIVES = {
    "thirty thousand records": many_records,
    "a pickle of 400 MB in 400 kB": compressed_bomb,
    "records in the same bytes": overlapping,
    "a directory at 4 GB": changed_end(-6, 0xFFFFFFF0),
    "a directory of 4 GB": changed_end(-10, 0xFFFFFFF0),
    "60,000 records declared": changed_end(-14, 60_000 << 16),
    "a record's header that is nonsense": wrong_header,
    "another byte order": big_endian,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_torch_never_writes_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    folder = with_weights(small, tmp_path, "pytorch_model.bin", b"")
    ARCHIVES[case](folder / "pytorch_model.bin")
    assert judge(folder) is not None


INDEX = {
    "up": {"weight_map": {"a": "../model.safetensors"}},
    "from the root": {"weight_map": {"a": "/etc/passwd"}},
    "down": {"weight_map": {"a": "sub/model.safetensors"}},
    "a Windows path": {"weight_map": {"a": "..\\model.safetensors"}},
    "the folder itself": {"weight_map": {"a": "."}},
    "nothing": {"weight_map": {"a": ""}},
    "a NUL": {"weight_map": {"a": "model\0.safetensors"}},
    "a long name": {"weight_map": {"a": "x" * 5000}},
    "a device": {"weight_map": {"a": "null"}},
    "not there": {"weight_map": {"a": "gone.safetensors"}},
    "numbers": {"weight_map": {"a": 1}},
    "a list": {"weight_map": ["model.safetensors"]},
    "no map": {},
    "itself": {"weight_map": {"a": "model.safetensors.index.json"}},
}


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_plays_tricks_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    folder = with_weights(small, tmp_path, "model.safetensors.index.json", json.dumps(INDEX[case]).encode())
    shutil.copy(small / "model.safetensors", tmp_path)
    if case == "a device":
        (folder / "null").symlink_to("/dev/zero")
    assert judge(folder) is not None


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
    assert judge(folder) is not None


def test_these_are_more_than_three_hundred_files() -> None:
    pickles = 2 * (len(RUNNING) + len(BROKEN) + len(DESCRIBED) + 8)
    others = len(SAFETENSORS) + len(ARCHIVES) + len(INDEX) + sum(map(len, TEXTS.values()))
    assert 3 * (FLIPS + CUTS) + pickles + others > 400
