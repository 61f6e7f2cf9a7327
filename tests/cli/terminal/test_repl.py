"""The terminal, played by a script: a list of lines, and Ctrl-C and Ctrl-D where a person would press them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dialogpt import Chat, GenerationConfig, Tokenizer
from dialogpt.cli.output import command_line
from dialogpt.cli.printable import printable
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.terminal.commands import CommandTalk
from dialogpt.cli.terminal.repl import Console, InterruptedTyping
from dialogpt.model import GPT2
from tests.helpers import random_model, small_vocabulary

CTRL_C, CTRL_D = KeyboardInterrupt(), EOFError()
Play = Callable[..., "Played"]


class Played:
    """What a scripted person saw."""

    def __init__(self, chat: Chat, lines: tuple[str | BaseException, ...]) -> None:
        self.chat = chat
        self.prompts: list[tuple[str, str]] = []
        self.screen = ""
        self.notices: list[str] = []
        waiting = [*lines, CTRL_D]

        def read(label: str, initial: str) -> str:
            self.prompts.append((label, initial))
            line = waiting.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        self.status = CommandTalk(chat, Console(read, self.write, self.notices.append)).talk()
        self.unread = waiting

    def write(self, text: str) -> None:
        self.screen += text

    @property
    def said(self) -> str:
        return "\n".join(self.notices)


@pytest.fixture
def network() -> GPT2:
    return random_model(vocab_size=557, eos_token_id=556, n_positions=128)


@pytest.fixture
def play(network: GPT2) -> Play:
    chat = Chat(
        network,
        Tokenizer(small_vocabulary()),
        GenerationConfig(do_sample=True, max_new_tokens=6, min_new_tokens=3),
        seed=0,
    )
    return lambda *lines: Played(chat, lines)


def test_a_reply_is_shown_as_it_was_said(play: Play) -> None:
    played = play("Hello", "  ", "")
    assert played.screen == f"bot> {printable(played.chat.texts()[1])}\n\n"
    assert played.status == 0


def test_exit_and_ctrl_d_leave(play: Play) -> None:
    assert (play("/exit", "unread").unread[0], play().status) == ("unread", 0)


def test_ctrl_c_at_the_prompt_clears_the_line_and_a_second_one_leaves(play: Play) -> None:
    played = play(CTRL_C, "Hello", CTRL_C, CTRL_C, "unread")
    assert played.status == 130
    assert len(played.chat.texts()) == 2
    assert "Ctrl-C again" in played.said


def test_typing_disarms_ctrl_c(play: Play) -> None:
    played = play(CTRL_C, InterruptedTyping(), "Hello", CTRL_C, InterruptedTyping(), CTRL_C, "unread")
    assert played.status == 130
    assert played.unread[0] == "unread"
    assert len(played.chat.texts()) == 2


def test_help_lists_every_command(play: Play) -> None:
    played = play("/help")
    for name in (
        "help",
        "exit",
        "clear",
        "retry",
        "undo",
        "edit",
        "history",
        "save",
        "load",
        "set",
        "show",
        "multi",
        "candidates",
        "persona",
        "export",
        "conversations",
    ):
        assert f"/{name}" in played.said


def test_clear_undo_and_retry(play: Play) -> None:
    assert play("Hello", "/clear").chat.texts() == []
    played = play("Hello", "/retry")
    assert len(played.chat.texts()) == 2
    assert played.screen.count("bot> ") == 2
    played = play("More", "/undo")
    assert "taken back: More" in played.said
    assert len(played.chat.texts()) == 2


def test_retry_under_greedy_says_that_it_cannot_differ(play: Play) -> None:
    played = play("/set do-sample off", "Hello", "/retry")
    assert "greedy decoding gives the same reply" in played.said
    assert len(played.chat.texts()) == 2


def test_edit_offers_the_last_line_and_answers_the_new_one(play: Play) -> None:
    played = play("Helo", "/edit", "Hello")
    assert played.prompts[2] == ("you> ", "Helo")
    assert played.chat.texts()[0] == "Hello"
    assert play("/edit Hi there").chat.texts()[0] == "Hi there"
    assert play("/edit", CTRL_C).chat.texts()[0] == "Hi there"
    assert play("/edit", "").chat.texts()[0] == "Hi there"


def test_history_marks_what_the_model_is_no_longer_shown(play: Play) -> None:
    played = play("/set history-tokens 12", "Hello you", "Hello again", "/history")
    assert "(not shown to the model) you> Hello you" in played.screen
    assert "\nyou> Hello again" in played.screen


def test_save_and_load_go_on_where_they_were(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    played = play("Hello", f"/save {path}", "/clear", f"/load {path}")
    assert "2 turns written" in played.said
    assert played.chat.texts()[0] == "Hello"
    assert "cannot be read" in play(f"/load {tmp_path}/gone").said
    assert len(played.chat.texts()) == 2


def test_set_and_show(play: Play) -> None:
    played = play("/set top-k 7", "/set temperature 0", "/show", "/set temperature x", "/set nothing 1", "/set top_p 2")
    assert "top-k                            7" in played.said
    assert played.chat.generation.do_sample is False
    assert "temperature must be a number above 0 (for greedy decoding, do_sample off), got 'x'" in played.said
    assert "there is no setting 'nothing'" in played.said
    assert "top-p must be a number from 0 to 1, got 2.0" in played.said
    assert "history-tokens must be an integer from 1 to 999,999,999, got 'no'" in play("/set history-tokens no").said


def test_multi_says_several_lines_as_one_turn(play: Play) -> None:
    assert play("/multi", "one", "", "two", ".").chat.texts()[0] == "one\n\ntwo"
    assert len(play("/multi", "cancelled", CTRL_C).chat.texts()) == 2
    assert play("/clear", "/multi", "three", CTRL_D).chat.texts()[0] == "three"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/nothing", "there is no command /nothing; /help lists them"),
        ("/", "there is no command /"),
        ("/save", "usage: /save FILE"),
        ("/undo now", "usage: /undo"),
        ("/undo", "there is no exchange yet"),
        ("/edit", "there is no exchange yet"),
        ("\udcff", "half a surrogate pair"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(play: Play, line: str, sentence: str) -> None:
    played = play(line)
    assert sentence in played.said
    assert played.chat.texts() == []


def press_ctrl_c(network: GPT2, monkeypatch: pytest.MonkeyPatch, passes: tuple[int, ...]) -> None:
    """Press Ctrl-C, for real, during these forward passes."""
    honest, count = network.hidden, 0

    def hidden(ids: torch.Tensor, *arguments: object) -> torch.Tensor:
        nonlocal count
        count += 1
        for _ in range(passes.count(count)):
            signal.raise_signal(signal.SIGINT)
        return honest(ids, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "hidden", hidden)


def test_ctrl_c_stops_a_reply_and_keeps_what_was_said(
    play: Play, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(network, monkeypatch, (5,))
    played = play("Hello", "/set max-new-tokens 60")
    assert "stopped; what was said is kept" in played.said
    assert played.chat.texts()[0] == "Hello"
    assert 0 < len(played.chat.history.turns[1]) < 6
    assert played.status == 0


def test_ctrl_c_before_the_first_word_takes_the_turn_back(
    play: Play, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(network, monkeypatch, (1,))
    played = play("Hello", CTRL_C, "/history")
    assert "stopped; the conversation is as it was" in played.said
    assert played.chat.texts() == []
    assert played.status == 0  # one Ctrl-C at the prompt after it clears a line, and does not leave


def test_ctrl_c_before_the_first_word_of_another_reply_keeps_the_old_one(
    play: Play, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that the turn was taken back, which is true of a new turn only."""
    played = play("/set max-new-tokens 3", "Hello")
    before = played.chat.texts()
    press_ctrl_c(network, monkeypatch, (1,))
    terminal = CommandTalk(played.chat, Console(lambda *_: "", played.write, played.notices.append))
    terminal.handle("/retry")
    assert played.notices[-1] == "stopped; the conversation is as it was"
    assert played.chat.texts() == before
    assert len(before) == 2


def test_a_line_that_is_not_utf8_is_a_sentence(play: Play) -> None:
    played = play(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "Hello")
    assert "not valid UTF-8" in played.said
    assert len(played.chat.texts()) == 2


@pytest.mark.parametrize("command", ["/edit", "/multi"])
def test_a_question_that_a_command_asks_may_be_left(play: Play, command: str) -> None:
    """Ctrl-D, or a line that is no text, at the question of a command once ended the whole chat with a traceback."""
    bad = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")
    played = play("Hello", command, CTRL_D, command, bad, "More")
    assert played.status == 0
    assert "not valid UTF-8" in played.said
    assert [played.chat.texts()[place] for place in (0, 2)] == ["Hello", "More"]


def test_settings_that_make_no_sense_here_are_refused(play: Play) -> None:
    played = play("/set max-new-tokens 5000", "/set num-return-sequences 3", "/set history-tokens " + "9" * 5000)
    assert "max-new-tokens must be below the network's 128 positions" in played.said
    assert "there is no setting 'num_return_sequences'" in played.said
    assert "must be an integer from 1" in played.said
    assert len(played.chat.reply("Hello")) >= 0


def test_greedy_decoding_puts_the_sampling_settings_aside(play: Play) -> None:
    """Temperature 0 once reset top-k and top-p for good, and a temperature after it did nothing."""
    aside = ("/set top-k 7", "/set top-p 0.8", "/set max-new-tokens 9", "/set min-length 3", "/set temperature 0")
    played = play(*aside)
    assert "decoding is greedy" in played.said
    assert (played.chat.generation.do_sample, played.chat.generation.top_k) == (False, 0)
    play("/set do-sample true")
    config = play(*aside, "/set temperature 0.7").chat.generation
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 7, 0.8)
    assert (config.max_new_tokens, config.min_length) == (9, 3)
    assert play("/set temperature 0", "/set do-sample true").chat.generation == config
    assert play("/set do-sample false").chat.generation.do_sample is False


def test_what_is_set_while_decoding_is_greedy_stays(play: Play) -> None:
    """It was lost when sampling came back, and nothing said so."""
    greedy = ("/set top-p 0.7", "/set temperature 0", "/set top-k 5", "/set repetition-penalty 1.3")
    config = play(*greedy, "/set temperature 0.6").chat.generation
    assert (config.temperature, config.top_p, config.top_k, config.repetition_penalty) == (0.6, 0.7, 5, 1.3)


def test_a_greedy_retry_that_is_stopped_says_nothing_of_the_reply(
    play: Play, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    play("/set temperature 0", "Hello")
    press_ctrl_c(network, monkeypatch, (1,))
    played = play("/retry")
    assert "stopped; the conversation is as it was" in played.said
    assert "gives the same reply" not in played.said


def test_a_greedy_retry_of_a_sampled_reply_is_another_one(play: Play) -> None:
    """It was refused, as the same reply; after `/undo`, too, where the reply before had been sampled."""
    played = play("Hello", "/set temperature 0", "/retry", "/retry")
    assert played.said.count("greedy decoding gives the same reply") == 1
    play("/set temperature 1", "/clear", "Hello")
    played = play("/set temperature 0", "Well", "/undo", "/retry")
    assert "gives the same reply" not in played.said
    assert len(played.chat.texts()) == 2
    assert "there is no exchange yet" in play("/clear", "/retry").said


def test_an_empty_history_says_so(play: Play) -> None:
    assert "there is no exchange yet" in play("/history").said


def test_a_second_ctrl_c_does_not_wait_for_the_first_word(
    play: Play, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(network, monkeypatch, (1, 1))
    played = play("Hello", "Hello again")
    assert played.chat.texts()[0] == "Hello again"  # the first was taken back, and the talk goes on
    assert played.status == 0


def test_the_handler_of_ctrl_c_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_flagged() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_text_cannot_change_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\n\tb\x9b") == "a\ufffd[31mred\ufffd\ufffd\n\tb\ufffd"
    assert printable("\u202eevil\u2066 👩‍👩‍👧") == "\ufffdevil\ufffd 👩‍👩‍👧"


def test_commands_are_quoted_for_the_shell_that_they_are_typed_into() -> None:
    """cmd.exe knows no single quotes: the path in the hint was taken for two words, with quotes in them."""
    words = ["dialogpt", "chat", "C:\\My runs\\a&b\\", "", "runs\\last", 'say "hi"']
    assert command_line(words, "win32") == ('dialogpt chat "C:\\My runs\\a&b\\\\" "" runs\\last "say \\"hi\\""')
    assert command_line(["C:\\100%", "$runs"], "win32") == '"C:\\100%" "$runs"'  # no plain words to either shell
    assert command_line(["dialogpt", "chat", "/my runs/last"], "linux") == "dialogpt chat '/my runs/last'"


def test_a_candidate_that_is_chosen_is_taken(play: Play) -> None:
    played = play("Hello", "/candidates 3", "2")
    listed = [line[5:] for line in played.screen.split("\n") if line.startswith("  2  ")]
    assert len(listed) == 1
    assert played.prompts[2][0] == "1-3> "
    assert printable(played.chat.texts()[1]).split() == listed[0].split()
    before = [*played.chat.history.turns]
    said = play(
        "/candidates 2", "", "/candidates 2", "3", "/candidates 2", CTRL_C, "/candidates 1000", "/candidates x"
    ).said
    assert played.chat.history.turns == before
    assert "'3' is none of them" in said
    assert "must be an integer from 1 to 64, got 1000" in said
    assert "there is no exchange yet" in play("/clear", "/candidates 2").said


def test_a_persona_is_shown_to_the_model_whatever_is_dropped(play: Play, tmp_path: Path) -> None:
    played = play("/set history-tokens 24", "/persona I am tall.", "Hello you", "Hello again", "And again", "/history")
    chat, prompt = played.chat, played.chat.last_prompt
    ids = [*chat.tokenizer.encode("I am tall."), chat.tokenizer.eos_id]
    assert prompt is not None
    assert prompt.ids[: len(ids)] == ids
    assert prompt.first_turn > 0
    assert len(prompt.ids) <= 24
    assert ids[:-1] not in (prompt.own_turns or [])
    assert "(persona) I am tall.\n" in played.screen
    assert len(chat.texts()) == 6  # it is not one of them
    path = tmp_path / "talk.json"
    assert play(f"/save {path}", "/persona", "/clear").chat.persona is None
    restored = play(f"/load {path}").chat.persona
    assert restored is not None
    assert [*restored, chat.tokenizer.eos_id] == ids
    assert "may fill half" in play("/persona " + "long " * 50).said


def test_export_writes_markdown_and_writes_nothing_over(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    played = play("Hello *you*", f"/export {path}", f"/export {path}", "/clear", f"/export {tmp_path}/other.md")
    assert "**You:** Hello \\*you\\*\n\n**Bot:** " in path.read_text(encoding="utf-8")
    assert "exists; choose another name" in played.said
    assert "there is no exchange yet" in played.said


def test_set_shows_takes_an_equals_sign_and_suggests(play: Play) -> None:
    played = play(
        "/set top-k", "/set top-k=7", "/set top_p = 0.5", "/set temprature 1", "/set history-tokens 10000", "/show"
    )
    assert (played.chat.generation.top_k, played.chat.generation.top_p) == (7, 0.5)
    assert "did you mean temperature?" in played.said
    assert "leave 122 beside a reply" in played.said
    shown = played.notices[played.notices.index("  changed here:") + 1 :]
    assert [line.split()[0] for line in shown[:2]] == ["top-k", "top-p"]
    assert shown[2] == "  as it began:"


def test_a_quiet_line_says_when_turns_leave_the_window(play: Play) -> None:
    played = play("/set history-tokens 12", "Hello you", "Hello again")
    assert "no longer shown the first 2 turns" in played.said


@pytest.mark.parametrize("text", ["Привет, как дела?", "你好", "مرحبا كيف حالك", "안녕하세요"])
def test_a_script_that_the_vocabulary_hardly_knows_gets_a_notice_once(play: Play, text: str) -> None:
    played = play(text, text, "Hello again", text)
    assert played.said.count("the vocabulary hardly knows this script") == 1
    assert played.notices[0].startswith("  (the vocabulary hardly knows this script")
    again = play("/clear", text, "/clear", text)
    assert again.said.count("the vocabulary hardly knows this script") == 2


@pytest.mark.parametrize("text", ["Hello!", "Comment ça va?", "12345 !?", "😀😀😀", "café", "naïve"])
def test_what_is_mostly_latin_gets_no_notice(play: Play, text: str) -> None:
    assert "vocabulary" not in play(text).said


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("/hepl", "did you mean /help?"),
        ("/lod x", "did you mean /load?"),
        ("/set temprature 1", "did you mean temperature?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(play: Play, line: str, meant: str) -> None:
    assert meant in play(line).said


def test_a_file_that_was_meant_is_named(play: Play, tmp_path: Path) -> None:
    (tmp_path / "monday.json").touch()
    assert f"did you mean {tmp_path / 'monday.json'}?" in play(f"/load {tmp_path / 'mondy.json'}").said
    assert "did you mean" not in play(f"/load {tmp_path / 'nowhere' / 'x.json'}").said
