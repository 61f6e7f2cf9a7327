"""The error of the dialogue system: something that the person at the keyboard can mend."""


class DialogueError(ValueError):
    """What was found, what was expected and what to do next, in one sentence; the command line prints it as it is."""
