"""The essentials of an inspection for a terminal: tinted where it has 24-bit colour, with letters where it has not."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

from dialogpt.inspect.data import AblationData, Candidate, Inspection, TokenData, TurnData

SPEAKERS = {"user": "You", "assistant": "Bot"}
BANDS = ((1.0, "."), (2.0, "a"), (4.0, "b"), (8.0, "c"), (math.inf, "d"))  # bits up to which a letter holds
HOTTEST_BITS = 12.0  # that are drawn in the fullest tint
HEAT = (240, 149, 79)
END = "<end>"
BAR_WIDTH = 20
SHOWN_PARTS = 5  # of the contributions, the largest


def render_text(inspection: Inspection, *, colours: bool, width: int = 80) -> str:
    """The dialogue by surprise, a line for each token of the reply, and what each turn is worth."""
    return "\n".join(
        [
            *_dialogue(inspection, colours, width),
            "",
            *_reply_table(inspection),
            "",
            *_ablation(inspection, width),
        ]
    )


def render_token(inspection: Inspection, position: int) -> str:
    """Everything about one token of the reply: what else could have come, the layers, attention, contributions.

    Args:
        inspection: see `inspect_reply`.
        position: of the token in the dialogue; the reply's first is ``inspection["reply"]["first"]``.
    """
    token = inspection["tokens"][position]
    if token["bits"] is None:
        return f"{shown(token)}: nothing precedes it, so nothing predicted it"
    return "\n".join(
        [
            f"{shown(token)}: {token['bits']:.2f} bits, {percent(token['probability'] or 0)}, "
            f"choice {token['rank']:,} of the network",
            "",
            *_stages(token),
            "",
            *_lens(token),
            "",
            *_attention(inspection, token),
            "",
            *_contributions(inspection, token),
        ]
    )


def shown(token: TokenData | Candidate) -> str:
    """A token in one line: control characters are spelled, the space before a word is a dot."""
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in token["text"])
    if token["text"] == "<|endoftext|>":
        return END
    return f"·{text[1:]}" if text.startswith(" ") else text


def percent(share: float) -> str:
    """A probability, with two digits that say something."""
    if share >= 0.0995:
        return f"{100 * share:.0f} %" if share < 0.995 else f"{100 * share:.1f} %"
    return f"{100 * share:.2g} %" if share >= 1e-4 else "<0.01 %"


def times(change: float) -> str:
    """How much likelier or less likely: a change of a natural logarithm, in words."""
    size = abs(change)
    if size < math.log(1.05):
        return "as likely"
    factor = f"{math.exp(size):.1f}" if size < math.log(10) else f"{math.exp(min(size, 13.8)):,.0f}"
    return f"{factor if size < 13.8 else f'10^{size / math.log(10):.0f}'} x {'less' if change < 0 else 'more'} likely"


def speaker(turn: TurnData) -> str:
    """Who spoke a turn, for people."""
    return SPEAKERS.get(turn["role"], turn["role"])


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) != 0 for letter in text)


def _clipped(text: str, columns: int) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= columns else f"{line[: columns - 1]}…"


def _dialogue(inspection: Inspection, colours: bool, width: int) -> list[str]:
    """The turns as tokens; below them letters, or behind them a tint, for how surprising each was."""
    key = (
        "tint: bits of surprise" if colours else "bits of surprise: . under 1, a under 2, b under 4, c under 8, d more"
    )
    lines = [key, ""]
    for index, turn in enumerate(inspection["turns"]):
        name = f"{index + 1} {speaker(turn)}"[:9].ljust(10)
        if turn["start"] is None:
            lines.append(f"{name}({_clipped(turn['text'], width - 40)}: the model is no longer shown this)")
            continue
        mine = [token for token in inspection["tokens"] if token["turn"] == index]
        for row, chunk in enumerate(_wrapped(mine, width - 10)):
            margin = name if row == 0 else " " * 10
            if colours:
                lines.append(margin + "".join(_tinted(text, token["bits"]) for token, text in chunk))
            else:
                lines.append((margin + "".join(text for _, text in chunk)).rstrip())
                lines.append((" " * 10 + "".join(_letter(token["bits"], text) for token, text in chunk)).rstrip())
    return lines


def _wrapped(tokens: Iterable[TokenData], width: int) -> list[list[tuple[TokenData, str]]]:
    """Tokens with their texts, in rows of so many columns."""
    rows: list[list[tuple[TokenData, str]]] = [[]]
    used = 0
    for token in tokens:
        text = shown(token).replace("·", " ", 1) if token["text"].startswith(" ") else shown(token)
        if rows[-1] and used + _columns(text) > width:
            rows.append([])
            used = 0
        rows[-1].append((token, text))
        used += _columns(text)
    return rows


def _letter(bits: float | None, text: str) -> str:
    """A letter for a token, below its first visible character."""
    letter = " " if bits is None else next(letter for most, letter in BANDS if bits < most)
    space = " " * (len(text) - len(text.lstrip(" ")))
    return f"{space}{letter}".ljust(_columns(text))[: max(_columns(text), 1)]


def _tinted(text: str, bits: float | None) -> str:
    """A text on a background between white and the fullest tint."""
    strength = min(1.0, (bits or 0.0) / HOTTEST_BITS)
    red, green, blue = (round(255 + (hot - 255) * strength) for hot in HEAT)
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;20;22;30m{text}\x1b[0m"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Columns with their heads; so many are left-aligned, the others right-aligned."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(_columns(line[k]) for line in lines) for k in range(len(heads))]
    return [
        "  ".join(
            cell + " " * (w - _columns(cell)) if k < left else " " * (w - _columns(cell)) + cell
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _reply_table(inspection: Inspection) -> list[str]:
    layers = inspection["model"]["layers"]
    first_shown = next(k for k, turn in enumerate(inspection["turns"]) if turn["start"] is not None)
    rows = []
    for place in range(inspection["reply"]["first"], len(inspection["tokens"])):
        token = inspection["tokens"][place]
        choice, attention = token["choice"], token["attention"]
        if choice is None or attention is None:
            continue
        looks = [sum(layer[k] for layer in attention["turns"]) / layers for k in range(len(attention["turns"][0]))]
        most = max(range(len(looks)), key=looks.__getitem__)
        ids = [candidate["id"] for candidate in choice["candidates"]]
        final = choice["stages"][-1]
        rows.append(
            [
                str(place - inspection["reply"]["first"] + 1).rjust(3) + f" {shown(token)}",
                f"{token['bits']:.2f}",
                percent(token["probability"] or 0),
                percent(final["probabilities"][ids.index(token["id"])]) if choice["possible"] else "removed",
                f"{final['kept']:,}",
                f"layer {token['settles']}",
                f"turn {first_shown + most + 1}, {percent(looks[most])}",
            ]
        )
    return _table(["token", "bits", "chance", "with settings", "tokens left", "settles in", "looked most at"], rows)


def _ablation(inspection: Inspection, width: int) -> list[str]:
    def named(entry: AblationData) -> str:
        removed = entry["removed"]
        if len(removed) > 1:
            return f"turns {removed[0] + 1} to {removed[-1] + 1}"
        turn = inspection["turns"][removed[0]]
        return f"turn {removed[0] + 1}, {speaker(turn)}: {_clipped(turn['text'], max(16, width - 50))}"

    rows = [
        [named(entry), times(entry["log_probability"] - inspection["reply"]["log_probability"])]
        for entry in inspection["ablation"]
    ]
    return _table(["the reply without", "would be"], rows)


def _stages(token: TokenData) -> list[str]:
    """What else could have come, after each processor that changed something."""
    choice = token["choice"]
    if choice is None:
        return _table(
            ["could have come", "chance"],
            [[shown(other), percent(other["probability"])] for other in token["alternatives"]],
        )
    stages = [
        stage
        for k, stage in enumerate(choice["stages"])
        if k == 0 or stage["probabilities"] != choice["stages"][k - 1]["probabilities"] or stage["removed"]
    ]
    rows = [
        [
            ("> " if candidate["id"] == token["id"] else "  ") + shown(candidate),
            *(percent(stage["probabilities"][k]) if stage["probabilities"][k] > 0 else "-" for stage in stages),
        ]
        for k, candidate in enumerate(choice["candidates"])
    ]
    heads = ["could have come", *(stage_name(stage["name"], stage["settings"]) for stage in stages)]
    return _table(heads, [*rows, ["  tokens left", *(f"{stage['kept']:,}" for stage in stages)]])


def stage_name(name: str, settings: dict[str, object]) -> str:
    """A processor with its setting, for people."""
    values = [value for value in settings.values() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    words = name.replace("_", "-")
    return f"{words} {values[0]}" if len(settings) == len(values) == 1 else words


def _lens(token: TokenData) -> list[str]:
    rows = [
        [
            ("embeddings" if k == 0 else f"layer {k}") + (" (settles)" if k == token["settles"] else ""),
            "  ".join(f"{shown(guess)} {percent(guess['probability'])}" for guess in layer["top"]),
            f"{layer['rank']:,}",
        ]
        for k, layer in enumerate(token["lens"])
    ]
    return _table(["after", "it would say", f"rank of {shown(token)}"], rows, left=2)


def _attention(inspection: Inspection, token: TokenData) -> list[str]:
    attention = token["attention"]
    assert attention is not None
    hidden = sum(turn["start"] is None for turn in inspection["turns"])
    lines = ["attention on each turn (average over layers; last layer)"]
    for k in range(token["turn"] - hidden + 1):
        by_layer = [layer[k] for layer in attention["turns"]]
        mean = sum(by_layer) / len(by_layer)
        turn = inspection["turns"][hidden + k]
        bar = ("█" * round(mean * BAR_WIDTH)).ljust(BAR_WIDTH)
        lines.append(f"{hidden + k + 1:>3} {speaker(turn)[:9]:<9} {bar} {percent(mean):>7}  {percent(by_layer[-1]):>7}")
    return lines


def _contributions(inspection: Inspection, token: TokenData) -> list[str]:
    found = token["contributions"]
    assert found is not None
    names = [
        part["kind"] if part["layer"] is None else f"{part['kind']} of layer {part['layer'] + 1}"
        for part in inspection["parts"]
    ]
    largest = sorted(zip(found["parts"], names, strict=True), key=lambda pair: -abs(pair[0]))[:SHOWN_PARTS]
    return [
        f"score (logit) {found['logit']:.2f}, {shown(found['rival'])} {found['rival_logit']:.2f}; its largest parts:",
        *(f"  {value:+8.2f}  {name}" for value, name in largest),
    ]
