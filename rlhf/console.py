"""What a person at the terminal is told."""

import sys

from rlhf.ranks import is_main


def say(line: str) -> None:
    """A line for the person at the terminal, from rank 0."""
    if is_main():
        print(line, file=sys.stderr, flush=True)
