"""Imported by every Python that a test starts, where a system is played; see `tests/played_systems.py`."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("played_systems", Path(__file__).parents[1] / "played_systems.py")
assert _spec is not None
assert _spec.loader is not None
_played = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_played)
_played.begin()
