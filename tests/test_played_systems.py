"""The test of the tests that play another system: what is taken away is gone, here and in programs that are started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, environment

PROGRAM = """
import os, subprocess, sys
import torch
VNNI = torch.cpu._is_vnni_supported()
import tests
from pathlib import Path

def refused(call):
    try:
        call()
    except (OSError, ImportError, AttributeError) as error:
        return type(error).__name__
    return "-"

def imported(name):
    return refused(lambda: __import__(name, {"__name__": "dialogpt.anything"}))

here = Path(sys.argv[1])
(here / "file").write_text("")
(here / "folder").mkdir(exist_ok=True)
print("fcntl", imported("fcntl"), "resource", imported("resource"), "fork", hasattr(os, "fork"))
print("sysconf", hasattr(os, "sysconf"), "proc", refused(lambda: Path("/proc/stat").read_text()))
print("folder", refused(lambda: os.open(here, os.O_RDONLY)))
print("link", refused(lambda: (here / "link").symlink_to("file")))
with (here / "file").open("rb") as file:
    print("sync", refused(lambda: os.fsync(file)))
    (here / "other").write_text("")
    print("busy", refused(lambda: (here / "other").replace(here / "file")), refused((here / "file").unlink))
with (here / "folder" / "file").open("wb") as file:
    os.fsync(file)
    print("inside", refused(lambda: (here / "folder").rename(here / "moved")))
from dialogpt.model.precision import kernels
print("termios", imported("termios"))
print("products", kernels._linear_float16 is not None)
print("int8 is exact", kernels.Int8.runs_here() or not VNNI, flush=True)
subprocess.run([sys.executable, "-c", "import os; print('child', hasattr(os, 'fork'))"], check=True)
"""
LINUX = ["fcntl - resource - fork True", "folder -", "link -", "sync -", "busy - -", "inside -", "sysconf True proc -",
         "products True", "int8 is exact True"]  # fmt: skip
EXPECTED = {
    "": [*LINUX, "child True"],
    "without-vnni": [*LINUX[:-1], f"int8 is exact {not torch.cpu._is_vnni_supported()}", "child True"],
    "macos": ["fcntl - resource ModuleNotFoundError fork True", *LINUX[1:7], "termios -", "products False",
              "child True"],
    "windows": ["fcntl ModuleNotFoundError resource ModuleNotFoundError fork False", "folder PermissionError",
                "link PermissionError", "sync OSError", "busy PermissionError PermissionError",
                "inside PermissionError", "sysconf False proc FileNotFoundError", "termios ModuleNotFoundError",
                "products True", "child False"],
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="systems are played on Linux only")
@pytest.mark.parametrize("system", EXPECTED)
def test_what_a_system_lacks_is_gone(tmp_path: Path, system: str) -> None:
    variables = environment(DIALOGPT_PLAY=system, PYTHONPATH=str(ROOT))  # as the shell of who asks for it has them
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=variables, cwd=ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert [line for line in EXPECTED[system] if line not in lines] == [], done.stderr + done.stdout
