"""The test set of 6,000 contexts: from ids and dumps to what `evaluate` reads."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dialogpt.data.reddit import Rules, local, testset
from dialogpt.data.reddit.rules import read_keys
from dialogpt.data.reddit.work import MB, Dump, Job
from dialogpt.errors import DialogueError
from tests.data.reddit.synthetic import World, filled, pack
from tests.data.reddit.test_local import lines_of


def test_the_test_set_is_made_from_ids(tmp_path: Path) -> None:
    """A context with replies that are no leaves, a double, one that is gone, one of another context."""
    world: World = filled(30)
    link = world.submission()
    names, texts = world.chain(link, 2)
    replies = [world.text() for _ in range(4)]
    ids = [world.comment(link, names[-1], reply) for reply in replies]
    world.comment(link, ids[0], "and so it goes on")  # so the first is no leaf
    elsewhere = world.comment(link, names[0], world.text())
    keys = [f"{link},{names[-1]},{id_}" for id_ in ids]
    entries = [
        f"9,{keys[0]}",
        f"7,{keys[1]}",
        f"7,{keys[1]}",
        f"1,{link},{names[-1]},t1_gone",
        f"3,{link},{names[0]},{elsewhere}",
    ]
    path = tmp_path / "ids.txt"
    path.write_text("multiref\t" + "\t".join(entries) + f"\nmultiref\t5,{link},{names[-1]},t1_lost\t4,{keys[2]}\n")
    dump = pack(world.lines["2018-03"], tmp_path / "RC_2018-03.zst")

    contexts = testset.read_ids(path)
    rules = testset.rules_for(contexts, Rules())
    report = local.run(Job((Dump(dump),), tmp_path / "out", rules), workers=1, memory=2048 * MB)
    assert report["totals"]["usable"] == 8  # of the other threads nothing is kept
    found = testset.write(contexts, [(line["id"], line["turns"]) for line in lines_of(tmp_path / "out")], tmp_path)
    spelled = [f"{text.removesuffix('.')} ." for text in [*texts, *replies]]
    source = " EOS ".join(spelled[:2])
    assert (tmp_path / "test.refs.txt").read_text() == f"{source}\t{spelled[2]}\t{spelled[3]}\t{spelled[3]}\n"
    assert (
        tmp_path / "test.scored_refs.txt"
    ).read_text() == f"{source}\t9|{spelled[2]}\t7|{spelled[3]}\t7|{spelled[3]}\n"
    assert (found.contexts, found.references, found.found_contexts, found.found_references) == (2, 7, 1, 3)


@pytest.mark.parametrize(
    "line", ["multiref", "other\t1,t3_a,t1_b,t1_c", "multiref\tx,t3_a,t1_b,t1_c", "multiref\t1,t3_a"]
)
def test_other_lists_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "ids.txt").write_text(f"multiref\t1,t3_a,t1_b,t1_c\n{line}\n")
    with pytest.raises(DialogueError, match=r"ids.txt, line 2: expected multiref"):
        testset.read_ids(tmp_path / "ids.txt")


def test_keys_say_what_may_be_a_turn_and_what_ends_a_dialogue(tmp_path: Path) -> None:
    (tmp_path / "keys.gz").write_bytes(gzip.compress(b"t3_a\tt1_b\tdep\nt3_a\tt1_c\tkeep\nt3_a\tt1_c\tdep\n"))
    assert read_keys(tmp_path / "keys.gz") == ({"t3_a,t1_c"}, {"t3_a,t1_b", "t3_a,t1_c"})
    (tmp_path / "keys").write_text("t3_a t1_b\n")
    with pytest.raises(DialogueError, match="keys, line 1: expected link id, comment id and keep or dep"):
        read_keys(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(DialogueError, match="keys is not UTF-8"):
        read_keys(tmp_path / "keys")
