"""The package from Python: defaults, settings as keywords, what objects look like, what threads and pickle may do."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dialogpt
from dialogpt import Chat, Draft, GenerationConfig, History, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.conversation_lock import ConversationLock
from dialogpt.errors import DialogueError, SettingsError
from dialogpt.weights import load
from tests.helpers import environment, pair


@pytest.fixture
def chat(published: Path) -> Chat:
    return Chat.load(published, seed=1, max_new_tokens=4)


def test_a_chat_without_arguments_is_tiny() -> None:
    chat = Chat.load()
    assert chat.model.config.n_layer == 6
    assert chat.tokenizer.vocabulary.origin.startswith("tiny")


def test_settings_are_keywords(published: Path) -> None:
    chat = Chat.load(published, temperature=0.7, top_k=4)
    assert (chat.generation.temperature, chat.generation.top_k, chat.generation.do_sample) == (0.7, 4, True)
    assert Chat.load(published, temperature=0).generation.do_sample is False
    on_top = Chat.load(published, generation=GenerationConfig(max_new_tokens=3), num_beams=2).generation
    assert (on_top.max_new_tokens, on_top.num_beams) == (3, 2)
    with pytest.raises(SettingsError, match="top_p must be a number from 0 to 1, got 2"):
        Chat.load(published, top_p=2)


@pytest.mark.parametrize(("name", "meant"), [("temprature", "temperature"), ("topk", "top_k"), ("sead", "seed")])
def test_an_unknown_keyword_is_a_sentence(name: str, meant: str, published: Path) -> None:
    with pytest.raises(TypeError, match=f"there is no setting '{name}'; did you mean {meant}\\?"):
        Chat.load(published, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="there is no setting 'zzzzz'; there are max_new_tokens, "):
        Chat.load(published, zzzzz=1)


def test_objects_say_what_they_are(chat: Chat) -> None:
    chat.reply("Hi!")
    assert re.fullmatch(r"<Chat: 2 layers, 24 wide, on cpu; 2 turns, 256 tokens of them shown>", repr(chat))
    assert re.fullmatch(r"<History: 2 turns, \d+ tokens>", repr(chat.history))
    assert re.fullmatch(r"<Tokenizer: 557 tokens, from .*; 556 ends a turn>", repr(chat.tokenizer))
    config = GenerationConfig(top_k=4, max_new_tokens=3)
    assert repr(config) == "GenerationConfig(max_new_tokens=3, top_k=4)"
    assert eval(repr(GenerationConfig.chat())) == GenerationConfig.chat()
    assert repr(History(3)) == "<History: 0 turns, 0 tokens>"


def test_the_version_is_there_without_torch() -> None:
    program = "import sys, dialogpt; print(dialogpt.__version__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.split() == [dialogpt.__version__, "False"]


def test_a_chat_that_is_pickled_says_what_to_keep_instead(chat: Chat, published: Path) -> None:
    """It was "cannot pickle '_thread.RLock' object", or a lambda of ours."""
    with pytest.raises(TypeError, match="a Chat holds a network and cannot be pickled; keep its history.turns"):
        pickle.dumps(chat)
    chat.reply("Hi!")
    with pytest.raises(TypeError, match="a Chat holds a network"):
        pickle.dumps(chat)
    turns = pickle.loads(pickle.dumps(chat.history.turns))
    again = Chat.load(published)
    again.restore(turns)
    assert again.texts() == chat.texts()


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("used", [False, True])
def test_packed_networks_are_not_pickled_but_copied(dtype: str, used: bool, published: Path) -> None:
    chat = Chat.load(published, dtype=dtype, seed=1, max_new_tokens=3)
    if used:
        chat.reply("Hi!")
    with pytest.raises(TypeError, match="a network with packed weights cannot be pickled; keep the name"):
        pickle.dumps(chat.model)
    assert Chat(copy.deepcopy(chat.model), chat.tokenizer, seed=1).reply("Hi!")


def test_plain_networks_are_pickled(published: Path) -> None:
    network = load(published, trainable=True)
    assert pickle.loads(pickle.dumps(network)).config == network.config


def test_whole_replies_of_several_threads_come_one_after_the_other(chat: Chat) -> None:
    """They ended in "ValueError: generator already executing", or with each other's tokens."""

    def talk() -> None:
        for _ in range(4):
            chat.reply("Hi there!")
            candidates(chat, ["Hi!"], 2)

    with ThreadPoolExecutor(4) as pool:
        [future.result() for future in [pool.submit(talk) for _ in range(4)]]
    assert len(chat.history.turns) == 32


def test_a_stream_of_another_thread_is_refused_with_a_sentence(chat: Chat) -> None:
    refused: list[str] = []

    def interfere() -> bool:
        def ask() -> None:
            for call in (lambda: chat.reply("And me?"), chat.undo, chat.reset, lambda: chat.stream("x")):
                try:
                    call()
                except DialogueError as error:
                    refused.append(str(error))

        if not refused:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        return False

    "".join(chat.stream("Hi!", stop=interfere))
    assert len(refused) == 4
    assert all("answering in another thread; give each thread a Chat of its own" in sentence for sentence in refused)
    assert len(chat.history.turns) == 2
    assert chat.reply("And now?") is not None


def test_an_unread_stream_is_not_ended_by_another_thread(chat: Chat) -> None:
    """Its reader got the first half of a reply, and no word of why; a thread that has ended reads no more."""
    stream = chat.stream("Hi!")
    first = next(stream)
    with ThreadPoolExecutor(1) as pool:
        for call in (lambda: chat.reply("And me?"), chat.undo, chat.reset):
            with pytest.raises(DialogueError, match="answering in another thread; give each thread a Chat"):
                pool.submit(call).result()
    assert first + "".join(stream) == chat.texts()[-1]
    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(lambda: [stream := chat.stream("Bye!"), next(stream)][0]).result()
    chat.reply("Hello?")  # the reader's thread is gone
    assert list(left) == []


def test_a_stream_that_another_thread_reads_on_is_not_a_callback() -> None:
    """The thread that read the last token has ended, and a third one is inside of the stream."""
    lock, inside, leave = ConversationLock(), threading.Event(), threading.Event()

    def answer() -> Generator[str, None, None]:
        yield "a"
        inside.set()
        leave.wait()
        yield "b"

    def begin() -> None:
        lock.record_reader()
        next(stream)

    stream = answer()
    first, second = threading.Thread(target=begin), threading.Thread(target=lambda: next(stream))
    first.start()
    first.join()
    second.start()
    inside.wait()
    with pytest.raises(DialogueError, match="answering in another thread"):
        lock.close(stream)
    leave.set()
    second.join()
    lock.close(stream)
    assert list(stream) == []


def test_a_thread_whose_stream_another_one_reads_on_is_told_of_that_one(chat: Chat) -> None:
    """Until that thread had its first text, the other one was told that it called from a callback."""
    chat.generation = GenerationConfig(do_sample=True, max_new_tokens=64, min_new_tokens=64)
    inside, leave, first = threading.Event(), threading.Event(), threading.current_thread()

    def stop() -> bool:
        if threading.current_thread() is not first:
            inside.set()
            leave.wait()
        return False

    stream = chat.stream("Hi!", stop=stop)
    next(stream)
    second = threading.Thread(target=lambda: next(stream))
    second.start()
    inside.wait()
    with pytest.raises(DialogueError, match="answering in another thread"):
        chat.undo()
    leave.set()
    second.join()


def test_a_callback_that_changes_the_conversation_is_told_so(chat: Chat) -> None:
    """It was told of another thread."""
    told: list[str] = []

    def stop() -> bool:
        for call in (chat.undo, chat.reset, lambda: chat.reply("x")):
            with pytest.raises(DialogueError) as error:
                call()
            told.append(str(error.value))
        return True

    "".join(chat.stream("Hi!", stop=stop))
    assert len(told) == 3
    assert all("this Chat is generating, and a callback cannot change it" in sentence for sentence in told)


@pytest.mark.parametrize("text", [3, None, b"Hi!", ["Hi!"]])
def test_a_turn_that_is_no_text_is_a_sentence(chat: Chat, text: object) -> None:
    """It was "'int' object has no attribute 'encode'"."""
    for call in (chat.reply, chat.stream, chat.stream_edit, chat.tokenizer.encode):
        with pytest.raises(TypeError, match=r"a turn is a text \(str\), got .*; decode bytes"):
            call(text)  # type: ignore[operator]
    assert chat.history.turns == []


def test_a_reply_in_another_thread_refuses_all_but_replies(chat: Chat) -> None:
    with chat.lock:
        refused: list[Exception] = []

        def ask() -> None:
            try:
                chat.stream("x")
            except DialogueError as error:
                refused.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert "answering in another thread" in str(refused[0])


def test_two_chats_share_a_draft(published: Path, tmp_path: Path) -> None:
    """Two threads ended in an error of torch, as both wrote to the draft's cache."""
    network, _ = pair(tmp_path, "float32", vocab_size=557, n_positions=128)
    tokenizer = Tokenizer.load(published)
    draft = Draft(network)
    config = GenerationConfig(max_new_tokens=24, min_new_tokens=24)
    expected = Chat(network, tokenizer, config).reply("Hi!")
    found: list[str] = []

    def talk() -> None:
        for _ in range(3):
            found.append(Chat(network, tokenizer, config, draft=draft).reply("Hi!"))

    with ThreadPoolExecutor(3) as pool:
        [future.result() for future in [pool.submit(talk) for _ in range(3)]]
    assert found == [expected] * 9
