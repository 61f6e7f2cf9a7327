"""Flags that commands share, and what people type after them.

The generation flags are the fields of `GenerationConfig` in kebab case, on top of the chat preset.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import dialogpt
from dialogpt.cli.printable import one_line, printable
from dialogpt.errors import USAGE, DialogueError, SettingsError
from dialogpt.generation_config import DEFAULT_CANDIDATES, OFF, GenerationConfig
from dialogpt.published_settings import published_settings
from dialogpt.settings import SWITCH, TYPED_COUNT, Kind, kinds_of, parsed

if TYPE_CHECKING:
    from dialogpt.weights import Checkpoint

DTYPES = ("float64", "float32", "bfloat16", "float16")  # weights.DTYPES, whose module imports torch
PRECISIONS = (*DTYPES, "int8", "int4")  # likewise
MAX_THREADS = 1024
SOURCE = "a checkpoint: a folder, a file, or a name on the Hugging Face hub"


def installed_version() -> str:
    """The version of this package, for people."""
    return dialogpt.__version__


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the commands that talk."""
    model = add_network_flags(parser)
    model.add_argument(
        "--draft-model",
        metavar="M",
        help="speculative decoding, which is faster and changes no reply: a smaller draft model of the same "
        "vocabulary, or the same model, which then drafts in int8; for one reply at a time, without beams",
    )
    model.add_argument("--seed", type=_seed, metavar="N", help="sample the same replies each time")
    model.add_argument(
        "--normalize-text",
        action="store_true",
        help="spell what is typed as the training data were: words and signs apart",
    )
    model.add_argument(
        "--show-special-tokens",
        action="store_true",
        help="show special tokens in replies; else they are left out",
    )
    add_choice_flags(parser)
    add_generation_flags(parser)


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the rerankers that choose among candidate replies."""
    choice = parser.add_argument_group("choice among candidates")
    choice.add_argument(
        "--rerank",
        metavar="HOW",
        help="mmi: by --reverse-model; or DialogRPT heads, NAME[*WEIGHT]=M and more after commas "
        "(updown, width, depth, human_vs_rand, human_vs_machine)",
    )
    choice.add_argument("--reverse-model", metavar="M", help="a checkpoint that was trained with --reverse, for mmi")
    choice.add_argument(
        "--num-candidates", type=positive_number, metavar="N", help="how many candidates are ranked (default: 16)"
    )


def add_network_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags that say which network is loaded, and how; returns their group."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", metavar="M", help=f"{SOURCE} (default: tiny)")
    add_n_head(model)
    add_adapter(model)
    add_turn_prefix(model)
    model.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="of the weights; int8 and int4 round (default: float32)"
    )
    model.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps, ...")
    model.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="processor threads (default: as many as are free, one for a small network)",
    )
    model.add_argument(
        "--history-tokens", type=positive_number, metavar="N", help="tokens of dialogue shown to the model"
    )
    return model


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """The fields of `GenerationConfig`."""
    group = parser.add_argument_group("generation", "on top of the chat preset: " + _preset())
    group.add_argument("--greedy", action="store_true", help="always the likeliest token, without penalties")
    group.add_argument("--transformers-defaults", action="store_true", help="start from transformers' own settings")
    for setting in fields(GenerationConfig):
        if setting.name == "num_return_sequences":  # --num-replies, where a command has several
            continue
        kind, purpose = setting.metadata["kind"], setting.metadata["help"]
        if kind is SWITCH:
            add_switch(group, setting.name, purpose)
        else:
            value_of = parser_of(setting.name, kind)
            group.add_argument(flag_of(setting.name), type=value_of, metavar="X", help=purpose)


def add_switch(parser: argparse._ActionsContainer, name: str, purpose: str) -> None:
    """A pair of flags for a setting that is true or false; neither leaves it None.

    ``early_exit`` is turned on by ``--early-exit`` and off by ``--no-early-exit``; ``no_repeat_reply``, whose own name
    is a negation, on by ``--no-repeat-reply`` and off by ``--repeat-reply``. (argparse's BooleanOptionalAction takes
    every flag that begins with ``--no-`` for a negation, and from Python 3.14 on refuses to be built with one.)
    """
    flag = name.replace("_", "-")
    negation = flag.removeprefix("no-") if flag.startswith("no-") else f"no-{flag}"
    parser.add_argument(f"--{flag}", f"--{negation}", action=_Switch, dest=name, help=purpose)


class _Switch(argparse.Action):
    """Its first flag stands for true, its second for false."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])

    def format_usage(self) -> str:
        return " | ".join(self.option_strings)


def add_n_head(parser: argparse._ActionsContainer) -> None:
    """The flag for a checkpoint whose files do not hold the number of heads."""
    parser.add_argument(
        "--n-head", type=positive_number, metavar="N", help="heads, if there is no config.json and they are not 64 wide"
    )


def add_adapter(parser: argparse._ActionsContainer) -> None:
    """The flag for a LoRA adapter on top of the checkpoint."""
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter (LoRA) to merge into the weights")


def add_turn_prefix(parser: argparse._ActionsContainer) -> None:
    """The flag for a fine-tune that was trained with speaker tokens."""
    parser.add_argument(
        "--turn-prefix",
        nargs=2,
        metavar=("USER", "BOT"),
        help="what turns begin with where a fine-tune was trained so, to the letter: '<speaker1> ' '<speaker2> ' "
        "(default: the checkpoint's own)",
    )


def _preset() -> str:
    """The chat preset, for people; underscores, as argparse breaks lines at hyphens."""
    chat = GenerationConfig.chat()
    shown = {setting.name: getattr(chat, setting.name) for setting in fields(chat)}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, OFF.get(name)))


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def wrong_usage(
    options: argparse.Namespace, problem: str | DialogueError, name_of: Callable[[str], str] = flag_of
) -> SystemExit:
    """Report wrong usage as argparse does: the usage line, then the problem, and what of it the config file sets.

    Args:
        options: the flags.
        problem: a sentence, or an error; settings are named as flags.
        name_of: the flag of a setting, where it is another than its name.
    """
    sentence = problem.worded(name_of) if isinstance(problem, SettingsError) else str(problem)
    parser = options.parser
    named = sorted(flag for flag in parser.set_in_file if re.search(rf"{flag}(?![\w-])", sentence))
    if named:
        sentence += f" ({', '.join(named)}: set in {parser.file})"
    parser.print_usage(sys.stderr)
    print(f"{parser.prog}: error: {printable(one_line(sentence))}", file=sys.stderr)
    return SystemExit(USAGE)


def parser_of(name: str, kind: Kind) -> Callable[[str], Any]:
    """Return what argparse calls with the typed value of a setting."""

    def parse(text: str) -> Any:
        try:
            return parsed(name, text, kind)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(error.worded(flag_of)) from None

    return parse


def positive_number(text: str) -> int:
    """Parse a flag's positive integer."""
    try:
        return int(TYPED_COUNT.parse(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not {TYPED_COUNT.expected}") from None


def _threads(text: str) -> int:
    number = positive_number(text)
    if number > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{number} threads are more than {MAX_THREADS}")
    return number


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not an integer from 0 to 2^64 - 1")
    return int(text)


def generation_from(options: argparse.Namespace, checkpoint: Checkpoint | None = None) -> GenerationConfig:
    """Merge the flags into their defaults: the chat preset, or what --transformers-defaults starts from.

    Args:
        options: the flags.
        checkpoint: its own chat settings change the preset; --transformers-defaults begins with the content of its
            ``generation_config.json``.
    """
    if options.transformers_defaults:
        defaults = published_settings(checkpoint.generation_config if checkpoint else {})
    else:
        defaults = GenerationConfig.chat(checkpoint.chat if checkpoint else None)
    given = {
        setting.name: value
        for setting in fields(GenerationConfig)
        if (value := getattr(options, setting.name, None)) is not None
    }
    greedy = options.greedy
    if greedy and given.get("do_sample"):
        typed = {"greedy", "do_sample"} & getattr(options, "typed", frozenset())
        if len(typed) != 1:  # else the config file has the other, and what is typed wins
            raise wrong_usage(options, "--do-sample contradicts --greedy; omit one of them")
        greedy = "greedy" in typed
    if greedy:
        defaults, given = defaults.greedy(), {**given, "do_sample": False}
    elif options.transformers_defaults and given.get("temperature") != 0:
        given.setdefault("do_sample", defaults.do_sample)  # in transformers a temperature alone does not sample
    try:
        return defaults.merged(given)
    except DialogueError as error:
        raise wrong_usage(options, error) from None


def parse_setting(config: GenerationConfig, name: str, text: str) -> GenerationConfig:
    """Change one setting to what a person typed; see `GenerationConfig.merged`.

    Raises:
        DialogueError: there is no such setting, the text is no value of it, or it contradicts another setting.
    """
    name, kinds = name.replace("-", "_"), kinds_of(config)
    if name not in kinds:
        raise DialogueError(f"there is no setting {name!r}; there are {', '.join(kinds).replace('_', '-')}")
    return config.merged({name: parsed(name, text, kinds[name])})


def rerankers_from(options: argparse.Namespace) -> list[tuple[str, float, str]]:
    """What --rerank names: of each its name, weight and checkpoint. Empty without it."""
    if options.rerank is None:
        for flag in ("reverse_model", "num_candidates"):
            if getattr(options, flag) is not None:
                raise wrong_usage(options, f"--{flag.replace('_', '-')} goes with --rerank")
        return []
    if options.rerank == "mmi":
        if options.reverse_model is None:
            raise wrong_usage(
                options, "--rerank mmi needs --reverse-model, a checkpoint that was trained with --reverse"
            )
        return [("mmi", 1.0, options.reverse_model)]
    if options.reverse_model is not None:
        raise wrong_usage(options, "--reverse-model goes with --rerank mmi")
    named = []
    for part in options.rerank.split(","):
        name, equals, source = part.partition("=")
        name, times, weight = name.partition("*")
        try:
            named.append((name.strip(), float(weight) if times else 1.0, source))
        except ValueError:
            equals = ""
        if not equals or not source:
            raise wrong_usage(options, f"--rerank {part!r} is neither mmi nor NAME=M or NAME*WEIGHT=M")
    return named


def check_reply_count(options: argparse.Namespace, config: GenerationConfig, number: int) -> None:
    """Refuse a number of replies, or of candidates for them, that the settings cannot give."""
    judged = bool(rerankers_from(options))
    if options.draft_model is not None and (judged or number > 1 or config.num_beams > 1):
        raise wrong_usage(
            options, "--draft-model is for one reply at a time: not for --rerank, --num-replies or --num-beams"
        )
    asked = max(number, options.num_candidates or DEFAULT_CANDIDATES) if judged else number
    try:
        replace(config, num_return_sequences=asked)
    except DialogueError as error:
        flag = "--num-candidates" if judged else "--num-replies"
        names = {"num_return_sequences": flag}
        raise wrong_usage(options, error, lambda name: names.get(name) or flag_of(name)) from None
