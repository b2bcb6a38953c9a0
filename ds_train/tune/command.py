"""`ds-train tune`: short real runs of a recipe under the settings that the plan names, the quickest
written back into the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.doctor.probe_gpus import gpus
from ds_train.errors import ConfigError, RunFailed
from ds_train.launch.world import World
from ds_train.paths import replace_text
from ds_train.plan.cluster import Cluster
from ds_train.plan.command import find_cluster, write_json
from ds_train.plan.model_files import describe_model
from ds_train.plan.table import format_seconds_short
from ds_train.plan.validate import Plan, validate
from ds_train.tune.choice import Choice, apply, changes, current
from ds_train.tune.search import Search, Trial, Verdict
from ds_train.tune.shortlist import Shortlist
from ds_train.tune.trial import Measured, run_trial, trial_recipe
from ds_train.tune.write import changed_recipe, write_recipe
from ds_train.units import format_bytes

Say = Callable[[str], object]


@dataclass(frozen=True)
class TuneOptions:
    """How much is tried, and where the result goes."""

    num_trials: int = 12
    """Different settings."""
    num_steps: int = 6
    """Steps of a trial that count."""
    num_rounds: int = 3
    """Times that the recipe and the best are measured again, in turns."""
    trial_seconds: float = 600.0
    """After which a trial ends, however many steps it has made."""
    output: str | None = None
    """File for the recipe; `NAME.tuned.yaml` beside it when None."""
    in_place: bool = False
    """Change the recipe itself."""
    json_path: str | None = None


def tune_command(
    recipe: str,
    overrides: Sequence[str],
    *,
    cluster: str | None,
    cluster_options: dict[str, Any],
    options: TuneOptions,
    say: Say = print,
) -> int:
    """Try, say, write; 0, or 1 where no setting ran.

    Raises ConfigError, ModelError or DataError before the first trial.
    """
    path = Path(recipe)
    plan = validate(path, overrides)
    where = _cluster(plan, cluster, cluster_options, say)
    output = path if options.in_place else Path(options.output or path.with_suffix(".tuned.yaml"))
    if not output.parent.is_dir():
        raise ConfigError(f'--output = "{output}": there is no folder {output.parent}.')
    shortlist = Shortlist(plan.config, describe_model(plan.config.model), where, plan.batch)
    prepare_data(plan.config, say)
    folder = _work_folder(plan.config)
    say(f"tune: trials in {folder}; the rows of a step stay {plan.batch.global_batch_size:,}")
    trials = _Trials(plan, shortlist, folder, options, say)
    search = Search(shortlist, trials.measure, num_trials=options.num_trials)
    now = current(plan.config)
    best = search.climb(now)
    if best is None:
        fault = search.trials[now].fault
        raise RunFailed(f"no setting ran; the recipe's own: {fault}. The logs are in {folder}.")
    verdict = search.compare(now, best, options.num_rounds)
    table = "\n".join(table_lines(now, search.trials.values()))
    say(table)
    replace_text(folder / "tune.md", table + "\n")
    found = changes(plan.config, best, plan.batch) if verdict.is_quicker else {}
    if options.json_path is not None:
        write_json(options.json_path, _as_dict(search, verdict, found))
    if not found:
        say(_nothing_quicker(best == now, verdict))
        return 0
    remark = f"tuned by ds-train on {_machine(plan.world, where)}: {_gain(verdict)}"
    write_recipe(output, changed_recipe(path.read_text(encoding="utf-8"), found, remark))
    say(f"best: {best}; {_gain(verdict)}")
    for key, value in found.items():
        say(f"  {key}: {json.dumps(value)}")
    say(f"written to {output}")
    return 0


class _Trials:
    """Makes the trials of one search, each in a folder of its own."""

    def __init__(
        self, plan: Plan, shortlist: Shortlist, folder: Path, options: TuneOptions, say: Say
    ) -> None:
        self._plan, self._shortlist, self._folder = plan, shortlist, folder
        self._options, self._say = options, say
        self._number = 0

    def measure(self, choice: Choice) -> Trial:
        """One real run."""
        self._number += 1
        folder = self._folder / f"trial-{self._number:02d}"
        config = trial_recipe(apply(self._plan.config, choice, self._plan.batch), folder)
        planned = self._shortlist.plan_of(choice)
        peak = None if planned is None else planned.memory.peak
        found = run_trial(
            config,
            folder,
            num_steps=self._options.num_steps,
            most_seconds=self._options.trial_seconds,
        )
        if isinstance(found, Measured):
            trial = Trial(choice, found.seconds, found.tokens_per_second, found.peak_bytes, peak)
            said = f"{format_seconds_short(found.seconds)} a step"
        else:
            said = found.fault
            trial = Trial(
                choice, None, planned_bytes=peak, fault=said, out_of_memory=found.out_of_memory
            )
        self._say(f"trial {self._number}: {choice}: {said}")
        return trial


def table_lines(now: Choice, trials: Iterable[Trial]) -> Iterator[str]:
    """All trials as Markdown, the quickest first, those that failed last."""
    every = sorted(trials, key=lambda one: one.seconds or float("inf"))
    own = next((one.seconds for one in every if one.choice == now), None)
    yield "| setting | a step | x the recipe | tokens/s | peak, planned | peak, measured |"
    yield "|---|---:|---:|---:|---:|---:|"
    for one in every:
        name = f"{one.choice} (the recipe)" if one.choice == now else str(one.choice)
        planned = "" if one.planned_bytes is None else format_bytes(one.planned_bytes)
        if one.seconds is None:
            yield f"| {name} | {one.fault} | | | {planned} | |"
            continue
        ratio = "" if own is None else f"{own / one.seconds:.2f}"
        yield (
            f"| {name} | {format_seconds_short(one.seconds)} | {ratio} | "
            f"{one.tokens_per_second:,.0f} | {planned} | {format_bytes(one.peak_bytes or 0)} |"
        )


def _cluster(plan: Plan, name: str | None, options: dict[str, Any], say: Say) -> Cluster:
    """The cluster that is named or described; else what nvidia-smi says of this machine's GPUs."""
    world = plan.world
    given = any(value is not None for value in options.values())
    if name is not None or given or (world.on_cpu and world.is_local):
        return find_cluster(plan.config, name, options)
    per_node = max(len(slots) for slots in world.slots.values())
    sizes = [device["total_mib"] << 20 for device in gpus()["devices"] if device["total_mib"]]
    if not sizes:
        say("tune: nvidia-smi names no memory; settings that do not fit are found by trying")
    memory = min(sizes) if sizes else None
    return Cluster("this machine", len(world.slots), per_node, gpu_memory=memory)


def _work_folder(config: RunConfig) -> Path:
    """A new folder beside the run's."""
    run = Path(config.output_dir)
    for number in range(1, 1000):
        folder = run.with_name(f"{run.name}.tune-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f'output_dir = "{config.output_dir}": can\'t make {folder} for the trials: '
                f"{error.strerror}."
            ) from None
        return folder
    raise ConfigError(f"{run}.tune-1 to -999 exist; remove those that are no longer needed.")


def _machine(world: World, cluster: Cluster) -> str:
    processes = f"{world.world_size} process{'' if world.world_size == 1 else 'es'}"
    return f"{processes} of {cluster.name}"


def _gain(verdict: Verdict) -> str:
    if verdict.speedup is None:
        return "the recipe itself did not run"
    low, high = min(verdict.ratios), max(verdict.ratios)
    return (
        f"{verdict.speedup:.2f} times as quick as before ({low:.2f} to {high:.2f}, in turns: "
        f"{len(verdict.ratios)})"
    )


def _nothing_quicker(is_own: bool, verdict: Verdict) -> str:
    if is_own:
        return "nothing tried was quicker than the recipe; it stays as it is"
    return (
        f"{verdict.best} was quicker once, but not in every round against the recipe (x "
        f"{', '.join(f'{one:.2f}' for one in verdict.ratios)}); the recipe stays as it is"
    )


def _as_dict(search: Search, verdict: Verdict, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "trials": [asdict(one) for one in search.trials.values()],
        "best": asdict(verdict.best),
        "ratios": list(verdict.ratios),
        "changes": found,
    }
