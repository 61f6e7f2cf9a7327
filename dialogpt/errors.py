"""The error of the dialogue system: something that the person at the keyboard can mend; and commands' exit statuses.

It imports nothing heavy, as every other file may import it.
"""

from pathlib import Path

DONE, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT
CLOSED = 141  # 128 + SIGPIPE: nobody reads standard output


def install_hint(extra: str) -> str:
    """The command that installs an extra: from the index, or in the checkout that this file lies in.

    Its quotes are double ones, which every shell takes, that of Windows too.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "constraints.txt").is_file():
        return f'pip install -c constraints.txt -e ".[{extra}]"'
    return f'pip install "dialogpt[{extra}]"'


class DialogueError(ValueError):
    """What was found, what was expected and what to do next, in one sentence; the command line prints it as it is."""
