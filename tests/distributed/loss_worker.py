"""Runs inside the deepspeed launcher: one step each of many engines, compared with the truth.

usage: deepspeed ... loss_worker.py PLAN.json
Beside the plan lie truth-KIND-MASKED.pt, gradients of the mean loss by parameter name in float64.
NAME.json gets the loss, and the gradients' ratio to the truth and error, of the head and the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds_train.config.run import RunConfig
from ds_train.data.batch import Batch
from ds_train.engine.build import build_engine
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.model.adapter import choose_trainable
from ds_train.model.head import LanguageModel
from ds_train.model.parameter_groups import parameter_groups
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config, use_coalesced_reduction
from ds_train.train.objective import TokenObjective
from ds_train.train.step import evaluate_batches, train_step

# the package of this folder, which the launcher's child does not know
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from distributed import fused_loss_cases as cases
from distributed.run_plan import run_plan


def engine_of(config: RunConfig, kind: str, ranks: Ranks) -> Engine:
    inner = choose_trainable(cases.model_of(kind), config.adapter, base="x", seed=0)
    model = LanguageModel(inner, config.model.loss_implementation)
    groups = parameter_groups(model, weight_decay=0.0, lora_plus_lr_ratio=None)
    ds_config = resolve_ds_config(config, batch_arithmetic(config, ranks.world_size))
    coalesce = use_coalesced_reduction(config, ds_config)
    return build_engine(
        model, groups, train=config.train, ds_config=ds_config, coalesce=coalesce, ranks=ranks
    )


def batches_of(masked: str, micro: int, ranks: Ranks) -> list[Batch]:
    """This rank's share of the step, in micro-batches."""
    ids, labels = (part.chunk(ranks.world_size)[ranks.rank] for part in cases.rows(masked))
    positions = torch.arange(cases.LENGTH).expand(micro, -1)
    nothing = np.zeros(0, dtype=np.int64)
    return [
        Batch(
            input_ids=one, labels=label, position_ids=positions, sample_ids=nothing,
            sample_tokens=nothing, num_rows=micro,
            num_supervised=int((label != cases.IGNORE).sum()),
        )
        for one, label in zip(ids.split(micro), labels.split(micro), strict=True)
    ]  # fmt: skip


def compared(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Projection on the truth, and distance from it, both relative to its norm."""
    one, other = (
        torch.cat([tensors[name].double().flatten() for name in sorted(exact)])
        for tensors in (got, exact)
    )
    ratio = (one @ other) / (other @ other)
    return {"ratio": ratio.item(), "error": ((one - other).norm() / other.norm()).item()}


def whole_moments(engine: Engine) -> dict[str, Tensor]:
    """Adam's first moments, whole on every rank."""
    states = engine.states
    whole = {name: torch.zeros(states.shape(parameter)) for name, parameter in states.trainable()}
    for piece in states.pieces():
        part = piece.tensors["exp_avg"].view(-1)
        whole[piece.name].view(-1)[piece.start : piece.start + len(part)] = part
    if not states.are_shared_out:
        return whole
    return {name: engine.ranks.sum(moment) for name, moment in whole.items()}


def one_step(item: dict[str, Any], plan_file: Path, ranks: Ranks) -> dict[str, Any]:
    config = RunConfig.model_validate(item["recipe"])
    engine = engine_of(config, item["kind"], ranks)
    batches = batches_of(item["masked"], item["micro"], ranks)
    _, labels = cases.rows(item["masked"])
    evaluation = evaluate_batches(engine, batches)
    step = train_step(
        engine,
        batches,
        objective=TokenObjective(int((labels != cases.IGNORE).sum())),
        learning_rate=0.01,
        stop=False,
    )
    keep = 1 - config.train.adam_beta1
    got = {name: moment / keep for name, moment in whole_moments(engine).items()}
    exact = torch.load(plan_file.parent.parent / f"truth-{item['kind']}-{item['masked']}.pt")
    head = cases.head_of(item["kind"])
    result = {"loss": step.loss, "evaluation": evaluation.loss}
    for part, names in {"head": {head}, "body": set(exact) - {head}}.items():
        if chosen := names & set(exact):
            result[part] = compared(got, {name: exact[name] for name in chosen})
    return result


if __name__ == "__main__":
    run_plan(one_step)
