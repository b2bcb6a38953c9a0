"""`ds-train compare`: every arm and seed of a recipe trained, measured, and set side by side.

    OUTPUT_DIR/ARM/seed-S/        a run folder like any other, its log, evaluation.json
    OUTPUT_DIR/compare.md, .json, .png

The same command goes on where it was stopped: finished runs are read, half ones continue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ds_train.checkpoint.folder import latest_checkpoint
from ds_train.compare.arms import Comparison, RunSpec
from ds_train.compare.check import check_inputs
from ds_train.compare.children import LOG, Children, Outcome
from ds_train.compare.devices import Slot, make_slots, usable_cores
from ds_train.compare.measure import EVALUATION
from ds_train.compare.report import Report, write_report
from ds_train.compare.results import (
    RunResult,
    is_measured,
    is_trained,
    measures_dev,
    read_result,
)
from ds_train.config.compare import CompareConfig
from ds_train.config.load import dump_recipe
from ds_train.errors import DsTrainError, RunFailed
from ds_train.launch.command import free_port
from ds_train.launch.world import visible_gpus
from ds_train.paths import replace_text
from ds_train.plan.launch import LAUNCH_RECIPE
from ds_train.units import format_seconds

Say = Callable[[str], object]


def run_comparison(comparison: Comparison, say: Say = print, report: Report = write_report) -> int:
    """Run a comparison to its end; returns the exit code: 1 where a run failed, else 0.

    `report` writes what it came to.

    Raises InputError for whatever can be found before the first run, with every fault.
    """
    worlds = [plan.world for plan in comparison.plans.values()]
    gpus = [] if worlds[0].on_cpu else visible_gpus()
    parallel = comparison.compare.parallel
    slots = make_slots(worlds, parallel, len(comparison.runs), gpus, usable_cores())
    check_inputs(comparison, say)
    return Course(comparison, slots, say, report).run()


class Course:
    """A comparison that goes on: what is finished, what failed, how long it takes."""

    def __init__(
        self, comparison: Comparison, slots: Sequence[Slot], say: Say, report: Report
    ) -> None:
        self.comparison, self.slots, self._say, self._report = comparison, slots, say, report
        self.compare = comparison.compare
        self._ports: set[int] = set()
        self._results: dict[str, RunResult] = {}
        self._failed: list[Outcome] = []
        self._seconds: list[float] = []
        self._children = Children(slots, self._commands, self._ended)

    def run(self) -> int:
        """Every run that is left, then the table."""
        left = self._left_over()
        self._announce(len(left))
        if left and not self._children.run(left, self._say):
            finished, total = len(self._results), len(self.comparison.runs)
            self._say(f"stopped: {finished} of {total} runs are finished; the same command goes on")
            return 0
        return self._conclude()

    def _left_over(self) -> list[RunSpec]:
        left = []
        for spec in self.comparison.runs:
            if not (is_trained(spec) and is_measured(spec, self.compare)):
                left.append(spec)
                if latest_checkpoint(spec.paths) is None:
                    # of a run that came to nothing, perhaps of another recipe: no length to take
                    spec.paths.run_facts.unlink(missing_ok=True)
                continue
            try:
                self._results[spec.name] = read_result(spec, self.compare)
            except DsTrainError as error:  # it would end alike again
                self._ended(Outcome(spec, 0.0, str(error)))
        return left

    def _announce(self, num_left: int) -> None:
        compare, total = self.compare, len(self.comparison.runs)
        num_arms = len({spec.arm for spec in self.comparison.runs})
        num_seeds = len({spec.seed for spec in self.comparison.runs})
        product = f"{_count(num_arms, 'arm')} x {_count(num_seeds, 'seed')}"
        if compare.learning_rates is not None:
            product += f" x {_count_mean(total / (num_arms * num_seeds), 'learning rate')}"
        slot = self.slots[0]
        place = f"GPU {', '.join(map(str, slot.gpus))}" if slot.gpus else "the CPU"
        if len(self.slots) > 1 and slot.gpus:
            place = f"{_count(len(slot.gpus), 'GPU')} each"
        self._say(
            f"compare: {product} = {_count(total, 'run')}, {total - num_left} of them finished; "
            f"{len(self.slots)} at once on {place}, {_count(slot.threads, 'thread')} a process"
        )
        if len(compare.seeds) < 2:
            self._say("compare: one seed shows no spread; give two or more in compare.seeds")

    def _commands(self, spec: RunSpec, slot: Slot) -> Iterator[list[str]]:
        """What a run still needs: training, then measuring."""
        if not is_trained(spec):
            yield self._train(spec, slot)
            if not is_trained(spec):
                raise RunFailed("it was stopped before its last step; the same command goes on")
        if not is_measured(spec, self.compare):
            (spec.paths.root / EVALUATION).unlink(missing_ok=True)
            yield measure_command(spec, self.compare)
        self._results[spec.name] = read_result(spec, self.compare)

    def _train(self, spec: RunSpec, slot: Slot) -> list[str]:
        config = spec.resolved()
        assert config is not None  # it was ready
        recipe = spec.paths.root / LAUNCH_RECIPE
        recipe.parent.mkdir(parents=True, exist_ok=True)
        replace_text(recipe, dump_recipe(config))
        return train_command(recipe, port=self._port() if slot.shares_machine else None)

    def _port(self) -> int:
        """A free port that no other run of this comparison was given."""
        while (port := free_port()) in self._ports:
            pass
        self._ports.add(port)
        return port

    def _ended(self, outcome: Outcome) -> None:
        spec, total = outcome.spec, len(self.comparison.runs)
        if outcome.fault is not None:
            self._failed.append(outcome)
            why = f"FAILED: {outcome.fault} (log: {spec.paths.root / LOG})"
            self._say(f"[{self._num_over()}/{total}] {spec.name}  {why}")
            return
        self._seconds.append(outcome.seconds)
        result, primary = self._results[spec.name], self.compare.metrics[0]
        parts = [
            f"[{self._num_over()}/{total}] {spec.name}",
            f"{primary} {result.values[primary]:.4f}",
            f"{result.updates:,} steps",
            f"{result.tokens:,} tokens",
            format_seconds(outcome.seconds),
        ]
        if self._num_over() < total:
            parts.append(f"about {format_seconds(self._seconds_left())} left")
        self._say("  ".join(parts))

    def _num_over(self) -> int:
        return len(self._results) + len(self._failed)

    def _seconds_left(self) -> float:
        """From the mean of the runs of this start; those going on have some of it behind them."""
        mean = sum(self._seconds) / len(self._seconds)
        elapsed = self._children.elapsed()
        waiting = len(self.comparison.runs) - self._num_over() - len(elapsed)
        return (waiting * mean + sum(max(mean - one, 0) for one in elapsed)) / len(self.slots)

    def _conclude(self) -> int:
        """The table, its numbers and its picture."""
        results = [
            self._results[spec.name] for spec in self.comparison.runs if spec.name in self._results
        ]
        if not results:
            raise RunFailed(f"all {len(self._failed)} runs failed; see their logs.")
        self._report(self.comparison, results, self._failed, self._say)
        self._say(f"table, numbers and runs lie in {self.comparison.folder}")
        return 1 if self._failed else 0


def _count_mean(number: float, what: str) -> str:
    """`3 learning rates`; arms can have grids of different lengths."""
    return (
        _count(int(number), what) if number == int(number) else f"{number:.1f} {what}s on average"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def train_command(recipe: Path, port: int | None) -> list[str]:
    """`ds-train train` of one run."""
    command = [sys.executable, "-m", "ds_train", "train", str(recipe)]
    return command if port is None else [*command, f"cluster.master_port={port}"]


def measure_command(spec: RunSpec, compare: CompareConfig) -> list[str]:
    """`ds-train evaluate` of one run's checkpoint, or of all; on dev too where that is wanted."""
    command = [sys.executable, "-m", "ds_train.compare.measure", str(spec.paths.root)]
    command += ["--every-checkpoint"] if compare.every_checkpoint else []
    return [*command, "--dev"] if measures_dev(spec, compare) else command
