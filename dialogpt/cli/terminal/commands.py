"""The commands of a chat in a terminal: what is typed with a slash before it.

A command is an entry in `CommandTalk.commands` and a method. The prompt and the replies are left to
`dialogpt.cli.terminal.repl`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

from dialogpt.candidates import candidates
from dialogpt.chat import Chat
from dialogpt.cli.options import parse_setting
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.terminal import transcripts
from dialogpt.cli.terminal.conversations import Conversations
from dialogpt.cli.terminal.repl import BOT_LABEL, YOU_LABEL, Console, Leave, Talk
from dialogpt.errors import DialogueError, did_you_mean
from dialogpt.generation_config import RESET_BY_GREEDY, GenerationConfig
from dialogpt.history import BOT, USER, Turn
from dialogpt.settings import TYPED_COUNT, Kind, parsed, required, typed_count

ONE_REPLY = ("num_return_sequences", "eos_token_id", "max_length")  # settings that have no use in a conversation
MAX_CANDIDATES = 64
LISTED = 20  # conversations that /conversations shows
MORE = "...> "
SETTINGS = (*(setting.name for setting in fields(GenerationConfig) if setting.name not in ONE_REPLY), "history_tokens")


class CommandTalk(Talk):
    """One person, one chat, and the commands."""

    def __init__(self, chat: Chat, console: Console, conversations: Conversations | None = None) -> None:
        """Take what `Talk` takes."""
        super().__init__(chat, console, conversations)
        self.sampling = chat.generation if chat.generation.do_sample else GenerationConfig.chat()  # to come back to
        self.begun = {name: self._value(name) for name in SETTINGS}  # settings as the talk began
        self.commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self.help, "", "this list"),
            "exit": (self.leave, "", "leave (so does Ctrl-D)"),
            "clear": (self.clear, "", "begin a new conversation"),
            "retry": (self.retry, "", "another reply to your last turn"),
            "candidates": (self.candidates, "N", "show several replies to your last turn; the one you choose is taken"),
            "persona": (self.persona, "[TEXT]", "show the model a first turn before every conversation; none ends it"),
            "undo": (self.undo, "", "take the last exchange back"),
            "edit": (self.edit, "[TEXT]", "say something else instead of your last turn"),
            "history": (self.history, "", "the conversation; turns the model is no longer shown are marked"),
            "save": (self.save, "FILE", "write the conversation to a file"),
            "export": (self.export, "FILE.md", "write the conversation for people to read"),
            "load": (self.load, "FILE", "go on with a saved conversation"),
            "conversations": (self.list_conversations, "[N]", "list what was talked about; with N, go on with that"),
            "set": (self.set, "NAME [VALUE]", "show or change a setting, such as temperature 0.6"),
            "show": (self.show, "", "settings, the window, and what the last reply cost"),
            "explain": (self.explain, "[FILE]", "look inside the last reply: write a page that shows it"),
            "why": (self.why, "[TOKEN]", "the same for one token, here; without one, list them"),
            "multi": (self.multi, "", "say several lines; a line with only a dot ends them"),
        }

    def command(self, line: str) -> None:
        """Run the command that a line names, with the rest of the line."""
        name, _, argument = line[1:].partition(" ")
        if name not in self.commands:
            meant = did_you_mean(f"/{name}", (f"/{command}" for command in self.commands)) or "; /help lists them"
            raise DialogueError(f"there is no command /{printable(name)}{meant} (a space before the / says it)")
        run, usage, _ = self.commands[name]
        argument = argument.strip()
        if (bool(argument) and not usage) or (not argument and usage and not usage.startswith("[")):
            raise DialogueError(f"usage: /{name} {usage}".rstrip())
        run(argument)

    def help(self, _: str) -> None:
        """List the commands."""
        for name, (_run, usage, purpose) in self.commands.items():
            self.console.notice(f"  {f'/{name} {usage}':<20} {purpose}")
        self.console.notice("  Ctrl-C stops a reply; at the prompt it clears the line, and a second one leaves")

    def leave(self, _: str) -> None:
        """End the talk."""
        raise Leave

    def clear(self, _: str) -> None:
        """Forget the conversation."""
        self.chat.reset()
        self.console.notice("a new conversation")

    def retry(self, _: str) -> None:
        """Say another reply to the last turn."""
        before = self.chat.history.turns[-1:]
        self.show_reply(self.chat.stream_retry)
        (old,), (new,) = before, self.chat.history.turns[-1:]
        if not self.chat.generation.do_sample and new == old and new is not old:  # it is, if that was stopped at once
            self.console.notice("greedy decoding gives the same reply; /set do-sample true samples another one")

    def undo(self, _: str) -> None:
        """Take the last exchange back."""
        self.console.notice(f"taken back: {printable(self.chat.undo())}")

    def edit(self, text: str) -> None:
        """Replace the last thing that the person said."""
        texts = self.chat.texts()
        if not texts:
            raise DialogueError("there is no exchange yet; type something first")
        text = text or self._ask(YOU_LABEL, texts[-2])
        if text.strip():
            self.show_reply(partial(self.chat.stream_edit, text), text)

    def history(self, _: str) -> None:
        """Show the conversation."""
        if not self.chat.history.turns:
            raise DialogueError("there is no exchange yet; type something first")
        prompt = self.chat.last_prompt
        if self.chat.persona is not None:
            self.console.write(f"(persona) {printable(self.chat.tokenizer.decode(self.chat.persona))}\n")
        for place, (turn, text) in enumerate(zip(self.chat.history.turns, self.chat.texts(), strict=True)):
            hidden = prompt is not None and place < prompt.first_turn
            speaker = YOU_LABEL if turn.role == USER else BOT_LABEL
            if hidden:
                self.console.write("(not shown to the model) ")
            self.console.begin_line(speaker)
            self.console.write(f"{printable(text)}\n")

    def save(self, name: str) -> None:
        """Write the conversation to a file."""
        transcripts.save(name, self.chat.history.turns, self.chat.tokenizer, self.chat.persona)
        self.console.notice(f"{len(self.chat.history.turns)} turns written to {name}")

    def load(self, name: str) -> None:
        """Go on with a saved conversation."""
        self.chat.restore(transcripts.load(name, self.chat.tokenizer, self.chat.model.config.vocab_size))
        self.chat.set_persona(transcripts.load_persona(name))
        self.history("")

    def export(self, name: str) -> None:
        """Write the conversation as Markdown."""
        if not self.chat.history.turns:
            raise DialogueError("there is no exchange yet; type something first")
        transcripts.export(name, self.chat.history.turns, self.chat.tokenizer, self.chat.persona)
        self.console.notice(f"written to {printable(name)}")

    def candidates(self, wanted: str) -> None:
        """Show several replies to the last turn, and take the one that is chosen."""
        number = _count("the number of candidates", wanted, typed_count(MAX_CANDIDATES))
        turns, texts = self.chat.history.turns, self.chat.texts()
        if not turns:
            raise DialogueError("there is no exchange yet; type something first")
        with self.console.quiet():
            found = candidates(self.chat, texts[:-1], number)
        for place, reply in enumerate(found, 1):
            self.console.write(f"{place:>3}  {printable(one_line(self.chat.tokenizer.reply_text(reply.ids)))}\n")
        chosen = self._ask(f"1-{number}> ").strip()
        if not chosen:
            self.console.notice("the reply stays as it was")
        elif chosen.isdecimal() and len(chosen) < 5 and 1 <= int(chosen) <= len(found):
            self.chat.restore([*turns[:-1], Turn(found[int(chosen) - 1].ids, BOT)])
            self.console.notice("taken")
        else:
            raise DialogueError(f"{printable(chosen)!r} is none of them; the reply stays as it was")

    def persona(self, text: str) -> None:
        """Put a first turn before every conversation."""
        self.chat.set_persona(text)
        self.console.notice("the model is shown this first" if text else "no persona")

    def open_conversation(self, number: int) -> None:
        """Go on with a kept conversation; 1 is the last."""
        self._kept().bring_back(self.chat, number)
        self.history("")

    def _kept(self) -> Conversations:
        if self.conversations is None:
            raise DialogueError("conversations are not kept; start the chat without --no-history to keep them")
        return self.conversations

    def list_conversations(self, number: str) -> None:
        """List the kept conversations, or go on with one of them."""
        conversations = self._kept()
        if number:
            self.open_conversation(_count("the conversation", number))
            return
        kept = conversations.listed()
        for place, entry in enumerate(kept[:LISTED], 1):
            self.console.notice(
                f"  {place:>3}  {entry.changed:%Y-%m-%d %H:%M}  {entry.num_turns:>4} turns  {entry.title}"
            )
        older = f"; {len(kept) - LISTED} are older" if len(kept) > LISTED else ""
        self.console.notice(f"/conversations N goes on with one of them{older}" if kept else "there are none yet")

    def set(self, argument: str) -> None:
        """Change a setting."""
        name, _, value = re.sub(r"^(\S+?)\s*=\s*", r"\1 ", argument).partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if name not in SETTINGS:
            there = did_you_mean(name, SETTINGS) or f"; there are {', '.join(SETTINGS)}"
            raise DialogueError(f"there is no setting {name!r}{there.replace('_', '-')}")
        if not value:
            self.console.notice(f"  {self._line(name)}")
            return
        if name == "history_tokens":
            self._set_history_tokens(_count(name, value))
        else:
            self.chat.generation = self._changed(name, value)
        if self.chat.generation.do_sample:
            self.sampling = self.chat.generation
        elif name in ("temperature", "top_k", "top_p", "do_sample"):
            self.console.notice("  decoding is greedy; /set temperature to a number above 0 samples again")
        self.console.notice(f"  {self._line(name)}")

    def _set_history_tokens(self, number: int) -> None:
        room = self.chat.generation.prompt_room(self.chat.model.config.n_positions)
        if number > room:
            raise DialogueError(
                f"history-tokens is {number}, and the network's {self.chat.model.config.n_positions} positions leave "
                f"{room} beside a reply; expected at most that"
            )
        self.chat.history_tokens = number

    def _changed(self, name: str, value: str) -> GenerationConfig:
        """The settings with one changed; what greedy decoding had put aside comes back with a temperature."""
        before = self.chat.generation
        if before.do_sample:
            return parse_setting(before, name, value)
        if name in ("temperature", "do_sample"):
            before = replace(before, do_sample=True, **{key: getattr(self.sampling, key) for key in RESET_BY_GREEDY})
            return parse_setting(before, name, value)
        changed = parse_setting(before, name, value)
        self.sampling = replace(self.sampling, **{name: getattr(changed, name)})  # so that it comes back, too
        return changed

    def _line(self, name: str) -> str:
        return f"{name.replace('_', '-'):<32} {self._value(name)}"

    def _value(self, name: str) -> object:
        value: object = self.chat.history_tokens if name == "history_tokens" else getattr(self.chat.generation, name)
        return value

    def show(self, _: str) -> None:
        """Show settings, the window, and what the last reply cost."""
        changed = [name for name in SETTINGS if self._value(name) != self.begun[name]]
        if changed:
            self.console.notice("  changed here:")
        for name in (*changed, *(name for name in SETTINGS if name not in changed)):
            self.console.notice(f"  {self._line(name)}")
            if changed and name == changed[-1]:
                self.console.notice("  as it began:")
        prompt, last = self.chat.last_prompt, self.chat.statistics
        shown = 0 if prompt is None else len(prompt.ids)
        self.console.notice(
            f"  window: {shown} of {self.chat.model.config.n_positions} positions were shown to the model last"
        )
        if last.new_tokens:
            self.console.notice(
                f"  last reply: {last.new_tokens} tokens in {last.seconds:.2f} s, the first after "
                f"{last.first_seconds:.2f} s; {last.computed_tokens} of {last.prompt_tokens} prompt tokens computed"
            )
        if (draft := self.chat.draft) is not None and draft.proposed:
            self.console.notice(
                f"  draft: {draft.accepted} of {draft.proposed} draft tokens were accepted, since the start"
            )

    def explain(self, name: str) -> None:
        """Write the page of the last reply."""
        from dialogpt.cli.terminal.inspection import write_page

        with interrupts_flagged() as interrupted:
            path = write_page(self.chat, name, interrupted)
        self.console.notice(f"written to {printable(str(path))}; open {path.as_uri()} in a browser")

    def why(self, wanted: str) -> None:
        """Show one token of the last reply from inside."""
        from dialogpt.cli.terminal.inspection import why

        with interrupts_flagged() as interrupted:
            text = why(self.chat, wanted, interrupted)
        self.console.write(f"{text}\n")

    def multi(self, _: str) -> None:
        """Read several lines as one turn."""
        lines: list[str] = []
        try:
            while (line := self._ask(MORE)) != ".":
                lines.append(line)
        except EOFError:
            self.console.write("\n")
        if any(line.strip() for line in lines):
            text = "\n".join(lines)
            self.show_reply(partial(self.chat.stream, text), text)


def _count(name: str, text: str, kind: Kind = TYPED_COUNT) -> int:
    """A positive integer that was typed."""
    return int(required(name, parsed(name, text, kind), kind))
