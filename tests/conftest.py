"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

# One thread, here and in the programs that tests start: with two, and another program on the machine, the threads of
# torch wait for each other so long that tests took five to twenty times as long. Where threads are the subject, a test
# sets them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["DIALOGPT_CONFIG"] = ""  # not that of whoever runs the tests

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings

from dialogpt.weights import export
from tests.helpers import ROOT, write_published

TIERS = {  # files and folders of tests that the default run leaves out; see tests/README.md
    "integration": (  # programs, servers and training runs are started, or every form of a file is tried
        "cli/commands",
        "cli/terminal/test_keyboard.py",
        "data/test_hostile_files.py",
        "cli/test_main.py",
        "cli/test_verify.py",
        "cli/test_verify_forms.py",
        "parity/test_training.py",
        "data/reddit",
        "inspect/test_page.py",
        "serve",
        "test_docs.py",
        "test_package.py",
        "test_played_systems.py",
        "test_scripts.py",
        "test_small_talk.py",
        "test_tiny.py",
        "test_tour.py",
        "train",
        "weights/test_damaged_files.py",
        "weights/test_damaged_forms.py",
        "weights/test_hub.py",
        "weights/test_push.py",
        "weights/test_published_forms.py",
    ),
    "browser": ("inspect/test_page.py", "serve/test_page.py"),
}

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
settings.register_profile("offline", deadline=None, derandomize=True)  # shared machines: no time limit, same examples
settings.load_profile("offline")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests their tier, before pytest selects by markers."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        for tier, places in TIERS.items():
            if any(path == place or path.startswith(f"{place}/") for place in places):
                item.add_marker(tier)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Seed the global generators, so that a test does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[None]:
    """Put the package's logger back: `serve` in a test's own process sets it up, for a stderr that is closed later."""
    logger = logging.getLogger("dialogpt")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained weights as transformers writes them: `tiny`, exported."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    export("tiny", folder)
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as transformers writes it: 557 tokens, 128 positions."""
    folder = tmp_path_factory.mktemp("published") / "small-bot"
    write_published(folder, n_positions=128)
    return folder
