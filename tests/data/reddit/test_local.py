"""The local engine: the expected dialogues, runs that go on after a kill, and what a person may do wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dialogpt.data.reddit import Rules, local
from dialogpt.data.reddit.rules import shipped_bots
from dialogpt.data.reddit.work import MB, Dump, Job, plan
from dialogpt.errors import DialogueError
from tests.data.reddit.synthetic import World, filled, pack, write
from tests.data.reddit.test_dumps import widest_frame
from tests.helpers import needs_fork, needs_posix

RULES = Rules(bots=shipped_bots())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, tuple[Dump, ...]]:
    """Three months of comments, packed in three ways, and what must come out."""
    world = filled(300)
    world.lines["2018-03"].insert(7, b'{"body": "no thread"}')
    comments, _ = write(world, tmp_path_factory.mktemp("dumps"))
    return world, tuple(map(Dump, comments))


def run(job: Job, **options: Any) -> dict[str, Any]:
    return local.run(job, **{"workers": 1, "memory": 2048 * MB, **options})


def lines_of(out: Path) -> list[dict[str, Any]]:
    paths = sorted((out / "dialogues").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def content(out: Path) -> dict[str, bytes]:
    """All files of a finished run but those that name its folder."""
    names = [*(out / "dialogues").iterdir(), out / "report.json", out / "problems.txt"]
    return {path.name: path.read_bytes() for path in names}


def test_the_expected_dialogues_come_out(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    expected, dumps = world
    report = run(Job(dumps, tmp_path / "out", RULES), workers=2)
    found = lines_of(tmp_path / "out")
    assert sorted((line["id"], tuple(line["turns"])) for line in found) == sorted(expected.expected)
    assert all(
        line["subreddit"] == "askreddit" and line["score"] > 0 and set(line["weights"]) == {1.0} for line in found
    )
    assert report["totals"]["dialogues"] == len(found)
    assert report["dropped"]["unreadable"] == 1
    (problem,) = (tmp_path / "out" / "problems.txt").read_text().splitlines()
    assert "RC_2018-03.zst, line " in problem
    assert "no link_id" in problem
    for source, dump in zip(report["sources"], dumps, strict=True):
        assert source["sha256"] == hashlib.sha256(dump.path.read_bytes()).hexdigest()
    card = (tmp_path / "out" / "README.md").read_text()
    assert report["sources"][0]["sha256"] in card
    assert "## Privacy" in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock") == [
        "README.md", "dialogues", "problems.txt", "report.json", "run.json"]  # fmt: skip
    assert run(Job(dumps, tmp_path / "out", RULES)) == report  # again: nothing to do


def test_every_comment_is_counted_once(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    report = run(Job(world[1], tmp_path / "out", RULES))
    dropped, totals = report["dropped"], report["totals"]
    of_comments = ("deleted", "removed", "deleted_later", "bot", "subreddit", "quote", "short", "long", "other_thread")
    assert totals["comments"] == totals["usable"] + sum(dropped[name] for name in of_comments)
    of_dialogues = ("answered", "low_score", "url", "markup", "capitals", "repetition", "long_word", "no_common_word",
                    "no_context", "empty_turn", "empty_target", "too_long", "not_a_key")  # fmt: skip
    ends = totals["dialogues"] + sum(dropped[name] for name in of_dialogues)
    assert 0 <= totals["usable"] - ends <= dropped["duplicate"]


def test_months_end_threads_only_in_the_original(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    run(Job(world[1], tmp_path / "out", Rules(like_original=True)))
    ids = {line["id"] for line in lines_of(tmp_path / "out")}
    crossing = [one for one in world[0].expected if len(one[1]) == 5 and one[0] not in ids]
    assert crossing


@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_other_forms_hold_the_same(world: tuple[World, tuple[Dump, ...]], tmp_path: Path, form: str) -> None:
    import pyarrow.parquet as pq

    run(Job(world[1], tmp_path / "out", RULES, form))
    paths = sorted((tmp_path / "out" / "dialogues").iterdir())
    if form == "parquet":
        found = [tuple(turns) for path in paths for turns in pq.read_table(path).column("turns").to_pylist()]
    else:
        lines = [line for path in paths for line in path.read_text().splitlines()]
        found = [tuple(turn[4:] for part in line.split("\t") for turn in part.split(" EOS ")) for line in lines]
    assert sorted(found) == sorted(turns for _, turns in world[0].expected)


# ---- Kills ----


def small_segments(job: Job) -> None:
    """Begin a run whose dumps make many segments, so that a kill can fall between them."""
    job.out.mkdir()
    layout = {"engine": "local", "buckets": 16, "segment_bytes": 40_000}
    (job.out / "run.json").write_text(json.dumps({**job.about(), "layout": layout}))


def kill_and_resume(job: Job, kills: int) -> None:
    """Run in forked children, killing them at random moments, a number of times; a run that completes is restarted."""
    moments = random.Random(1)
    while kills:
        if (job.out / "report.json").exists():
            shutil.rmtree(job.out)
            small_segments(job)
        process = os.fork()
        if process == 0:
            try:
                run(job)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.02, 0.4))
        os.kill(process, signal.SIGKILL)
        kills -= os.WIFSIGNALED(os.waitpid(process, 0)[1])


@needs_fork
@pytest.mark.slow
def test_a_run_that_is_killed_at_20_random_moments_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogpt.data.reddit.dumps.BLOCK", 20_000)
    comments, _ = write(filled(3000), tmp_path / "dumps", ("", "", ""))
    dumps = tuple(map(Dump, comments))
    for name in ("whole", "killed"):
        small_segments(Job(dumps, tmp_path / name, RULES))
    run(Job(dumps, tmp_path / "whole", RULES))
    kill_and_resume(Job(dumps, tmp_path / "killed", RULES), 20)
    run(Job(dumps, tmp_path / "killed", RULES))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("place", ["reading", "dialogues"])
def test_an_interrupted_run_goes_on_with_what_is_there(
    world: tuple[World, tuple[Dump, ...]], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments and parts that are complete are not made again, and the result is that of a run without a break."""
    run(Job(world[1], tmp_path / "whole", RULES))
    job = Job(world[1], tmp_path / "out", RULES)
    calls = 0

    def interrupt(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += what == place and done > 0
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, progress=interrupt)
    before = {path: path.stat().st_mtime_ns for path in [*job.out.glob("rows/*/*"), *job.out.glob("dialogues/*")]}
    assert before
    kept: list[Path] = []
    honest = local.finish

    def look(*arguments: Any) -> Any:
        kept.extend(path for path, moment in before.items() if path.stat().st_mtime_ns == moment)
        return honest(*arguments)

    monkeypatch.setattr(local, "finish", look)
    run(job)
    assert set(kept) == set(before)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# ---- Bad input ----


def test_a_truncated_dump_keeps_the_others_and_is_read_again(
    world: tuple[World, tuple[Dump, ...]], tmp_path: Path
) -> None:
    whole = world[1][0].path.read_bytes()
    path = tmp_path / "RC_2018-03.zst"
    path.write_bytes(whole[: len(whole) // 2])
    job = Job((Dump(path), *world[1][1:]), tmp_path / "out", RULES)
    with pytest.raises(
        DialogueError, match=r"RC_2018-03.zst ends in the middle, after line [\d,]+; is the download complete"
    ):
        run(job)
    there = set(job.out.glob("rows/dump-000[12]*/*"))
    assert there
    path.write_bytes(whole)
    run(job)
    found = sorted((line["id"], tuple(line["turns"])) for line in lines_of(tmp_path / "out"))
    assert found == sorted(world[0].expected)
    path.write_bytes(whole[: len(whole) // 2])
    report = run(Job(job.dumps, tmp_path / "some", RULES, allow_truncated=True))
    assert [source["truncated"] for source in report["sources"]] == [True, False, False]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: pack([b'{"id": "a", "title": "t", "num_comments": 3}'] * 3, path),
         "line 1 is a submission, not a comment; expected a dump of comments: RC_ files are comments"),
        (lambda path: pack([b"hello", b"there"], path), "line 1: not valid JSON .*; expected comments, one"),
        (lambda path: pack([], path), "line 1: there is nothing in it; expected comments"),
        (lambda path: path.write_bytes(b""), "line 1: there is nothing in it; expected comments"),
        (lambda path: path.write_bytes(b"\x00" * 1000), "line 1: not valid JSON|damaged"),
        (lambda path: path.mkdir(), "is a folder; name the files in it"),
        (lambda path: None, "RC_1.zst is not there"),
    ],
)  # fmt: skip
def test_what_is_no_dump_of_comments(tmp_path: Path, make: Callable[[Path], Any], sentence: str) -> None:
    make(tmp_path / "RC_1.zst")
    with pytest.raises(DialogueError, match=sentence):
        run(Job((Dump(tmp_path / "RC_1.zst"),), tmp_path / "out", RULES))


def test_other_settings_and_other_folders_are_refused(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    run(Job(world[1], tmp_path / "out", RULES))
    with pytest.raises(DialogueError, match=r"begun with other settings: rules.min_score \(then 1, now 3\)"):
        run(Job(world[1], tmp_path / "out", Rules(bots=RULES.bots, min_score=3)))
    with pytest.raises(DialogueError, match="begun with other settings: dumps"):
        run(Job(world[1][:1], tmp_path / "out", RULES))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(DialogueError, match=r"mine holds thesis.tex and no run.json; name a new folder"):
        run(Job(world[1], tmp_path / "mine", RULES))
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(DialogueError, match=r"run.json is damaged"):
        run(Job(world[1], tmp_path / "out", RULES))


def test_a_folder_in_use_is_left_alone(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    from dialogpt.files.disk import lock

    (tmp_path / "out").mkdir()
    release = lock(tmp_path / "out" / ".lock")
    try:
        with pytest.raises(DialogueError, match="is in use by another run"):
            run(Job(world[1], tmp_path / "out", RULES))
    finally:
        release()


@needs_posix
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_after_it(
    world: tuple[World, tuple[Dump, ...]], tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the middle.

    When an error of writing became a kind of `DialogueError`, it was taken for a dump's own fault, and the advice to
    repeat the command was lost.
    """
    job = Job(world[1], tmp_path / "out", RULES)
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        status = 1
        try:
            job.out.mkdir()
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            run(job)
        except DialogueError as error:
            advice = "when that is mended, repeat the command, which goes on where it stopped"
            status = 7 if str(error).startswith(str(job.out)) and str(error).endswith(advice) else 8
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
    run(job)
    assert len(lines_of(job.out)) == len(world[0].expected)


def test_memory_is_planned_and_too_little_is_refused(tmp_path: Path) -> None:
    wide, narrow = tmp_path / "RC_2018-03.zst", tmp_path / "RC_2018-04.zst"
    wide.write_bytes(widest_frame(b"{}\n"))
    narrow.write_bytes(zstandard.ZstdCompressor().compress(b"{}\n"))
    with pytest.raises(
        DialogueError, match=r"RC_2018-03.zst was packed with a window of 2,048 MiB, .* give --memory 2768M"
    ):
        plan(Job((Dump(narrow), Dump(wide)), tmp_path / "out", RULES), 2, 2048 * MB)
    both = Job((Dump(narrow), Dump(wide)), tmp_path / "out", RULES)
    assert plan(both, 64, 2768 * MB).workers == 1
    assert plan(both, 2, 4096 * MB).workers == 2
    assert plan(Job((Dump(narrow),) * 9, tmp_path / "out", RULES), 32, 16_384 * MB).readers == 8


def test_a_dump_that_was_replaced_is_read_again(world: tuple[World, tuple[Dump, ...]], tmp_path: Path) -> None:
    """Also after its dialogues were made: parts of the old one are not kept."""
    path = tmp_path / "RC_2018-03.zst"
    shutil.copy(world[1][0].path, path)
    job = Job((Dump(path),), tmp_path / "out", RULES, keep_rows=True)
    run(job)
    (tmp_path / "out" / "report.json").unlink()
    pack(world[0].lines["2018-03"][:40], path)
    assert run(job)["totals"]["comments"] in (39, 40)
