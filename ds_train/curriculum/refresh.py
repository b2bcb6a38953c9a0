"""Difficulties that a run has measured on its own way, stored in its folder.

    RUN/difficulty/step-00000050.f32, .json      scored when 50 steps were made

Each one names its own fingerprint and those of all before it. A checkpoint names those that its run
had measured, and a resumed run takes exactly these; what was measured after the checkpoint is
measured again, when the run comes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_train.config.run import RunConfig
from ds_train.curriculum.blocks import DrawnBlocks
from ds_train.curriculum.score_files import checksum, open_stored, write_scores
from ds_train.curriculum.scores import DifficultyScores
from ds_train.curriculum.segments import Segments
from ds_train.data.fingerprint import hash_of
from ds_train.data.order import StepPlan
from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths
from ds_train.plan.resume import is_run_of


def segments_of(plan: StepPlan) -> Segments | None:
    """The segments of a plan that is scored again during its run; None of any other."""
    blocks = plan.row_plan.blocks
    if not isinstance(blocks, DrawnBlocks) or not blocks.segments.steps:
        return None
    return blocks.segments


def fingerprints_of(segments: Segments) -> list[str]:
    """Of each difficulty that is known, the first one's first."""
    return [segment.scores.fingerprint for segment in segments.known if segment.scores is not None]


def named_scores(values: NDArray[np.float32], metric: str) -> DifficultyScores:
    """Values [N] with their fingerprint, which is made as that of any difficulty."""
    return DifficultyScores(values, hash_of([metric, checksum(values)]), metric)


def store_refresh(
    paths: RunPaths, segments: Segments, scores: DifficultyScores, seconds: float
) -> None:
    """Write the difficulties of the segment that begins now; OSError where it can't be done."""
    assert segments.next_step is not None
    facts = {
        "metric": scores.metric,
        "fingerprint": scores.fingerprint,
        "after": fingerprints_of(segments),
        "seconds": round(seconds, 6),
    }
    write_scores(paths.difficulty, _name(segments.next_step), scores.values, facts)


def resume_refreshes(
    paths: RunPaths, segments: Segments, fingerprints: Sequence[str], num_samples: int
) -> None:
    """Add the difficulties that a checkpoint names, in their order.

    Raises:
        CheckpointError: one is missing, damaged, or not that of the checkpoint.
    """
    for fingerprint in fingerprints:
        step = segments.next_step
        assert step is not None  # the recipe is the checkpoint's, and so are its boundaries
        name = _name(step)
        found = open_stored(paths.difficulty, name, num_samples, _silent)
        scores = None if found is None else named_scores(found.values, found.facts["metric"])
        if scores is None or scores.fingerprint != fingerprint:
            what = "is missing or damaged" if scores is None else "holds other difficulties"
            raise CheckpointError(
                f"{quoted(paths.difficulty / name)}.f32 {what}: the checkpoint goes on with those "
                f"that the run measured after step {step:,} (fingerprint {fingerprint[:12]}). "
                "Restore the file, or remove the checkpoints after that step: the run then "
                "measures them again."
            )
        segments.add(scores)


def add_known_refreshes(config: RunConfig, plan: StepPlan, num_samples: int) -> None:
    """Add what the run in the recipe's output_dir has measured so far, to look at its steps.

    Nothing is added where the folder holds a run of another recipe, or of other data.
    """
    segments, paths = segments_of(plan), RunPaths(Path(config.output_dir))
    if segments is None or not is_run_of(config):
        return
    while (step := segments.next_step) is not None:
        found = open_stored(paths.difficulty, _name(step), num_samples, _silent)
        if found is None or found.facts.get("after") != fingerprints_of(segments):
            return
        segments.add(named_scores(found.values, found.facts["metric"]))


def remove_refreshes_from(paths: RunPaths, segments: Segments) -> None:
    """Remove what an earlier start measured beyond the place where this one goes on."""
    for step in segments.steps[len(segments.known) - 1 :]:
        for ending in ("json", "f32"):
            (paths.difficulty / f"{_name(step)}.{ending}").unlink(missing_ok=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _silent(text: str) -> None:
    """Says nothing: whoever asks says what it means."""
