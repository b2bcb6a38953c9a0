"""What a comparison checks before its first run: models, data, metrics, and runs already there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ds_train.compare.arms import Comparison, RunSpec, tell_faults
from ds_train.config.compare import split_metric
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.data.divide import PreparedData
from ds_train.data.prepare import prepare_data
from ds_train.errors import CheckpointError, InputError, quoted
from ds_train.model.check import check_model
from ds_train.model.files import base_fingerprint
from ds_train.plan.resume import check_same_inputs, check_same_run

Say = Callable[[str], object]
_DATA_SECTIONS = ("data", "model", "fewshot", "evaluate")
"""What tokenised data and its division can depend on."""


@dataclass(frozen=True)
class _Inputs:
    """What an arm is trained on."""

    data: PreparedData
    difficulty_fingerprint: str
    """Empty where nothing is ordered by difficulty."""


def check_inputs(comparison: Comparison, say: Say = print) -> None:
    """Read every arm's model and data, and the recipes of runs that are there already.

    Data is tokenised here, once, so that runs side by side need not wait for each other.

    Raises:
        InputError: with every fault of every arm; CheckpointError: a run of another recipe.
    """
    inputs: dict[str, _Inputs] = {}
    faults: dict[str, list[str]] = {}
    for arm, plan in comparison.plans.items():
        try:
            check_model(plan.config, say=_silent)
            data = _prepare(plan.config, comparison, inputs, say)
            _check_metrics(comparison.compare.metrics, data)
            scores = find_scores(plan.config, data, say)
            build_step_plan(plan.config, data, scores, plan.batch.global_batch_size)
            inputs[arm] = _Inputs(data, scores.fingerprint if scores is not None else "")
        except InputError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(arm)
    if faults:
        raise InputError(tell_faults(faults, comparison.compare))
    for spec in comparison.runs:
        _check_existing(spec, comparison, inputs[spec.arm])


def _silent(text: str) -> None:
    pass


def _prepare(
    config: RunConfig, comparison: Comparison, inputs: dict[str, _Inputs], say: Say
) -> PreparedData:
    """Tokenised data of an arm; arms that share model and data share it."""
    for arm, known in inputs.items():
        other = comparison.plans[arm].config
        if all(getattr(other, name) == getattr(config, name) for name in _DATA_SECTIONS):
            return known.data
    return prepare_data(config, say=say)


def _check_metrics(metrics: list[str], data: PreparedData) -> None:
    """The validation data must have what is to be measured."""
    if data.validation is None:
        raise InputError(
            f"compare.metrics = {metrics}: is measured on held-out data, and the recipe holds "
            "nothing out; set data.validation.fraction or data.validation.sources."
        )
    names = [data.source_names[index] for index in np.unique(data.validation.sources).tolist()]
    faults = []
    for place, metric in enumerate(metrics):
        source, _ = split_metric(metric)
        if source is not None and source not in (*names, "mean"):
            faults.append(
                f"compare.metrics[{place}] = {quoted(metric)}: the validation data has no source "
                f"{quoted(source)}; it has {', '.join(names)}."
            )
    if faults:
        raise InputError(faults)


def _inputs_of_seed(config: RunConfig, inputs: _Inputs) -> _Inputs:
    """What one run of an arm is trained on: with fewshot.subset each seed draws its own."""
    if config.fewshot is None or config.fewshot.subset is None:
        return inputs
    data = prepare_data(config, say=_silent)
    scores = find_scores(config, data, _silent)
    return _Inputs(data, scores.fingerprint if scores is not None else "")


def _check_existing(spec: RunSpec, comparison: Comparison, inputs: _Inputs) -> None:
    """A run that is there must come from the same recipe, model and data, measured alike."""
    config = spec.resolved()
    if config is None or not any(spec.paths.checkpoints.glob("step-*")):
        return
    check_same_run(config, comparison.plans[spec.arm].batch.global_batch_size)
    inputs = _inputs_of_seed(config, inputs)
    check_same_inputs(
        config,
        base_fingerprint(config.model),
        inputs.data.fingerprint,
        inputs.difficulty_fingerprint,
    )
    was, now = load_recipe(spec.paths.recipe).evaluate.max_rows, config.evaluate.max_rows
    if was != now:
        raise CheckpointError(
            f"output_dir = {quoted(config.output_dir)} was evaluated with evaluate.max_rows = "
            f"{was}, not {now}; go on with that, or choose another output_dir."
        )
