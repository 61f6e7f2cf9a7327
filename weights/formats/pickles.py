"""What `torch.save` wrote, read without running anything in it: torch's archive, and its format before 1.6.

A pickle is a program. The one of a saved state_dict only describes tensors: in which storage each lies, from which
number on, with what shape. `_follow` follows those few instructions itself and gives that description as data. What
names any other class or function becomes an inert `_Foreign`: it is never imported, built or called. A training state
(Lightning, DeepSpeed, nanoGPT) has such things beside its weights, where they are ignored; among the weights they are
refused. The numbers are then mapped from the file where they lie.
torch's own reader is not called: even with weights_only it reserves whatever memory a file declares, reads compressed
records as garbage, and cannot map the older format.

The layouts follow torch/serialization.py (`_save` and `_legacy_save`), the instructions Python's pickletools.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dialogpt.weights.formats.states import State, find_state
from dialogpt.weights.formats.tensors import (
    ALIGNMENT,
    DTYPES,
    CheckpointError,
    FileContent,
    MappedFile,
    StoredTensor,
    unreadable_dtype,
)

OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # 0x1950a86a20f9469cfc6c, the number that the older format begins with
_OLD_VERSION = 1001
_PICKLE_LIMIT = 1 << 20  # bytes; GPT-2 large's is 50 kB
_STEP_LIMIT = 200_000  # instructions; GPT-2 large's are 25,000
_DIRECTORY_LIMIT = 1 << 20  # bytes of an archive's list of records; GPT-2 large's is 50 kB

_ORDERED_DICT = "collections OrderedDict"
_REBUILD_UNTYPED = "torch._utils _rebuild_tensor_v3"  # of float8 and other dtypes without a storage type of their own
_REBUILD = {  # arguments that each has at least
    "torch._utils _rebuild_tensor": 4,
    "torch._utils _rebuild_tensor_v2": 6,
    _REBUILD_UNTYPED: 7,
}
_BUILDERS = ("copyreg._reconstructor", "copy_reg._reconstructor", "torch._tensor._rebuild_from_type_v2")
_PARAMETERS = frozenset({"torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"})
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STORAGE = re.compile(r"torch(\.cuda|\.storage)? ([A-Z][A-Za-z0-9]*Storage)")
_REFUSED = frozenset({"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"})
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING", "STRING", "INT", "LONG", "FLOAT", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINUNICODE8",
})  # fmt: skip
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_PLAIN_KEYS = (str, int, float, bool, type(None))  # a tuple of tuples may take for ever to hash
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, eq=False)
class _Foreign:
    """What a pickle would have called, built or imported, and this file never does: "os.system"."""

    text: str
    problem: str = ""  # a sentence's end, where it is not that code would run


@dataclass(frozen=True, eq=False)
class _Name:
    """A function or class that a pickle names: "collections OrderedDict"."""

    text: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """A run of numbers that tensors lie in."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Described:
    """A tensor as a pickle describes it: from one number of its storage on, and row by row if it is plain."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    plain: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclass(frozen=True)
class _Span:
    """Where in the file a storage lies; the checksum is None where the file has none."""

    start: int
    nbytes: int
    checksum: int | None = None


def read_pickle(path: Path, *, old: bool) -> FileContent:
    """List a file that `torch.save` wrote; its data is mapped, not read.

    Args:
        path: the file.
        old: whether it is in torch's format before 1.6.

    Raises:
        CheckpointError: the file is damaged, or holds no dictionary of plainly stored tensors, or code among them. A
            record that does not fit its checksum, which only archives have, is refused when it is first read.
    """
    try:
        state, storages, spans = _read_old(path) if old else _read_archive(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    _check_storages(path, state.tensors, storages, spans)
    file = _Mapped(path, spans, MappedFile(path))
    tensors = {
        name: StoredTensor(
            name,
            described.shape,
            described.storage.dtype if described.storage.dtype in DTYPES.values() else None,
            partial(file.tensor, described),
        )
        for name, described in state.tensors.items()
    }
    return FileContent(tensors, state.ignored, state.settings)


def _find_state(path: Path, content: Any, machine: _Machine) -> State:
    """Choose the weights in what a pickle describes, and refuse what is foreign among them."""
    if isinstance(content, _Foreign):
        raise machine.refusal(content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} does not hold a dictionary from names to tensors, as a saved state_dict does")
    state = find_state(path, content, _Described)
    for value in state.tensors.values():
        if not isinstance(value, _Described):
            raise machine.refusal(value) if isinstance(value, _Foreign) else _damaged(path)
    return state


def _check_storages(
    path: Path, state: Mapping[str, _Described], storages: Mapping[str, int | None], spans: Mapping[str, _Span]
) -> None:
    """See that each storage that the pickle names, in the weights or beside them, has a record of its size.

    A storage that claims more than its record has would take in its neighbours.
    """
    fits = storages.keys() == spans.keys() and all(
        nbytes is None or nbytes == spans[key].nbytes for key, nbytes in storages.items()
    )
    if not fits:
        raise CheckpointError(f"{path} declares other sizes than its records have; it is damaged: fetch it again")
    held = sum(spans[key].nbytes for key in {described.storage.key for described in state.values()})
    described_bytes = sum(described.nbytes for described in state.values())
    # A head that shares the embedding's storage is usual, layers that share theirs are not.
    if described_bytes > 2 * held:
        raise CheckpointError(
            f"{path} describes {described_bytes:,} bytes of tensors that share {held:,}; expected no layer twice"
        )


@dataclass
class _Mapped:
    """A file whose storages are used where they lie."""

    path: Path
    spans: Mapping[str, _Span]
    file: MappedFile
    checked: set[str] = field(default_factory=set)

    def tensor(self, described: _Described) -> Tensor:
        """One tensor, in the file's own memory, or in a copy of it where it would not be aligned there.

        The older format puts numbers at any offset, and float32 products of misaligned rows differ in the last bit.
        """
        if not described.plain:
            raise CheckpointError(f"{self.path}: a tensor is not stored row by row; save it as tensor.contiguous()")
        storage, span = described.storage, self.spans[described.storage.key]
        if span.checksum is not None and storage.key not in self.checked:
            if zlib.crc32(self.file.tensor(span.start, (span.nbytes,), torch.uint8).numpy().data) != span.checksum:
                raise CheckpointError(
                    f"{self.path}: the record {storage.key} does not fit its checksum; fetch it again"
                )
            self.checked.add(storage.key)
        start = span.start + described.offset * storage.dtype.itemsize
        if start % ALIGNMENT == 0:
            return self.file.tensor(start, described.shape, storage.dtype)
        unaligned = self.file.tensor(start, (described.nbytes,), torch.uint8)
        return torch.empty_like(unaligned).copy_(unaligned).view(storage.dtype).view(described.shape)


# ---- the two layouts ----


def _read_old(path: Path) -> tuple[State, dict[str, int | None], dict[str, _Span]]:
    """The format before torch 1.6: five pickles, then each storage as its length and its numbers.

    The pickles are a magic number, a version, the machine, the object, and the storages' names in the file's order.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        pickles = io.BytesIO(file.read(_PICKLE_LIMIT))
        machine = _Machine(path)
        _, version, system = (_follow(path, pickles, _Machine(path)) for _ in range(3))
        content, keys = _follow(path, pickles, machine), _follow(path, pickles, _Machine(path))
        state = _find_state(path, content, machine)
        if not isinstance(system, dict) or version != _OLD_VERSION or system.get("little_endian") is not True:
            raise CheckpointError(f"{path} was written by another machine or version of torch; it cannot be read here")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) != len(keys):
            raise _damaged(path)
        spans, offset = {}, pickles.tell()
        for key in keys:
            file.seek(offset)
            count, expected = int.from_bytes(file.read(8), "little"), machine.counts.get(key)
            nbytes = machine.storages.get(key)
            if expected is None or nbytes is None or count != expected or offset + 8 + nbytes > size:
                raise CheckpointError(f"{path} is cut short, or declares other sizes than it has; fetch it again")
            spans[key] = _Span(offset + 8, nbytes)
            offset += 8 + nbytes
    return state, machine.storages, spans


def _read_archive(path: Path) -> tuple[State, dict[str, int | None], dict[str, _Span]]:
    """The format since torch 1.6: an archive of stored records, one of them the pickle, one for each storage."""
    try:
        with path.open("rb") as file:
            directory = _find_directory(file)
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                begin = archive.start_dir
            if any(record.filename.lower().endswith("constants.pkl") for record in records):
                raise CheckpointError(
                    f"{path} is a compiled program (TorchScript, or a rust_model.ot), not saved tensors; fetch the "
                    f"model.safetensors or pytorch_model.bin that is published beside it"
                )
            _check_records(path, records)
            if directory != begin:
                raise CheckpointError(f"{path} has two directories, which torch.save never writes")
            pickles = [record for record in records if record.filename.lower().endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _PICKLE_LIMIT:
                raise CheckpointError(f"{path} is not an archive of tensors as torch.save writes it")
            prefix = pickles[0].filename[: -len("data.pkl")]
            spans = {record.filename: _span(file, record, begin) for record in records}
            pickle = _record(file, spans[pickles[0].filename])
            order = spans.get(f"{prefix}byteorder")
            if order is not None and _record(file, order) != b"little":
                raise CheckpointError(f"{path} holds numbers in another byte order than this machine's")
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is cut short or damaged ({error}); fetch it again") from None
    machine = _Machine(path)
    state = _find_state(path, _follow(path, io.BytesIO(pickle), machine), machine)
    prefix += "data/"
    return (
        state,
        machine.storages,
        {name.removeprefix(prefix): span for name, span in spans.items() if name.startswith(prefix)},
    )


def _find_directory(file: IO[bytes]) -> int:
    """The offset of an archive's list of records, from the end of the file: there is one end, and it is small.

    Python takes the list that stands just before the end, torch the one that the end points to.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    locator, end = file.read(20), file.read(22)
    if end[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("its end is missing")
    length, offset = (int.from_bytes(end[start : start + 4], "little") for start in (12, 16))
    if locator[:4] == b"PK\6\7":  # the form for more than 4 GB; what is too large for the short form is all ones there
        file.seek(max(0, size - 98))  # Python reads the long form just before its locator, wherever that points
        long = file.read(56)
        long_length, long_offset = (int.from_bytes(long[start : start + 8], "little") for start in (40, 48))
        adjacent = long[:4] == b"PK\6\6" and int.from_bytes(locator[8:16], "little") == size - 98
        if not adjacent or length not in (0xFFFFFFFF, long_length) or offset not in (0xFFFFFFFF, long_offset):
            raise zipfile.BadZipFile("its end contradicts itself")
        length, offset = long_length, long_offset
    if length > _DIRECTORY_LIMIT:
        raise zipfile.BadZipFile(f"its list of records has {length:,} bytes")
    file.seek(0)
    return offset


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse records that torch never writes; it finds them without regard to case."""
    names = {record.filename.lower() for record in records}
    if any(record.compress_type != zipfile.ZIP_STORED for record in records) or len(names) != len(records):
        raise CheckpointError(f"{path} has compressed or repeated records, which torch.save never writes")
    if any(record.flag_bits & 1 for record in records):
        raise CheckpointError(f"{path} is encrypted, which torch.save never does")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} declares more data than it holds; it is damaged: fetch it again")


def _span(file: IO[bytes], record: zipfile.ZipInfo, end: int) -> _Span:
    """Where a record's data lies: behind its local header."""
    file.seek(record.header_offset)
    header = file.read(30)
    start = record.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    if header[:4] != b"PK\3\4" or start + record.file_size > end:
        raise zipfile.BadZipFile(f"the record {record.filename!r} does not lie where its list says")
    return _Span(start, record.file_size, record.CRC or None)  # torch can be told to write no checksums: all are 0 then


def _record(file: IO[bytes], span: _Span) -> bytes:
    """A small record's bytes."""
    file.seek(span.start)
    data = file.read(min(span.nbytes, _PICKLE_LIMIT))
    if span.checksum is not None and zlib.crc32(data) != span.checksum:
        raise zipfile.BadZipFile("a record does not fit its checksum")
    return data


# ---- the pickle ----


def _follow(path: Path, file: IO[bytes], machine: _Machine) -> Any:
    """What one pickle describes: dictionaries, lists and tuples of text, numbers, tensors and what is `_Foreign`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return machine.run(pickletools.genops(file))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path) from None


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} holds a damaged pickle; fetch it again")


class _Machine:
    """Follows a pickle's instructions; nothing that it names is imported or called.

    Attributes:
        storages: each storage's key and size in bytes; None for numbers that no GPT-2 has.
        counts: each storage's key and how many numbers it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.left = _STEP_LIMIT
        self.storages: dict[str, int | None] = {}
        self.counts: dict[str, int] = {}

    def run(self, instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """Follow all instructions; the result is what the last one leaves."""
        for instruction, argument, _ in instructions:
            self.spend(1)
            if instruction.name == "STOP":
                return self.pop()
            if not (self.push(instruction.name, argument) or self.combine(instruction.name, argument)):
                raise _damaged(self.path)
        raise _damaged(self.path)

    def push(self, name: str, argument: Any) -> bool:
        """Follow an instruction that puts a value on the stack or keeps one; False for any other."""
        stack, memo = self.stack, self.memo
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "GLOBAL":
            stack.append(self.named(argument))
        elif name == "BYTEARRAY8":
            stack.append(bytes(argument))
        elif name not in ("PROTO", "FRAME"):
            return False
        return True

    def combine(self, name: str, argument: Any) -> bool:
        """Follow an instruction that makes one value of others; False for any other."""
        stack = self.stack
        if name in ("TUPLE", "FROZENSET"):
            stack.append(tuple(self.marked()))
        elif name in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self.pop()] if name == "APPEND" else self.marked()
            if not isinstance(self.stack[-1], _Foreign):
                self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.marked()
            if not isinstance(self.stack[-1], _Foreign):
                self.set_items(self.top(dict), items)
        elif name == "STACK_GLOBAL":
            last, first = self.pop(), self.pop()
            stack.append(self.named(f"{first} {last}" if type(first) is type(last) is str else "?"))
        elif name == "BINPERSID":
            stack.append(self.storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.call(function, arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            _, made = [self.pop() for _ in range(2 if name == "NEWOBJ" else 3)][-2:]
            stack.append(self.built(made))
        elif name in ("INST", "OBJ"):
            values = self.marked()
            stack.append(_Foreign(argument.replace(" ", ".")) if name == "INST" else self.built(values[0]))
        elif name == "BUILD":  # a state_dict's notes on versions, or the content of an object
            notes = self.pop()
            if not isinstance(stack[-1], _Foreign):
                self.top(dict)
                if isinstance(notes, _Foreign):
                    raise self.refusal(notes)
        elif name in ("POP", "POP_MARK"):
            _ = self.pop() if name == "POP" else self.marked()
        elif name in _REFUSED:
            raise self.refusal(_Foreign(f"by the instruction {name}"))
        else:
            return False
        return True

    def built(self, kind: Any) -> _Foreign:
        """What an object of a class would be; it is not built."""
        if not isinstance(kind, (_Foreign, _Name)):
            raise _damaged(self.path)
        return _Foreign(kind.text.replace(" ", "."))

    def spend(self, steps: int) -> None:
        """Count work that is done, also for arguments, which a pickle may name again and again."""
        self.left -= steps
        if self.left < 0:
            raise CheckpointError(f"{self.path} holds a pickle that takes more than {_STEP_LIMIT:,} steps")

    def pop(self) -> Any:
        """Take the uppermost value."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise _damaged(self.path)
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Take all values above the last mark."""
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def top(self, kind: type) -> Any:
        """The uppermost value, which must be of a kind."""
        if type(self.stack[-1]) is not kind:
            raise _damaged(self.path)
        return self.stack[-1]

    def set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        """Put keys and values, which alternate, into a dictionary; a key that is text is there once."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = key if isinstance(key, _PLAIN_KEYS) else _Foreign("a key", "has keys that are no names")
            if type(key) is str and key in target:
                raise CheckpointError(f"{self.path} names {key!r} twice; it is damaged: fetch it again")
            target[plain] = value

    def named(self, text: str) -> _Name | _Foreign:
        """What a description of tensors may name, or what is foreign; neither is ever looked up."""
        if text == _ORDERED_DICT or text in _PARAMETERS or text in _REBUILD or _STORAGE.fullmatch(text):
            return _Name(text)
        return _Foreign(text.replace(" ", "."))

    def refusal(self, foreign: _Foreign) -> CheckpointError:
        """The sentence about what is foreign in the place of weights."""
        if foreign.problem:
            return CheckpointError(f"{self.path} {foreign.problem}")
        return CheckpointError(
            f"{self.path} would run code when loaded ({foreign.text}); it was not loaded. Expected a plain dictionary "
            f"of tensors: get the checkpoint as model.safetensors or, if a whole network was saved, save its state_dict"
        )

    def storage(self, entry: Any) -> _Storage | _Foreign:
        """A storage as the pickle points to it: ("storage", its type, key, device, count), and no view of another."""
        if type(entry) is tuple and len(entry) == 4 and entry[0] == "module" and isinstance(entry[1], _Foreign):
            raise self.refusal(entry[1])  # a whole network, beside the source of its class
        if type(entry) is not tuple or len(entry) not in (5, 6):
            raise _damaged(self.path)
        word, kind, key, _, count, *view = entry
        if isinstance(kind, _Foreign):
            raise self.refusal(kind)
        match = _STORAGE.fullmatch(kind.text)
        if word != "storage" or match is None or type(key) is not str or type(count) is not int or count < 0:
            raise _damaged(self.path)
        if view not in ([], [None]):
            raise CheckpointError(f"{self.path} holds storages that are parts of others; save it with a newer torch")
        known = _STORAGES.get(match[2])
        nbytes = None if known is None else count * known.itemsize
        if self.storages.setdefault(key, nbytes) != nbytes:
            raise CheckpointError(
                f"{self.path} declares other sizes than its records have; it is damaged: fetch it again"
            )
        self.counts[key] = count
        if known is None:
            return _Foreign(kind.text, f"holds numbers that no GPT-2 has (torch.{match[2]}); expected floats")
        return _Storage(known, key, count)

    def call(self, function: Any, arguments: Any) -> Any:
        """What one of the few known functions would return, as a description."""
        if type(arguments) is not tuple or not isinstance(function, (_Name, _Foreign)):
            raise _damaged(self.path)
        if isinstance(function, _Foreign):
            built = function.text in _BUILDERS and arguments and isinstance(arguments[0], _Foreign)
            return _Foreign(arguments[0].text if built else function.text, function.problem)
        if function.text == _REBUILD_UNTYPED and len(arguments) > 6 and isinstance(arguments[6], _Foreign):
            dtype = arguments[6].text
            return _Foreign(dtype, f"holds {unreadable_dtype(dtype.removeprefix('torch.'))}")
        if function.text in _REBUILD and arguments and isinstance(arguments[0], _Foreign):
            return arguments[0]
        if _STORAGE.fullmatch(function.text):
            raise _damaged(self.path)
        if function.text in _PARAMETERS and arguments and isinstance(arguments[0], _Foreign):
            return arguments[0]
        if function.text == _ORDERED_DICT:
            made: dict[str, Any] = {}
            pairs = arguments[0] if arguments else []  # Python 2 wrote its items as an argument
            if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
                raise _damaged(self.path)
            self.spend(len(pairs))
            self.set_items(made, [item for pair in pairs for item in pair])
            return made
        if function.text in _PARAMETERS and isinstance(arguments[0], _Described):
            return arguments[0]  # what else it has are notes of the program that trained it
        if not _REBUILD[function.text] <= len(arguments) <= 7:
            raise _damaged(self.path)
        if len(arguments) == 7 and arguments[6]:
            raise CheckpointError(
                f"{self.path} holds a negated or conjugated view of a tensor; save it as tensor.clone()"
            )
        storage, offset, shape, strides = arguments[:4]
        if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 8:
            raise _damaged(self.path)
        whole = [offset, *shape, *strides]
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 1 << 48 for n in whole):
            raise _damaged(self.path)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.count:
            raise CheckpointError(f"{self.path} holds a tensor that reaches beyond its storage; fetch it again")
        rows = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        plain = all(n <= 1 or stride == row for n, stride, row in zip(shape, strides, rows, strict=True))
        return _Described(storage, offset, shape, plain)
