"""The commands, one file each: `add_parser` declares its flags, `run` does it and returns an exit status.

`dialogpt.cli.main` lists them. Nothing heavy is imported before a command runs.
"""
