"""What can be typed after `ds-train`: a file for each command.

`add_parser` adds its arguments and help texts to the command line, `run` does it and returns the
exit code. A command imports what it needs in `run`, so that `--help` answers at once.
"""
