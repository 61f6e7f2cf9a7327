"""The error of the dialogue system: something that the person at the keyboard can mend; and commands' exit statuses."""

DONE, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT
CLOSED = 141  # 128 + SIGPIPE: nobody reads standard output


class DialogueError(ValueError):
    """What was found, what was expected and what to do next, in one sentence; the command line prints it as it is."""
