"""The errors that a user can cause or meet, each with the exit code that the command line returns.

A message names the field, the value, the rule and the remedy. `cli.main` prints it without a
traceback; anything that is not a `DsTrainError` is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any


def quoted(value: object) -> str:
    """A name or path as it stands in a message."""
    return f'"{value}"'


def reason(error: BaseException) -> str:
    """First line of what a library says, to stand inside brackets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]  # torch's headline; what is wrong comes after it
    return lines[0].strip().rstrip(".: ")


def shorten(text: str, limit: int = 80) -> str:
    """A text for a message: its beginning, where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[:limit] + "..."


class DsTrainError(Exception):
    """Base of every error with a message made for the user. Exit code 1: the run failed."""

    exit_code = 1


class InputError(DsTrainError):
    """Something that the user gave is wrong, and nothing was started. Exit code 2.

    One or more faults, all of which are reported at once.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ConfigError(InputError):
    """A recipe with settings that are wrong, by themselves or together.

    `rest` is the recipe without its faulty settings (a `RunConfig`), where that is one: what it
    names can be looked for all the same.
    """

    def __init__(self, faults: str | Sequence[str], rest: Any = None) -> None:
        super().__init__(faults)
        self.rest = rest


class DataError(InputError):
    """A data file that is missing, unreadable or not what the recipe says it is."""


class NotScoredYet(DataError):
    """A step was asked for whose samples depend on a difficulty that the run is yet to measure."""


class ModelError(InputError):
    """A model folder, tokenizer or adapter that can't be used as asked."""


class CheckpointError(InputError):
    """A run folder or checkpoint that can't be read, written or continued."""


class BuildError(InputError):
    """A kernel library that can't be compiled on this machine; one line, with the reason."""


class TrainingDiverged(DsTrainError):
    """A loss or gradient norm that is not finite; the last checkpoint is untouched."""


class RolledBack(TrainingDiverged):
    """The same, but the run may go back to its last checkpoint and on without the step's rows."""


class RunFailed(DsTrainError):
    """A training process ended with an error of its own, which stands above this message.

    `failure`: what is known of the cause (a `launch.failure.Failure`), where a launch ended.
    """

    def __init__(self, text: str, failure: Any = None) -> None:
        super().__init__(text)
        self.failure = failure


class RunInterrupted(RunFailed):
    """A failure that starting the same run again may well get past.

    For schedulers that decide by the exit code: Kubeflow's training operator starts a pod again
    after 128 and above, of which 128 + SIGUSR1 is the one that no signal of the system gives.
    """

    exit_code = 128 + signal.SIGUSR1
