"""The command line: commands and their flags, the terminal, signals, exit statuses, and errors as sentences."""
