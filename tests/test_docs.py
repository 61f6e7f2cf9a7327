"""The documentation is run: every command and program of README.md and docs/, every link, and every name of the code.

A command runs unless `NOT_RUN` gives a reason, so that new lines are tested by default.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pytest

from tests.helpers import ROOT, WAIT_SECONDS, environment, needs_posix, started

NOT_RUN = {  # a pattern of "page: command", and why such a command is not run
    r"pip install |python3 -m venv": "installs packages; `.ci/run` does that",
    r"microsoft/": "needs the Hugging Face hub",
    r": dialogpt serve$": "serves until it is stopped; the fixture `server` starts one for the page's requests",
    r"dialogues/\*\.jsonl|train_tiny\.py": "trains for an hour or more",
    r"benchmark\.py|load\.py": "measures for minutes, which says nothing while other tests run",
    r"compare_decoders\.py": "trains a model and decodes for ten minutes",
    r"decoding\.md: .*--reverse-model": "needs the model that training.md trains, where the same command runs",
}
SERVED = "http://127.0.0.1:8000"  # where the pages expect a server
PROGRAMS = {"dialogpt": "-m dialogpt", "python": "", "torchrun": "-m torch.distributed.run"}
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:dialogpt|docs|model|scripts|tests|weights)/[\w./-]+\.\w+)`")
TRACED = re.compile(r"^\| `([\w/.]+\.py)` \| `([\w.]+)` \|", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_transcript(self) -> bool:
        """Whether it shows a command with what it printed and what was typed."""
        return self.language == "" and self.content.startswith("$ ")

    @property
    def commands(self) -> list[str]:
        """The shell commands: lines, joined where a backslash or a here-document continues them."""
        found, open_until = [""], None
        for line in self.content.splitlines():
            found[-1] += f"{line}\n"
            here = re.search(r"<<(\w+)", line)
            open_until = here.group(1) if here else open_until if line != open_until else None
            if open_until is None and not line.endswith("\\"):
                found.append("")
        return [command.rstrip("\n") for command in found if command.strip() and not command.startswith("#")]


def blocks_of(path: Path) -> list[Block]:
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match.group(2), dedent(match.group(3)))
        for match in FENCED.finditer(text)
    ]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(path for part in ("dialogpt", "docs", "model", "scripts", "tests", "weights")
                                         for path in (ROOT / part).rglob("*.md"))])  # fmt: skip
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language in ("", "sh") and not block.is_transcript]
TOUR = "docs/tour.md"  # whose blocks follow from each other; `tests/test_tour.py` runs them
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page != TOUR]
TRANSCRIPTS = [block for block in BLOCKS if block.is_transcript]
SHOWN = ("text", "powershell")  # the diagram, and Windows


def reason_not_to_run(page: str, command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, f"{page}: {command}")), None)


@dataclass
class Folder:
    """Where the commands of one page run, one after the other, as its reader would type them."""

    path: Path
    ran: set[Block] = field(default_factory=set)

    def variables(self) -> dict[str, str]:
        """The environment: our programs come first on the path, and nothing is written outside of the folder."""
        programs = self.path / ".programs"
        if not programs.exists():
            programs.mkdir()
            for name, arguments in PROGRAMS.items():
                (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
                (programs / name).chmod(0o755)
            (programs / ".curlrc").write_text("fail\n")  # an HTTP error is an error
            (self.path / "weights" / "tiny").mkdir(parents=True)
            (self.path / "weights" / "tiny" / "dialogues").symlink_to(ROOT / "weights" / "tiny" / "dialogues")
            (self.path / "scripts").symlink_to(ROOT / "scripts")
        variables = environment(DIALOGPT_CACHE=str(programs / "cache"), CURL_HOME=str(programs), NO_PROXY="127.0.0.1")
        return {**variables, "PATH": f"{programs}:{variables['PATH']}"}

    def run(self, block: Block, address: str) -> None:
        """Run a block's commands, once."""
        if block in self.ran:
            return
        self.ran.add(block)
        for command in block.commands:
            if reason_not_to_run(block.page, command) is None:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", command.replace(SERVED, address)],
                    cwd=self.path, env=self.variables(), stdin=subprocess.DEVNULL, capture_output=True,
                    encoding="utf-8", timeout=WAIT_SECONDS,
                )  # fmt: skip
                assert done.returncode == 0, f"{block}: {command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    return {block.page: Folder(tmp_path_factory.mktemp("page")) for block in BLOCKS}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a `dialogpt serve`."""
    command = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--log-level", "warning"]
    with started(command, env=environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address is not None, said
        yield address.group()


def address_for(block: Block, request: pytest.FixtureRequest) -> str:
    """The address of a server, which is started only for a block that asks one."""
    return request.getfixturevalue("server") if SERVED in block.content else SERVED


@needs_posix
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_blocks_run(block: Block, folders: dict[str, Folder], request: pytest.FixtureRequest) -> None:
    """A block may need the files of those before it on its page; they run first where they have not yet."""
    if "curl " in block.content and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder = folders[block.page]
    for earlier in SHELL[: SHELL.index(block)]:
        if earlier.page == block.page and "curl " not in earlier.content:
            folder.run(earlier, SERVED)
    folder.run(block, address_for(block, request))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    program = block.content.replace(SERVED, address_for(block, request))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(NO_PROXY="127.0.0.1"), capture_output=True,
        encoding="utf-8", timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("block", TRANSCRIPTS, ids=str)
def test_transcripts_are_what_the_model_answers(block: Block, tmp_path: Path) -> None:
    """The lines after `you>` are piped to the command, which answers with those after `bot>`."""
    first, *lines = block.content.splitlines()
    _, program, *arguments = first.split()
    assert program == "dialogpt"
    typed, answers = ([line[5:] for line in lines if line.startswith(who)] for who in ("you> ", "bot> "))
    done = subprocess.run(
        [sys.executable, "-m", "dialogpt", *arguments], input="".join(f"{line}\n" for line in typed),
        cwd=tmp_path, env=environment(), capture_output=True, timeout=WAIT_SECONDS, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout.splitlines() == answers, done.stderr


def test_every_block_is_run_or_known_not_to_be() -> None:
    """A block in a new language, or a reason that fits no command any more, is seen here."""
    known = ("", "sh", "python", *SHOWN)
    assert [str(block) for block in BLOCKS if block.language not in known] == []
    assert all(page.read_text(encoding="utf-8").count("```") == 2 * len(blocks_of(page)) for page in PAGES)
    commands = [f"{block.page}: {command}" for block in SHELL for command in block.commands]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in commands)] == []


def test_commands_are_split_as_a_shell_does() -> None:
    block = Block("page", 1, "sh", "# a comment\none  # and why\n\ncat > FILE <<END\ntwo\nEND\nthree \\\n  four\n")
    assert block.commands == ["one  # and why", "cat > FILE <<END\ntwo\nEND", "three \\\n  four"]


def anchors_of(path: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        there = path.parent / target if target else path
        assert there.exists(), link
        assert not anchor or anchor in anchors_of(there), link


def test_the_readme_can_be_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    named = set(NAMED.findall(path.read_text(encoding="utf-8")))
    assert sorted(name for name in named if "NAME" not in name and not (ROOT / name).exists()) == []


def definitions(path: Path) -> set[str]:
    """Functions, classes and their methods, as "function", "Class" and "Class.method"."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.AsyncFunctionDef)}
    return found


def test_functions_that_are_traced_exist() -> None:
    traced = TRACED.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(traced) > 40
    assert [f"{file}: {name}" for file, name in traced if name not in definitions(ROOT / file)] == []
