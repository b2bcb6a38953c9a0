"""`ds-train train` to its end: started again after a failure that a restart can help.

Each time it is a launch like any other, which goes on from the last good checkpoint; on fewer hosts
where some are lost, with the same rows per optimizer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_train.checkpoint.folder import latest_checkpoint, read_facts
from ds_train.doctor.session import HostFault, Session
from ds_train.errors import InputError, RunFailed
from ds_train.launch.failure import Failure
from ds_train.launch.reach import find_lost, left_arguments
from ds_train.launch.world import parse_launcher_args
from ds_train.paths import RunPaths
from ds_train.plan.launch import Launch, plan_launch
from ds_train.report.endings import reached_step, write_ending
from ds_train.train.start import start_training

_PAUSE_SECONDS = 5.0
"""Before the first restart; three times as long before each further one."""
_LONGEST_PAUSE_SECONDS = 300.0
_ANSWER_SECONDS = 20.0


def train_to_the_end(
    launch: Launch,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    launcher_args: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> int:
    """Train, with `cluster.restarts`; the exit code of the last launch.

    `launch`: the first one, which `plan_launch` has made of the other arguments.

    Raises what `plan_launch` and `start_training` raise; RunFailed when no restart is left, or none
    helps.
    """
    restarts = Restarts(recipe, overrides, launcher_args, launch, say)
    while True:
        try:
            return start_training(launch, on_refusal=restarts.note)
        except RunFailed as error:
            if error.failure is None:
                raise
            launch = restarts.launch_after(launch, error.failure)


class Restarts:
    """What is known from one launch to the next."""

    def __init__(
        self,
        recipe: str | Path,
        overrides: Sequence[str],
        launcher_args: Sequence[str],
        first: Launch,
        say: Callable[[str], Any],
    ) -> None:
        self._recipe, self._overrides, self._args = recipe, overrides, launcher_args
        self._say = say
        self._paths = RunPaths(Path(first.plan.config.output_dir))
        self._rows = first.plan.batch.global_batch_size
        self._total = self._left = first.plan.config.cluster.restarts
        self._furthest: int | None = None

    def launch_after(self, launch: Launch, failure: Failure) -> Launch:
        """The next launch, after a pause. Raises RunFailed with the cause where there is none."""
        try:
            return self._launch_after(launch, failure)
        except RunFailed:
            self.note(failure)
            raise

    def note(self, failure: Failure) -> None:
        """A failure after which nobody starts the run again."""
        self._write(self._paths.failures, failure, str(failure))

    def _launch_after(self, launch: Launch, failure: Failure) -> Launch:
        lost = _lost_hosts(launch, self._args) if failure.can_restart else {}
        cause = _with_lost(failure, lost)
        step = _saved_step(self._paths)
        if not failure.can_restart:
            raise RunFailed(cause, failure)
        if self._left == 0:
            raise RunFailed(f"{cause} {_by_hand(step, self._total)}", failure)
        reached = reached_step(self._paths)
        if self._furthest is not None and reached <= self._furthest and not lost:
            raise RunFailed(
                f"{cause} The same step fails again: this launch came to step {reached:,} and the "
                f"one before to step {self._furthest:,}, so it is not started a further time.",
                failure,
            )
        self._furthest = max(reached, self._furthest or 0)
        again = self._plan(launch, lost, cause)
        self._left -= 1
        pause = pause_seconds(self._total - self._left)
        left = f"{self._left} more restart{'' if self._left == 1 else 's'} after this one"
        self._say(f"failed: {cause}")
        self._say(
            f"restart: from step {step:,} (reached: {reached:,}) on "
            f"{again.plan.batch}, in {pause:g} s; {left}"
        )
        self._write(
            self._paths.restarts,
            failure,
            cause,
            from_step=step,
            lost_hosts=list(lost),
            world_size=again.plan.world.world_size,
            restarts_left=self._left,
        )
        time.sleep(pause)
        return again

    def _plan(self, launch: Launch, lost: Mapping[str, str], cause: str) -> Launch:
        """A launch on the hosts that are left, whose steps have as many rows."""
        world = launch.plan.world
        args, overrides = list(self._args), list(self._overrides)
        if len(lost) == len(world.slots):
            raise RunFailed(f"{cause} No host is left to go on on.")
        if lost:
            assert world.hostfile is not None
            args = left_arguments(world.slots, lost, world.hostfile, args)
            self._args = args
            train = launch.plan.config.train
            if train.global_batch_size is None:
                overrides += [f"train.global_batch_size={self._rows}"]
                overrides += ["train.gradient_accumulation_steps=null"]
            self._overrides = overrides = [*overrides, "train.allow_empty_rows=true"]
        try:
            return plan_launch(self._recipe, overrides, args)
        except InputError as error:
            num = sum(len(some) for host, some in world.slots.items() if host not in lost)
            what = f"It can't go on on the {num} processes that are left"
            raise RunFailed(f"{cause} {what}: {'; '.join(error.faults)}") from None

    def _write(self, path: Path, failure: Failure, cause: str, **more: Any) -> None:
        reached = reached_step(self._paths)
        if fault := write_ending(path, failure.kind, cause, reached, **more):
            self._say(fault)


def pause_seconds(number: int) -> float:
    """Before restart `number`, the first being 1: 5 s, 15 s, 45 s, ... 5 minutes at most."""
    return float(min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 3.0 ** min(number - 1, 9)))


def _by_hand(step: int, total: int) -> str:
    where = f"goes on after step {step:,}" if step else "begins anew, as nothing was saved yet"
    if total:
        return f"All restarts (cluster.restarts = {total}) are used; the same command {where}."
    return f"The same command {where}; with cluster.restarts: 3 it would do so by itself."


def _with_lost(failure: Failure, lost: Mapping[str, str]) -> str:
    if not lost:
        return str(failure)
    told = "; ".join(f"{host} {why}" for host, why in list(lost.items())[:8])
    return f"{failure} Lost: {told}."


def _lost_hosts(launch: Launch, launcher_args: Sequence[str]) -> dict[str, str]:
    """Hosts that can't start a Python in our folder now, and why; none where there is no ssh."""
    world = launch.plan.world
    if not world.over_ssh:
        return {}
    port = parse_launcher_args(launcher_args).ssh_port or launch.plan.config.cluster.ssh_port

    def ask(host: str) -> str | None:
        session = Session(host, {}, port)
        try:
            session.ask("clock", _ANSWER_SECONDS)
        except HostFault as fault:
            return fault.text
        finally:
            session.close()
        return None

    return find_lost(list(world.slots), ask)


def _saved_step(paths: RunPaths) -> int:
    folder = latest_checkpoint(paths)
    return 0 if folder is None else read_facts(folder).step
