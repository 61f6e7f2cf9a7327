"""`python -m dialogpt`: the command line, where the installed command is not on the path."""

from dialogpt.cli.main import console

if __name__ == "__main__":
    console()
