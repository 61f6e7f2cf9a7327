"""The Spark engine writes what the local one writes, to the byte after sorting."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from dialogpt.data.reddit import Rules, local, spark
from dialogpt.data.reddit.rules import shipped_bots
from dialogpt.data.reddit.work import MB, Dump, Job
from dialogpt.errors import DialogueError
from tests.data.reddit.synthetic import filled, write

HAS_SPARK = shutil.which("java") is not None and importlib.util.find_spec("pyspark") is not None
RULES = Rules(bots=shipped_bots())


def sorted_lines(out: Path) -> list[bytes]:
    return sorted(line for path in (out / "dialogues").iterdir() for line in path.read_bytes().splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPARK, reason="Java or pyspark is not installed")
@pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning")
def test_spark_equals_local_and_reports_bad_dumps(tmp_path: Path) -> None:
    """One test, as a session takes half a minute to start."""
    world = filled(300)
    world.lines["2018-03"].insert(7, b'{"body": "no thread"}')
    comments, _ = write(world, tmp_path / "dumps")
    dumps = tuple(map(Dump, comments))
    expected = local.run(Job(dumps, tmp_path / "local", RULES), workers=1, memory=2048 * MB)
    report = spark.run(Job(dumps, tmp_path / "spark", RULES), master="local[2]")
    assert sorted_lines(tmp_path / "spark") == sorted_lines(tmp_path / "local")
    assert report == expected
    assert (tmp_path / "spark" / "problems.txt").read_bytes() == (tmp_path / "local" / "problems.txt").read_bytes()
    found = [json.loads(line) for line in sorted_lines(tmp_path / "spark")]
    assert sorted((one["id"], tuple(one["turns"])) for one in found) == sorted(world.expected)
    cut = tmp_path / "RC_2018-06.zst"
    cut.write_bytes(comments[0].read_bytes()[:-50])
    with pytest.raises(DialogueError, match=r"RC_2018-06.zst ends in the middle, after line [\d,]+"):
        spark.run(Job((Dump(cut), *dumps[1:]), tmp_path / "cut", RULES), master="local[2]")


def test_without_java_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    comments, _ = write(filled(1), tmp_path / "dumps")
    with pytest.raises(DialogueError, match="Spark needs Java 17 or newer"):
        spark.run(Job((Dump(comments[0]),), tmp_path / "out", RULES), master="local[2]")
