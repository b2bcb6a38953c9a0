"""A node's part of a run whose nodes something else starts: Slurm, Kubernetes, mpirun, a script.

None of them can start the others again, so what is left to do after a failure is to say, by the
exit code, whether starting all of them again may help.
"""

from __future__ import annotations

from pathlib import Path

from ds_train.errors import RunFailed, RunInterrupted
from ds_train.launch.failure import Failure
from ds_train.paths import RunPaths
from ds_train.plan.launch import Launch
from ds_train.report.endings import reached_step, read_endings, write_ending
from ds_train.train.start import start_training

_LAUNCHES_WITHOUT_PROGRESS = 3
"""So many in a row, and it is not started again: Kubeflow would do so without end."""


def train_on_one_node(launch: Launch, node_rank: int, tell_stop: bool) -> int:
    """The exit code. `tell_stop`: see `run_launcher`.

    Raises what `start_training` raises; with `tell_stop` RunInterrupted instead of RunFailed where
    starting again may help. Node 0 speaks for all: it keeps failures.jsonl, and says by RunFailed
    that launches come no further.
    """
    paths = RunPaths(Path(launch.plan.config.output_dir))

    def note(failure: Failure) -> None:
        if node_rank > 0:
            return
        step = reached_step(paths)
        if fault := write_ending(paths.failures, failure.kind, str(failure), step):
            print(fault, flush=True)

    try:
        return start_training(launch, tell_stop=tell_stop, on_refusal=note)
    except RunFailed as error:
        failure = error.failure
        if failure is None:
            raise
        note(failure)
        if not tell_stop or not failure.can_restart:
            raise
        if node_rank == 0 and _is_stuck(paths):
            raise RunFailed(
                f"{failure} The last {_LAUNCHES_WITHOUT_PROGRESS} launches came to no further step "
                "than one before them, so this is not said to be worth another one.",
                failure,
            ) from None
        raise RunInterrupted(str(failure), failure) from None


def _is_stuck(paths: RunPaths) -> bool:
    steps = [line["reached_step"] for line in read_endings(paths.failures)]
    before = steps[:-_LAUNCHES_WITHOUT_PROGRESS]
    return bool(before) and max(steps[-_LAUNCHES_WITHOUT_PROGRESS:]) <= max(before)
