"""Combinations that can't work, each refused before the launch with the reason and the way out.

A rule stands here only when the run would fail late, train something else than the recipe says,
or ignore a setting in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from ds_train.config.run import RunConfig
from ds_train.plan.rules_adapter import adapter_rules
from ds_train.plan.rules_curriculum import curriculum_rules
from ds_train.plan.rules_data import data_rules
from ds_train.plan.rules_engine import offload_rules, precision_rules, zero_rules
from ds_train.plan.rules_episodes import episode_rules
from ds_train.plan.rules_evaluate import evaluate_rules
from ds_train.plan.rules_losses import losses_rules
from ds_train.plan.rules_model import model_rules
from ds_train.plan.rules_report import report_rules
from ds_train.plan.rules_seq_len import seq_len_rules
from ds_train.plan.rules_sharing import sharing_rules
from ds_train.plan.rules_train import train_rules
from ds_train.plan.rules_transfer import transfer_rules


def check_rules(config: RunConfig, world_size: int | None) -> list[str]:
    """Every fault of combinations. `world_size` is the number of ranks, None when unknown."""
    return [
        *adapter_rules(config),
        *model_rules(config),
        *train_rules(config),
        *data_rules(config),
        *curriculum_rules(config),
        *seq_len_rules(config),
        *transfer_rules(config),
        *episode_rules(config),
        *losses_rules(config),
        *evaluate_rules(config),
        *zero_rules(config, world_size),
        *offload_rules(config),
        *precision_rules(config),
        *sharing_rules(config),
        *report_rules(config),
        *_packages(config),
    ]


def _packages(config: RunConfig) -> Iterator[str]:
    if config.evaluate.tasks and not _is_installed("lm_eval"):
        yield (
            "evaluate.tasks: the package lm_eval is not installed; run pip install "
            "'ds-train[eval]', or remove it."
        )
    for tracker in config.report.trackers:
        if not _is_installed(tracker):
            yield (
                f"report.trackers: the package {tracker} is not installed; "
                f"run pip install 'ds-train[{tracker}]', or remove it."
            )
    if config.model.quantization != "none" and not _is_installed("bitsandbytes"):
        yield (
            f"model.quantization = {config.model.quantization}: the package bitsandbytes is not "
            f"installed; run pip install 'ds-train[qlora]', or set quantization: none."
        )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name (`wandb/` of runs) can't."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
