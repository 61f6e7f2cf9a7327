"""Play another system on Linux: what it lacks is taken away, from the tests and from the programs that they start.

`DIALOGPT_PLAY=windows pytest ...`, or another of `SYSTEMS`; `tests/__init__.py` calls `begin`, and
`tests/played/sitecustomize.py` does so in every Python that a test starts. What is taken away is what once broke there:

- windows: fcntl, termios, resource and pty cannot be imported by this project; `os.fork`, `os.mkfifo`,
  `os.sysconf` and the files in /proc are gone; a read-only handle cannot be synchronised, a folder not opened, a link
  not made; and a file that is open or mapped in this process can be neither replaced nor removed, nor a folder moved
  that holds one.
- macos: oneDNN's and fbgemm's operators are gone.
- without-vnni: an x86 processor without VNNI, as most are, where fbgemm's int8 is not exact.

The standard library and others' packages keep what they import: they know the systems themselves. No import of the
project happens here, so that `dialogpt --help` still imports no torch.
"""

from __future__ import annotations

import builtins
import errno
import importlib.abc
import importlib.machinery
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "DIALOGPT_PLAY"
OURS = ("dialogpt", "scripts", "tests", "__main__")
FOR_US = ("pathlib", "shutil")  # what they ask of the system, they ask for somebody
GONE = ("fcntl", "termios", "resource", "pty")
HERE = Path(__file__).parent / "played"


def begin() -> None:
    """Play the system that the environment names, here and in every Python that is started from here."""
    system = os.environ.get(VARIABLE)
    if not system:
        return
    if system not in SYSTEMS:
        raise SystemExit(f"{VARIABLE} is {system!r}; expected one of {', '.join(SYSTEMS)}")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(HERE) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), *paths]))
    if not getattr(builtins, "dialogpt_played", None):  # pytest may import this a second time, as another module
        setattr(builtins, "dialogpt_played", system)  # noqa: B010 - mypy knows no such attribute
        SYSTEMS[system]()


# ---- Windows ----


def windows() -> None:
    """Take away what Windows has not."""
    import filelock  # noqa: F401 - it looks for fcntl once; on Windows it has locks of another kind

    with suppress(ImportError):
        import psutil  # noqa: F401 - transformers brings it, and it asks os.sysconf while it is imported

    replace_imports(dict.fromkeys(GONE))
    del os.fork, os.mkfifo, os.sysconf
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # they open folders
    guard("fsync", refuse_read_only)
    guard("open", refuse_folder)
    guard("symlink", refuse_link)
    guard("open", refuse_proc, io)
    for name in ("rename", "replace"):
        guard(name, refuse_busy if name == "replace" else refuse_busy_or_there)
    for name in ("unlink", "remove", "rmdir"):
        guard(name, refuse_busy_first)


def guard(name: str, refuse: Callable[..., None], module: ModuleType = os) -> None:
    """Let a function of os, or of io, refuse what it refuses there."""
    honest = getattr(module, name)

    def guarded(*arguments: Any, **options: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.split(".")[0] in (*OURS, *FOR_US):
            refuse(*arguments)
        return honest(*arguments, **options)

    setattr(module, name, guarded)
    accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10's paths have noted these functions
    if hasattr(accessor, name) and (name != "open" or module is io):  # their `open` is io's
        setattr(accessor, name, staticmethod(guarded))


def refuse_read_only(handle: Any) -> None:
    import fcntl

    number = handle if isinstance(handle, int) else handle.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def refuse_folder(path: Any, *_: Any) -> None:
    if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))


def refuse_proc(path: Any, *_: Any) -> None:
    if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to("/proc"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(path))


def refuse_link(_source: Any, path: Any, *_: Any) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client", os.fspath(path))


def refuse_busy_first(path: Any, *_: Any) -> None:
    if busy(path):
        error = PermissionError(errno.EACCES, "The process cannot access the file because it is being used by another "
                                              "process", os.fspath(path))  # fmt: skip
        error.winerror = 32  # type: ignore[attr-defined]
        raise error


def refuse_busy(source: Any, path: Any, *_: Any) -> None:
    refuse_busy_first(source)
    refuse_busy_first(path)


def refuse_busy_or_there(source: Any, path: Any, *_: Any) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fspath(path))
    refuse_busy_first(source)


def busy(path: Any) -> bool:
    """Whether this process has a file open or mapped, or one in a folder."""
    if isinstance(path, int) or not os.path.lexists(path):
        return False
    named = Path(os.fsdecode(path)).absolute()
    real = str(named.parent.resolve() / named.name)
    inside = real + os.sep
    held = set()
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the handle of the listing itself
            held.add(str(handle.readlink()))
    with open("/proc/self/maps", errors="surrogateescape") as maps:  # noqa: PTH123 - paths find no /proc
        held |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/")}
    return any(name == real or name.startswith(inside) for name in held)


# ---- macOS ----


def macos() -> None:
    """Take away what a Mac's torch has not."""
    replace_imports({"resource": None})
    sys.meta_path.insert(0, ChangedProducts(take_kernels_away))


class ChangedProducts(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of fast products, and changes it."""

    MODULE = "dialogpt.model.precision"

    def __init__(self, change: Callable[[ModuleType], None]) -> None:
        self.change = change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Take over one module, and everything below it."""
        if name != self.MODULE and not name.startswith(f"{self.MODULE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            honest, execute = spec.loader, spec.loader.exec_module

            def execute_without(module: ModuleType) -> None:
                execute(module)
                self.change(module)

            honest.exec_module = execute_without  # type: ignore[method-assign]
        return spec


def take_kernels_away(module: ModuleType) -> None:
    """Set a module's operators of oneDNN and fbgemm to None, and let torch say that it has neither."""
    import torch

    libraries = [torch.ops.mkldnn, torch.ops.quantized]
    theirs = [getattr(library, name).default for library in libraries for name in library]
    operators = {id(getattr(each, "_op", each)) for each in theirs}
    for name, value in list(vars(module).items()):
        if id(value) in operators:
            setattr(module, name, None)
    cpu: Any = torch.cpu
    for name in vars(torch.cpu):
        if name.startswith("_is_") and name.endswith("_supported"):
            setattr(cpu, name, lambda: False)
    torch.backends.mkldnn.is_available = lambda: False


# ---- Processors ----


def without_vnni() -> None:
    """Take away an instruction that most x86 processors have not: fbgemm then adds products in 16 bits, as there."""
    os.environ["FBGEMM_ENABLE_INSTRUCTIONS"] = "AVX2"


def replace_imports(modules: dict[str, ModuleType | None]) -> None:
    """Give this project other modules of these names, or none; all others get the real ones."""
    honest = builtins.__import__

    def replaced(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        if level or name not in modules or importer.split(".")[0] not in OURS or importer == __name__:
            return honest(name, globals, locals, fromlist, level)
        module = modules[name]
        if module is None:
            raise ModuleNotFoundError(f"No module named {name!r} (as on {os.environ[VARIABLE]})", name=name)
        return module

    builtins.__import__ = replaced


SYSTEMS = {"windows": windows, "macos": macos, "without-vnni": without_vnni}
