"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

# One thread, here and in the programs that tests start: with two, and another program on the machine, the threads of
# torch wait for each other so long that tests took five to twenty times as long. Where threads are the subject, a test
# sets them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import transformers
from hypothesis import settings

from tests.helpers import write_published

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
settings.register_profile("offline", deadline=None, derandomize=True)  # shared machines: no time limit, same examples
settings.load_profile("offline")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as transformers writes it: 557 tokens, 128 positions."""
    folder = tmp_path_factory.mktemp("published") / "small-bot"
    write_published(folder, n_positions=128)
    return folder
