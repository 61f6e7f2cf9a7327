"""Each kind: a file written by hand after its documented layout, with its bites, and the dialogues that come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dialogpt.data import Dialogue, Problem, Reading, read
from dialogpt.data.detect import kind_of
from dialogpt.errors import DialogueError

BOM = "\ufeff"


def written(folder: Path, name: str, content: str | bytes | Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        path.write_bytes(text.encode())
    return path


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def found(path: Path, **settings: Any) -> tuple[list[list[str]], list[tuple[int, str]]]:
    """The turns of every dialogue, and the problems."""
    problems: list[Problem] = []
    dialogues = list(read(path, Reading(**settings), on_problem=problems.append))
    return [dialogue.turns for dialogue in dialogues], [(problem.line, problem.reason) for problem in problems]


def kind(path: Path) -> str:
    return kind_of(path, Reading()).name


def test_turns_a_line_or_one_array(tmp_path: Path) -> None:
    dialogues = [
        {"turns": ["Hi!", "Hello."], "weights": [0, 1]},
        {"turns": ["a", "b", "c"], "speakers": ["x", "y", "y"]},
    ]
    expected = [Dialogue(["Hi!", "Hello."], [0, 1]), Dialogue(["a", "b\nc"], None, ["x", "y"])]
    for name, content in (("a.jsonl", lines(*dialogues)), ("b.json", dialogues), ("c.jsonl", BOM + lines(*dialogues))):
        path = written(tmp_path, name, content)
        assert kind(path) == "turns"
        assert list(read(path)) == expected


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_line_ends_are_alike(tmp_path: Path, end: str) -> None:
    path = written(
        tmp_path, "a.jsonl", lines({"turns": ["a", "b"]}, {"turns": ["c"]}, {"turns": ["d", "e"]}).replace("\n", end)
    )
    assert found(path) == ([["a", "b"], ["d", "e"]], [(2, "1 turn, at least 2 needed")])


def test_a_key_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.jsonl", '{"turns": ["a", "b"], "turns": ["c", "d"]}\n' + lines({"turns": ['say "turns"', "b"]})
    )
    assert found(path) == ([['say "turns"', "b"]], [(1, 'the key "turns" is duplicate')])


def test_tsv(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "hi EOS hello\t20 years\nonly one\nhi\tbye\n")
    assert found(path, kind="tsv") == (
        [["hi", "hello", "20 years"], ["hi", "bye"]],
        [(2, "1 column, expected 2: source, tab, reply")],
    )
    weighted = written(tmp_path, "b.tsv", "0.0 hi EOS 1.0 20 years\t0.5 nan\nhi\t1.0 bye\n")
    assert kind(weighted) == "tsv"
    assert list(read(weighted, Reading(tsv_weights=True))) == [Dialogue(["hi", "20 years", "nan"], [0.0, 1.0, 0.5])]


def test_messages(tmp_path: Path) -> None:
    """System first, content as parts, a weight, two of one role in a row, the call of a tool."""
    user, bot = {"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}
    parts = {
        "role": "user",
        "content": [
            {"type": "text", "text": "See:"},
            {"type": "image_url", "image_url": {}},
            {"type": "text", "text": "this"},
        ],
    }
    path = written(
        tmp_path,
        "a.jsonl",
        lines(
            {"messages": [{"role": "system", "content": "Be kind."}, user, {**bot, "weight": 0}, parts, bot]},
            {"messages": [user, user, bot]},
            {"messages": [user, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            {"messages": [{"role": "system", "content": "x"}, bot]},
            {"messages": [{"content": "x"}, bot]},
        ),
    )
    assert kind(path) == "messages"
    problems: list[Problem] = []
    assert list(read(path, on_problem=problems.append)) == [
        Dialogue(
            ["Be kind.", "Hi!", "Hello.", "See:\nthis", "Hello."],
            [0, 0, 0, 0, 1],
            ["system", "user", "assistant", "user", "assistant"],
        ),
        Dialogue(["Hi!\nHi!", "Hello."], [0, 1], ["user", "assistant"]),
        Dialogue(["x", "Hello."], [0, 1], ["system", "assistant"]),
    ]
    assert [(p.line, p.reason) for p in problems] == [
        (3, "message 2 has no text: a picture, say, or the call of a tool"),
        (5, 'message 1 has no "role"'),
    ]
    assert found(path, system="drop")[0] == [["Hi!", "Hello.", "See:\nthis", "Hello."], ["Hi!\nHi!", "Hello."]]
    first, *_ = read(path, Reading(bot="*"))
    assert first.weights == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("human", "bot"), [("human", "gpt"), ("user", "assistant"), ("human", "chatgpt"), ("User", "bard")]
)
def test_sharegpt_with_its_synonyms(tmp_path: Path, human: str, bot: str) -> None:
    said = [{"from": "system", "value": "s"}, {"from": human, "value": "a"}, {"from": bot, "value": "b"}]
    path = written(tmp_path, "a.json", [{"id": "1", "conversations": said}, {"conversations": [{"from": human}]}])
    assert kind(path) == "sharegpt"
    assert list(read(path)) == [Dialogue(["s", "a", "b"], [0, 0, 1], ["system", "user", "assistant"])]
    assert found(path)[1][0][1] == 'message 1 has no text under "from" and "value"'


def test_the_notebooks_csv_is_newest_first(tmp_path: Path) -> None:
    """An index column, quoted line ends and commas, empty cells where a dialogue begins later."""
    path = written(
        tmp_path,
        "a.csv",
        ',response,context,context/0,context/1\n0,"d, e","c\nc",b,a\n1,"say ""hi""",c,,\n2,d\n',
    )
    assert kind(path) == "csv"
    assert found(path) == ([["a", "b", "c\nc", "d, e"], ["c", 'say "hi"']], [(5, "2 cells, expected 5")])


def test_csv_by_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "id;question;answer\n1;a;b\n2;c;d\n")
    assert found(path)[0] == [["a", "b"], ["c", "d"]]
    assert found(path, columns=("answer", "question"))[0] == [["b", "a"], ["d", "c"]]
    rows = written(
        tmp_path, "b.csv", "scene,name,line\n1,Anna,hi\n1,Ben,hello\n1,Ben,there\n2,Anna,x\n2,Ben,y\n1,Ben,z\n"
    )
    assert list(read(rows, Reading(columns=("speaker=name", "text=line", "dialogue=scene")))) == [
        Dialogue(["hi", "hello\nthere"], None, ["Anna", "Ben"]),
        Dialogue(["x", "y"], None, ["Anna", "Ben"]),
    ]
    with pytest.raises(DialogueError, match="which columns are turns.*'scene', 'name', 'line'.*--columns"):
        found(rows)
    with pytest.raises(DialogueError, match="there is no column nobody; it has scene, name, line"):
        found(rows, columns=("nobody",))


def test_csv_as_excel_writes_it_where_commas_are_decimal(tmp_path: Path) -> None:
    """The line `sep=;` was taken for the header."""
    assert found(written(tmp_path, "a.csv", 'sep=;\r\nquestion;answer\r\n"1,5; why?";b\r\n'))[0] == [["1,5; why?", "b"]]


def test_columns_that_do_not_say_which_are_sentences(tmp_path: Path) -> None:
    """Of two columns with one name the first was taken twice, and of a role that is given twice the last."""
    path = written(tmp_path, "a.csv", "text,text,a=b,name\nhi,hello,yes,x\n")
    with pytest.raises(DialogueError, match="2 columns are called text; rename one of them"):
        found(path, columns=("text", "text"))
    with pytest.raises(DialogueError, match="each once, and needs text; got text=name,text=a=b"):
        found(path, columns=("text=name", "text=a=b"))
    with pytest.raises(DialogueError, match="columns is 'name,', expected names"):
        found(path, columns=("name", ""))
    assert found(path, columns=("name", "a=b"))[0] == [["x", "yes"]]


def test_times_in_a_table(tmp_path: Path) -> None:
    """Times that are not read ended no dialogue, and nobody was told; so did milliseconds."""
    columns = ("speaker=who", "text=what", "time=when")
    for first, later in (
        ("2024-01-13 10:00", "2024-01-14 10:00"),
        ("1705140000", "1705226400.5"),
        ("1705140000000",) * 2,
    ):
        later = later.replace("17051400", "17052264") if later == first else later
        path = written(tmp_path, "a.csv", f"when,who,what\n{first},A,hi\n{first},B,ho\n{later},A,new\n{later},B,day\n")
        assert found(path, columns=columns) == ([["hi", "ho"], ["new", "day"]], [])
    path = written(tmp_path, "a.csv", "when,who,what\n1/13/2024 10:00,A,hi\n,B,ho\n")
    reason = "its time '1/13/2024 10:00' is not read; expected 2024-12-31 23:59, or seconds"
    assert found(path, columns=columns) == ([["hi", "ho"]], [(2, reason)])


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'question,answer\na,"b\nc,d\ne,f\n')
    dialogues, problems = found(path)
    assert dialogues == [["c", "d"], ["e", "f"]]
    assert [line for line, _ in problems] == [2]


def test_parquet_and_a_folder_of_datasets(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    roles = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tables = {
        "list": pyarrow.table({"dialog": [["a", "b"], ["c", "d"]], "act": [[1, 2], [1, 2]]}),
        "messages": pyarrow.table({"messages": [roles, roles]}),
        "columns": pyarrow.table({"input": ["a", "c"], "output": ["b", None]}),
    }
    results = {}
    for name, table in tables.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        assert kind(tmp_path / f"{name}.parquet") == "parquet"
        results[name] = found(tmp_path / f"{name}.parquet")
    assert results == {
        "list": ([["a", "b"], ["c", "d"]], []),
        "messages": ([["a", "b"], ["a", "b"]], []),
        "columns": ([["a", "b"]], [(2, "turn 2 is blank")]),
    }
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", tables["list"].schema) as stream:
        stream.write_table(tables["list"])
    assert kind(folder) == "datasets"
    assert found(folder)[0] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("below", ["", "data", "default"])
def test_a_data_set_as_it_is_cloned_from_the_hub(tmp_path: Path, below: str) -> None:
    """Its Parquet files were each read by name only: the folder was none of the kinds."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for split, said in (("test", "c"), ("train", "a")):
        path = tmp_path / below / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.table({"dialog": [[said, "b"]]}), path)
    assert kind(tmp_path) == "datasets"
    assert found(tmp_path) == ([["c", "b"], ["a", "b"]], [])
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DialogueError, match="train-00000-of-00001.parquet cannot be read"):
        found(tmp_path)


def test_dailydialog_is_tidied(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "dialogues_text.txt",
        "Say , Jim , how about a beer ? __eou__ I don ’ t know . It ’ s late ... __eou__\n"
        "Hello __eou__ __eou__ Bye __eou__\n",
    )
    assert kind(path) == "dailydialog"
    assert found(path) == ([["Say, Jim, how about a beer?", "I don't know. It's late..."]], [(2, "turn 2 is blank")])


def test_empathetic(tmp_path: Path) -> None:
    header = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
    rows = (
        'hit:0_conv:1,1,sad,"a prompt,1,My "cat" died_comma_ alas.,5|5,\nhit:0_conv:1,2,sad,p,0,Oh no!,5|5,\n'
        "hit:0_conv:2,2,sad,p,9,second,5|5,\nhit:0_conv:2,1,sad,p,8,first,5|5,\nbroken\n"
    )
    path = written(tmp_path, "train.csv", header + rows)
    assert kind(path) == "empathetic"
    dialogues, problems = found(path)
    assert dialogues == [['My "cat" died, alas.', "Oh no!"], ["first", "second"]]
    assert [line for line, _ in problems] == [6]


def test_personachat(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "train.txt",
        "1 your persona: i like cats .\n2 partner's persona: i am old .\n3 hi !\thello .\t\tx|y\n"
        "4 cats ?\tyes .\t\tx|y\n"
        "1 your persona: i run .\n2 __SILENCE__\thi , you .\t\tx|y\n3 hm\tok\t\tx\nnot numbered\n",
    )
    assert kind(path) == "personachat"
    assert found(path) == (
        [["hi!", "hello.", "cats?", "yes."], ["hi, you.", "hm", "ok"]],
        [(8, 'not a numbered line, such as "3 hi , how are you ?<tab>fine ."')],
    )


def test_blended_skill_talk(tmp_path: Path) -> None:
    said = {
        "personas": [["i run"], ["i swim"]],
        "previous_utterance": ["p1", "p2"],
        "free_messages": ["f1", "f2"],
        "guided_messages": ["g1", "g2"],
    }
    path = written(
        tmp_path,
        "train.json",
        [
            said,
            {**said, "previous_utterance": [], "free_messages": ["f1"]},
            {**said, "free_messages": ["f1"], "guided_messages": []},
        ],
    )
    assert kind(path) == "blended-skill-talk"
    dialogues, problems = found(path)
    assert dialogues == [["p1", "p2", "f1", "g1", "f2", "g2"], ["p1", "p2", "f1"]]
    assert problems[0][1] == "1 free and 2 guided messages, which do not take turns"


def test_cornell(tmp_path: Path) -> None:
    """Two files in ISO-8859-1; a line without words, and one that is missing."""
    written(
        tmp_path,
        "movie_lines.txt",
        "L4 +++$+++ u0 +++$+++ m0 +++$+++ B +++$+++ They do!\nL3 +++$+++ u1 +++$+++ m0 +++$+++ A +++$+++ Café?\n"
        "L5 +++$+++ u1 +++$+++ m0 +++$+++ A +++$+++ \n".encode("latin-1"),
    )
    written(
        tmp_path,
        "movie_conversations.txt",
        "u0 +++$+++ u1 +++$+++ m0 +++$+++ ['L3', 'L4', 'L5']\nu0 +++$+++ u1 +++$+++ m0 +++$+++ ['L3', 'L9']\nbroken\n",
    )
    for path in (tmp_path, tmp_path / "movie_conversations.txt"):
        assert kind(path) == "cornell"
        dialogues, problems = found(path)
        assert dialogues == [["Café?", "They do!"]]
        assert [line for line, _ in problems] == [2, 3]
    (tmp_path / "movie_lines.txt").unlink()
    with pytest.raises(DialogueError, match=r"holds no movie_lines\.txt"):
        found(tmp_path / "movie_conversations.txt")


def test_topical_chat(tmp_path: Path) -> None:
    said = [{"message": "Hi! ", "agent": "agent_1", "sentiment": "Happy"}, {"message": "Hello.", "agent": "agent_2"}]
    path = written(tmp_path, "train.json", {"t_1": {"article_url": "x", "content": said}, "t_2": {"content": 3}})
    assert kind(path) == "topical-chat"
    assert found(path)[0] == [["Hi!", "Hello."]]
    assert found(path)[1][0][1] == 't_2: no list of messages under "content"'


def message(name: str, role: str, text: str, rank: int | None = None, replies: Any = (), **more: Any) -> dict[str, Any]:
    return {"message_id": name, "role": role, "text": text, "rank": rank, "replies": list(replies), **more}


def test_oasst_every_path_learns_a_turn_once(tmp_path: Path) -> None:
    root = message(
        "1",
        "prompter",
        "q",
        None,
        [
            message("2", "assistant", "worse", 1),
            message(
                "3",
                "assistant",
                "best",
                0,
                [
                    message("4", "prompter", "more", 0, [message("5", "assistant", "end", 0)]),
                    message("6", "prompter", "unanswered", 1),
                ],
            ),
            message("7", "assistant", "gone", 2, deleted=True),
        ],
    )
    tree = {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root}
    flat = []

    def flatten(node: dict[str, Any], parent: str | None) -> None:
        flat.append(
            {
                **{key: value for key, value in node.items() if key != "replies"},
                "parent_id": parent,
                "message_tree_id": "1",
            }
        )
        for reply in node["replies"]:
            flatten(reply, node["message_id"])

    flatten(root, None)
    for name, content in (("trees.jsonl", lines(tree)), ("messages.jsonl", lines(*flat))):
        path = written(tmp_path, name, content)
        assert kind(path) == "oasst"
        assert [(d.turns, d.weights) for d in read(path)] == [
            (["q", "best", "more", "end"], [0, 1, 0, 1]),
            (["q", "worse"], [0, 1]),
        ]
        assert found(path, paths="best")[0] == [["q", "best", "more", "end"]]


def test_oasst_says_what_it_leaves_out(tmp_path: Path) -> None:
    """A question without an answer, and what was deleted, were dropped in silence; a deleted prompt was learned."""
    answers = [message("2", "assistant", "bad", 0, review_result=False), message("3", "assistant", "good", 1)]
    trees = [
        {"message_tree_id": "1", "prompt": message("1", "prompter", "q", None, answers)},
        {"message_tree_id": "4", "prompt": message("4", "prompter", "nobody answers")},
        {"message_tree_id": "5", "prompt": message("5", "prompter", "x", None, answers, deleted=True)},
    ]
    withdrawn, unanswered = "a message that was deleted, or that the reviewers rejected", "a message of the user that"
    dialogues, problems = found(written(tmp_path, "a.trees.jsonl", lines(*trees)))
    assert dialogues == [["q", "good"]]
    assert problems == [(1, withdrawn), (2, f"{unanswered} nobody answered"), (3, withdrawn)]
    flat = [
        {**node, "parent_id": parent, "message_tree_id": tree["message_tree_id"], "replies": None}
        for tree in trees
        for node, parent in [
            (tree["prompt"], None),
            *((r, tree["prompt"]["message_id"]) for r in tree["prompt"]["replies"]),
        ]
    ]
    dialogues, problems = found(written(tmp_path, "a.messages.jsonl", lines(*flat)))
    assert dialogues == [["q", "good"]]
    assert problems == [
        (2, withdrawn),
        (4, f"{unanswered} nobody answered"),
        (5, withdrawn),
        (6, withdrawn),
        (7, "its parent 5 is not there"),
        (5, "the tree 5 has no root"),
    ]


WHATSAPP = {
    "ios": (
        "\u200e[20.06.19, 15:58:57] Anna: \u200eMessages and calls are end-to-end encrypted.\n"
        "[20.06.19, 15:58:57] Anna: Hi!\n[20.06.19, 15:59:01] Anna: Are you\nthere?\n\n"
        "[20.06.19, 16:00:00] Ben: \u200eimage omitted\n"
        "[20.06.19, 16:00:10] Ben: Yes: here. \u200e<This message was edited>\n"
        "[03.07.19, 09:00:00] Ben: Morning\n[03.07.19, 09:01:00] Anna: Morning!\n"
    ),
    "android": (
        "6/20/19, 3:57\u202fPM - Messages and calls are end-to-end encrypted.\n"
        "6/20/19, 3:58\u202fPM - Anna: Hi!\n6/20/19, 3:59\u202fPM - Anna: Are you\nthere?\n\n"
        "6/20/19, 4:00\u202fPM - Ben: <Media omitted>\n6/20/19, 4:00\u202fPM - Ben: Yes: here.\n"
        "7/3/19, 9:00\u202fAM - Ben: Morning\n7/3/19, 9:01\u202fAM - Anna: Morning!\n"
    ),
    "android, day first, 24 hours": (
        '20/06/2019, 15:57 - Anna created group "x"\n'
        "20/06/2019, 15:58 - Anna: Hi!\n20/06/2019, 15:59 - Anna: Are you\nthere?\n\n"
        "20/06/2019, 16:00 - Ben: IMG-20190620-WA0001.jpg (file attached)\n20/06/2019, 16:00 - Ben: Yes: here.\n"
        "03/07/2019, 09:00 - Ben: Morning\n03/07/2019, 09:01 - Anna: Morning!\n"
    ),
}


@pytest.mark.parametrize("layout", WHATSAPP)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_whatsapp(tmp_path: Path, layout: str, end: str) -> None:
    path = written(tmp_path, "_chat.txt", BOM + WHATSAPP[layout].replace("\n", end))
    assert kind(path) == "whatsapp"
    problems: list[Problem] = []
    assert list(read(path, on_problem=problems.append)) == [
        Dialogue(["Hi!\nAre you\nthere?", "Yes: here."], None, ["Anna", "Ben"]),
        Dialogue(["Morning", "Morning!"], None, ["Ben", "Anna"]),
    ]
    assert sorted(problem.reason for problem in problems) == ["a line of the system", "media"]
    assert found(path, gap_seconds=None)[0] == [["Hi!\nAre you\nthere?", "Yes: here.\nMorning", "Morning!"]]
    assert next(read(path, Reading(bot="Ben"))).weights == [0, 1]


def test_whatsapps_day_or_month_is_told_by_the_whole_file(tmp_path: Path) -> None:
    """All numbers are below 13, and only one order does not run back."""
    days = "".join(
        f"0{day}/0{month}/19, 10:00 - {who}: {day}.{month}\n" for month in (1, 2) for day in (1, 2, 3) for who in "AB"
    )
    path = written(tmp_path, "a.txt", days)
    dialogues, problems = found(path, gap_seconds=36 * 3600)
    assert [len(turns) for turns in dialogues] == [6, 6]
    assert problems == []
    unclear = written(tmp_path, "b.txt", "01/01/19, 10:00 - A: x\n01/01/19, 10:00 - B: y\n")
    assert found(unclear)[1] == [
        (0, "its dates do not say whether the day or the month comes first; read as day first")
    ]


def test_telegram(tmp_path: Path) -> None:
    """Text as pieces, a service message, a photo, a deleted account, one chat or all of them."""
    said = [
        {"id": 1, "type": "service", "date": "2020-01-01T10:00:00", "action": "phone_call", "text": ""},
        {
            "id": 2,
            "type": "message",
            "date": "2020-01-01T10:00:00",
            "date_unixtime": "1577872800",
            "from": "Anna",
            "from_id": "u1",
            "text": "Hi!",
        },
        {
            "id": 3,
            "type": "message",
            "date": "2020-01-01T10:01:00",
            "date_unixtime": "1577872860",
            "from": None,
            "from_id": "u2",
            "text": ["see ", {"type": "link", "text": "http://x.y"}, "!"],
        },
        {
            "id": 4,
            "type": "message",
            "date_unixtime": "1577872861",
            "from": "Anna",
            "from_id": "u1",
            "photo": "p.jpg",
            "text": "",
        },
        {"id": 5, "type": "message", "date_unixtime": "1577972861", "from": "Anna", "from_id": "u1", "text": "later"},
    ]
    chat = {"name": "Anna", "type": "personal_chat", "id": 7, "messages": said}
    for content in (chat, {"about": "x", "chats": {"about": "y", "list": [chat]}}):
        path = written(tmp_path, "result.json", content)
        assert kind(path) == "telegram"
        dialogues, problems = found(path)
        assert dialogues == [["Hi!", "see http://x.y!"]]
        assert [reason for _, reason in problems] == [
            "no message: phone_call",
            "media: photo",
            "1 turn, at least 2 needed",
        ]
        assert found(path, redact=True)[0] == [["Hi!", "see __url__!"]]


def test_discord(tmp_path: Path) -> None:
    def said(kind: str, name: str, text: str) -> dict[str, Any]:
        return {
            "id": "1",
            "type": kind,
            "timestamp": "2020-01-01T10:00:00.1234567+00:00",
            "content": text,
            "author": {"id": "1", "name": name, "nickname": name.upper()},
            "attachments": [],
        }

    content = {
        "guild": {"id": "1"},
        "channel": {"id": "2"},
        "messages": [
            said("Default", "anna", "hi"),
            said("GuildMemberJoin", "x", "joined"),
            said("Reply", "ben", "yo"),
            said("Default", "ben", ""),
        ],
    }
    path = written(tmp_path, "a.json", content)
    assert kind(path) == "discord"
    assert list(read(path)) == [Dialogue(["hi", "yo"], None, ["ANNA", "BEN"])]
    table = written(
        tmp_path,
        "a.csv",
        'AuthorID,Author,Date,Content,Attachments,Reactions\n"1","anna","2020-01-01T10:00:00+00:00","hi\nyou","",""\n"2","ben","2020-01-01T10:00:05+00:00","yo","",""\n'
        '"2","ben","2020-01-01T10:00:05+00:00","","x.png",""\n',
    )
    assert kind(table) == "discord"
    assert found(table) == ([["hi\nyou", "yo"]], [(5, "media: an attachment")])


def test_messengers_letters_are_mended(tmp_path: Path) -> None:
    """Newest first, and UTF-8 written out as Latin-1."""
    broken = "Schön 🙂".encode().decode("latin-1")
    content = {
        "participants": [{"name": "A"}, {"name": "B"}],
        "messages": [
            {"sender_name": "B", "timestamp_ms": 1577872860000, "photos": [{}]},
            {"sender_name": "B", "timestamp_ms": 1577872860000, "content": "ok"},
            {"sender_name": broken, "timestamp_ms": 1577872800000, "content": broken},
        ],
        "title": "x",
    }
    path = written(tmp_path, "message_1.json", content)
    assert kind(path) == "messenger"
    assert list(read(path)) == [Dialogue(["Schön 🙂", "ok"], None, ["Schön 🙂", "B"])]
    assert found(path)[1] == [(9, "media: photos")] or found(path)[1][0][1] == "media: photos"


def test_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "\nhi\nhello\n\n  \nalone\n\na\nb\nc")
    assert kind(path) == "text"
    assert found(path) == ([["hi", "hello"], ["a", "b", "c"]], [(6, "1 turn, at least 2 needed")])
    utf16 = written(tmp_path, "b.txt", "hé\nhello\n".encode("utf-16"))
    assert found(utf16)[0] == [["hé", "hello"]]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            '{"foo": 1, "bar": 2}\n',
            "looks like none of the kinds .*JSON with the keys bar, foo; name one with --from",
        ),
        ("a.dat", "hello there\n", "its first line is 'hello there'"),
        ("a.bin", "\0\1\2\n\3", "its first bytes are no text"),
        ("a.zip", "PK\x03\x04....", "is packed .zip.; unpack it first"),
        ("a.dat", "", "a.dat is empty; expected dialogues"),
        ("a.dat", "a\tb\n\nc\td\n", "may be of several kinds; say which: --from tsv .* or --from text"),
        (
            "a.json",
            '{"turns": 1, "messages": [{"role": 1, "content": 2}]}',
            "several kinds; say which: --from turns .* or --from messages",
        ),
    ],
)
def test_what_is_not_told_apart_is_a_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    with pytest.raises(DialogueError, match=sentence):
        kind(written(tmp_path, name, content))


def test_a_name_that_is_no_kind_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="there is no kind 'wechat'; the kinds are turns, "):
        found(tmp_path, kind="wechat")
    with pytest.raises(DialogueError, match="is not there"):
        found(tmp_path / "gone")
