"""lm_eval's templates, each compiled once instead of once a document.

A task's YAML has Jinja templates for question, answer and choices, and lm_eval 0.4.13 compiles them
anew for each document (`lm_eval.utils.apply_template`): of 1,000 questions with four answers that
takes as long as a small model takes to answer them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

_NUM_TEMPLATES = 1024


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """While this is open, lm_eval's Jinja environment remembers what it has compiled."""
    from lm_eval.utils import env

    env.from_string = lru_cache(_NUM_TEMPLATES)(env.from_string)  # of this object, not its class
    try:
        yield
    finally:
        del env.from_string
