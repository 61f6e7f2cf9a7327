"""METEOR 1.5 by its own Java program, where it and Java are there.

Denkowski and Lavie, "Meteor Universal" (2014). No other program gives its numbers: nltk has the METEOR of 2007, up to
ten points apart. The program matches words and prints what it counted of each reply; the score of these counts is
computed here, so that a resampled set costs no second run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dialogpt.errors import DialogueError, install_hint
from dialogpt.evaluate.overlap import Floats

JAR_VARIABLE = "DIALOGPT_METEOR_JAR"
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # English, ranking task
_STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


class Unavailable(DialogueError):
    """METEOR cannot be run here; the message says what is missing."""


def find_jar(environment: Mapping[str, str] = os.environ) -> Path:
    """The program.

    Raises:
        Unavailable: it, or Java, is not here.
    """
    if shutil.which("java", path=environment.get("PATH")) is None:
        raise Unavailable("Java is not installed (Debian: apt-get install default-jre-headless)")
    if named := environment.get(JAR_VARIABLE):
        if not Path(named).is_file():
            raise Unavailable(f"{JAR_VARIABLE} names {named}, which is no file")
        return Path(named)
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable(f"meteor-1.5.jar is not installed: {install_hint('meteor')}")
    return Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"


def statistics(replies: Sequence[str], references: Sequence[Sequence[str]], jar: Path | None = None) -> Floats:
    """Run the program: what it counts of each reply, against the reference that fits best, (N, 23).

    Args:
        replies: texts.
        references: of each reply, at least one.
        jar: the program; None looks for it.

    Raises:
        Unavailable: it cannot be found, or fails.
    """
    jar = jar or find_jar()
    most = max(
        map(len, references)
    )  # the program takes as many for each; the best counts, so repeating one is harmless
    with tempfile.TemporaryDirectory(prefix="dialogpt-meteor-") as folder:
        given, expected = Path(folder, "replies"), Path(folder, "references")
        given.write_text("".join(f"{_line(reply)}\n" for reply in replies), encoding="utf-8")
        filled = ((*own, *[own[-1]] * (most - len(own))) for own in references)
        expected.write_text("".join(f"{_line(text)}\n" for own in filled for text in own), encoding="utf-8")
        command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), str(given), str(expected)]
        done = subprocess.run(
            [*command, "-r", str(most), "-l", "en", "-norm", "-ssOut"],
            capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    if done.returncode or len(rows) != len(replies):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"METEOR failed after {len(rows)} of {len(replies)} replies: {reason[:200]}")
    counted = np.array(rows, dtype=float)  # (N, 23)
    whole = (counted[:, 20] == 1) & (counted[:, 21] == counted[:, 0]) & (counted[:, 22] == counted[:, 1])
    counted[whole, 20] = 0  # one chunk that covers everything is no fragmentation
    return counted


def _line(text: str) -> str:
    return " ".join(text.split())


def score(sums: Floats) -> float:
    """METEOR of the sums of `statistics`, (23,); from 0 to 1.

    They are: words of the replies and of the references, function words of both, then for exact, stem, synonym and
    paraphrase matches the content words in replies and references and the function words in both, then chunks and
    words matched in both.
    """
    (length, expected, function, expected_function), chunks = sums[:4], sums[20]
    stages = sums[4:20].reshape(4, 4)  # stage; content of reply, of reference, function of reply, of reference
    weighted = _STAGES @ (_DELTA * stages[:, :2] + (1 - _DELTA) * stages[:, 2:])  # (2,)
    words = _DELTA * (length - function) + (1 - _DELTA) * function
    expected_words = _DELTA * (expected - expected_function) + (1 - _DELTA) * expected_function
    if not words or not expected_words:
        return 0.0
    precision, recall = weighted[0] / words, weighted[1] / expected_words
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = chunks / ((sums[21] + sums[22]) / 2)
    return float(mean * (1 - _GAMMA * fragmentation**_BETA))
