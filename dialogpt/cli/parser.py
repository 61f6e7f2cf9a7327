"""The parser of a command: a help that fits a screen, and the config file under what is typed.

`--help` shows the flags that a command names as `everyday`, and its examples; `--help-all` shows every flag. Which
flags there are is left to the commands, and reading the file to `dialogpt.cli.config_file`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialogpt.cli import config_file
from dialogpt.errors import did_you_mean

_UNSET: list[Any] = []  # stands for a flag that was not typed; a list, as flags that may be given again copy it


class CommandParser(argparse.ArgumentParser):
    """The parser of one command, or of the program.

    Attributes:
        everyday: the flags in `--help`, in this order; None shows all of them there.
        examples: what `--help` ends with, a line each.
        root: the parser of the program, which knows all commands; itself outside of a command.
        set_in_file: the flags that the config file sets for this command.
        file: that config file.
    """

    def __init__(self, *, everyday: Sequence[str] | None = None, examples: Sequence[str] = (), **options: Any) -> None:
        """Begin a parser; other options are argparse's."""
        super().__init__(**{**options, "add_help": False})
        self.everyday, self.examples = everyday, examples
        self.root = self
        self.set_in_file: frozenset[str] = frozenset()
        self.file: Path | None = None
        self._subcommands: Any = None
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        purpose = argparse.SUPPRESS if everyday is None else "show every flag and exit"
        self.add_argument("--help-all", action=_HelpAll, nargs=0, dest=argparse.SUPPRESS, help=purpose)

    def add_subparsers(self, **options: Any) -> Any:
        """Declare commands below this one; see argparse."""
        self._subcommands = super().add_subparsers(**options)
        return self._subcommands

    def leaves(self, words: tuple[str, ...] = ()) -> dict[str, CommandParser]:
        """Return the parsers that run something, by their words: this one, or those below it."""
        if self._subcommands is None:
            return {" ".join(words): self}
        found: dict[str, CommandParser] = {}
        for name, parser in self._subcommands.choices.items():
            found |= parser.leaves((*words, name))
        return found

    def complete_commands(self) -> None:
        """Give every command below this one what all have: `--config`, and a way to turn off what a file turns on."""
        for parser in self.leaves().values():
            parser.root = self
            known = parser.flags()
            for flag, action in known.items():
                negation = flag.removeprefix("no-") if flag.startswith("no-") else f"no-{flag}"
                if isinstance(action, argparse._StoreTrueAction) and negation not in known:
                    parser.add_argument(
                        f"--{negation}", dest=action.dest, action="store_false", default=argparse.SUPPRESS,
                        help=argparse.SUPPRESS,
                    )  # fmt: skip
            parser.add_argument(
                "--config",
                metavar="FILE",
                help="values for flags that are not typed (default: ~/.config/dialogpt/config.toml; '' for none)",
            )

    def flags(self) -> dict[str, argparse.Action]:
        """Return the flags that a config file may set, by their names without dashes."""
        return {
            option.removeprefix("--"): action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
            and action.dest not in (argparse.SUPPRESS, "help", "config", "version")
            and not isinstance(action, argparse._StoreFalseAction)
        }

    # ---- help ----

    def format_help(self) -> str:
        """Return what `--help` shows."""
        shown = None
        if self.everyday is not None:
            options = (*self.everyday, "--help-all")
            shown = [*self._get_positional_actions(), *(self._option_string_actions[option] for option in options)]
        return self._help_of(shown)

    def format_full_help(self) -> str:
        """Return what `--help-all` shows."""
        return self._help_of(None)

    def _help_of(self, shown: Sequence[argparse.Action] | None) -> str:
        """The help of some arguments; None is all of them, in their groups."""
        if shown is None:
            text = super().format_help()
        else:
            formatter = self._get_formatter()
            formatter.add_usage(self.usage, self._actions, ())
            formatter.start_section(None)
            formatter.add_arguments(shown)
            formatter.end_section()
            text = formatter.format_help()
        return text + ("\nexamples:\n" + "".join(f"  {line}\n" for line in self.examples) if self.examples else "")

    # ---- parsing ----

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what was typed, on top of what the config file says; see argparse.

        The result has `typed` too: the destinations of what was typed, whatever the file says.

        Raises:
            DialogueError: the config file cannot be used.
        """
        if self.root is self:  # which only chooses the command
            return super().parse_known_args(args, namespace)
        destinations = {action.dest for action in self._actions if action.option_strings} - {argparse.SUPPRESS}
        needed = [action for action in self._actions if action.required and action.option_strings]
        for action in needed:  # the file may have them
            action.required = False
        alone, _ = super().parse_known_args(args, argparse.Namespace(**dict.fromkeys(destinations, _UNSET)))
        typed = frozenset(name for name in destinations if getattr(alone, name) is not _UNSET)
        self._apply_file(alone.config if "config" in typed else None, typed)
        for action in needed:
            action.required = self.set_in_file.isdisjoint(action.option_strings)
        options, unknown = super().parse_known_args(args, namespace)
        options.typed = typed
        return options, unknown

    def _apply_file(self, named: str | None, typed: frozenset[str]) -> None:
        """Make defaults of what the config file says, but for what was typed, or contradicts that."""
        self.file = config_file.find(named)
        if self.file is None:
            return
        content = config_file.read(self.file)
        commands = self.root.leaves()
        names = {words: parser.flags().keys() for words, parser in commands.items()}
        config_file.check_names(content, names, self.file)
        (own,) = (words for words, parser in commands.items() if parser is self)
        excluded = {
            action.dest
            for group in self._mutually_exclusive_groups
            if any(action.dest in typed for action in group._group_actions)
            for action in group._group_actions
        }
        flags = self.flags()
        for key, value in config_file.settings_of(content, own, flags.keys()).items():
            action = flags[key]
            try:
                given = self._converted(action, key, value)
            except (argparse.ArgumentError, config_file.WrongType) as error:
                raise config_file.problem(self.file, key, getattr(error, "message", str(error))) from None
            if action.dest not in typed | excluded:
                self.set_defaults(**{action.dest: given})
                self.set_in_file |= {f"--{key}"}

    def _converted(self, action: argparse.Action, key: str, value: Any) -> Any:
        """What a flag would leave behind if its value were typed.

        Raises:
            argparse.ArgumentError: the value is not valid.
            config_file.WrongType: it is of the wrong type.
        """
        scratch = argparse.Namespace(**{action.dest: None})
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise config_file.WrongType("true or false", value)
            others = [option for option in action.option_strings if option != f"--{key}"]
            if not value and not others:
                return action.default
            action(self, scratch, [], f"--{key}" if value else others[0])
            return getattr(scratch, action.dest)
        is_text = action.type in (None, Path, str.lower)
        if isinstance(action, argparse._AppendAction):
            for each in value if isinstance(value, list) else [value]:
                action(self, scratch, self._get_values(action, [config_file.word_of(each, is_text)]), f"--{key}")
        else:
            several = action.nargs not in (None, "?") and isinstance(value, list)
            if isinstance(action.nargs, int) and (not several or len(value) != action.nargs):
                raise config_file.WrongType(f"a list of {action.nargs}", value)
            words = [config_file.word_of(each, is_text) for each in (value if several else [value])]
            if action.nargs == "?" and value is True:  # the flag alone
                words = []
            action(self, scratch, self._get_values(action, words), f"--{key}")
        return getattr(scratch, action.dest)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices, and name the one that was meant."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint} (choose from {', '.join(names)})")


class _HelpAll(argparse.Action):
    """Shows every flag, and ends the program."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        print(parser.format_full_help(), end="")
        parser.exit()
