"""Samples that a run no longer trains on, because a step with them diverged: quarantine.json.

Each entry of the file is one rollback: which step went wrong and how, and the samples of its rows
by id. From that step on, a row that holds one of them is left out whole, in this epoch and in later
ones; the steps before it stay what they were. So the rows of a step follow from recipe, data,
difficulty, this file and the step's number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths, replace_text


@dataclass(frozen=True)
class Sample:
    """One sample, by its number in the tokenised data and by where it came from."""

    sample: int
    source: str
    row: int
    """Of the source, from 0."""


@dataclass(frozen=True)
class Rollback:
    """One step that went wrong, and what was done about it."""

    step: int
    """Number of the step that diverged; the first is 1."""
    first_step: int
    """Number of the first step whose rows were quarantined, and from which on they are left out."""
    reason: str
    """What was seen, as one line."""
    samples: list[Sample]
    loss: float | None = None
    """Of the step that diverged; None where it is not finite."""


def describe_samples(store: TokenStore, names: Sequence[str], ids: Ints) -> list[Sample]:
    """Where samples came from, each once, in the order given."""
    return [
        Sample(int(one), names[int(store.sources[one])], int(store.ordinals[one]))
        for one in dict.fromkeys(ids.tolist())
    ]


def read_rollbacks(paths: RunPaths, fingerprint: str | None = None) -> list[Rollback]:
    """Every rollback of a run so far, oldest first.

    Args:
        fingerprint: of the data that sample numbers are about; not looked at when None.

    Raises:
        CheckpointError: the file can't be read, is not ours, or is about other data.
    """
    if not paths.quarantine.is_file():
        return []
    try:
        content = json.loads(paths.quarantine.read_text())
        was = content["data_fingerprint"]
        rollbacks = [
            Rollback(**{**one, "samples": [Sample(**sample) for sample in one["samples"]]})
            for one in content["rollbacks"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{quoted(paths.quarantine)} can't be read ({error}). It names the samples that "
            "diverged; restore it, or remove it to train on them again."
        ) from None
    if fingerprint is not None and fingerprint != was:
        raise CheckpointError(
            f"{quoted(paths.quarantine)} names samples of other data (fingerprint {was[:12]}, now "
            f"{fingerprint[:12]}); remove it, or choose another output_dir."
        )
    return rollbacks


def write_rollbacks(paths: RunPaths, rollbacks: Sequence[Rollback], fingerprint: str) -> None:
    """Replace the file in one move; `fingerprint` of the data that sample numbers are about."""
    content = {
        "data_fingerprint": fingerprint,
        "rollbacks": [asdict(one) for one in rollbacks],
    }
    replace_text(paths.quarantine, json.dumps(content, indent=1) + "\n")


class Quarantine:
    """Which samples are left out from which step on."""

    def __init__(self, rollbacks: Sequence[Rollback] = ()) -> None:
        since: dict[int, int] = {}
        for one in rollbacks:
            for sample in one.samples:
                begins = one.first_step - 1
                since[sample.sample] = min(since.get(sample.sample, begins), begins)
        self._ids = np.array(sorted(since), dtype=np.int64)
        self._since = np.array([since[int(one)] for one in self._ids], dtype=np.int64)
        """[n] index of the first step without each of the samples."""
        self.first_step = min(since.values(), default=None)
        """The least of these; None without any sample."""

    @classmethod
    def of_run(cls, output_dir: str, fingerprint: str) -> Quarantine:
        """Of the run in a folder, which need not exist yet; `fingerprint` of its data."""
        return cls(read_rollbacks(RunPaths(Path(output_dir)), fingerprint))

    def concerns(self, step: int) -> bool:
        """Whether the step with index `step` may miss rows."""
        return self.first_step is not None and step >= self.first_step

    def hides(self, samples: Ints, step: int) -> bool:
        """Whether a row with these samples [n] is left out of the step with index `step`."""
        if not self.concerns(step):
            return False
        places = np.searchsorted(self._ids, samples).clip(max=len(self._ids) - 1)
        return bool(np.any((self._ids[places] == samples) & (self._since[places] <= step)))
