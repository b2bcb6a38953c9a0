"""What the text of an option is read as: numbers and names, each refused with its own words."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}": must be a whole number of at least 1')
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f'"{text}": must be a whole number of at least 0')
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 0, as in `0,2,4`; each once."""
    found = tuple(natural(part) for part in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'"{text}": names a number twice')
    return found


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them; each once."""
    found = tuple(part.strip() for part in text.split(","))
    if "" in found or len(set(found)) < len(found):
        fault = "has an empty name" if "" in found else "names one twice"
        raise argparse.ArgumentTypeError(f'"{text}": {fault}; write names as in a,b')
    return found
