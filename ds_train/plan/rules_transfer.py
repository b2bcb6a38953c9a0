"""Combinations of the options for transfer that can't work: early stopping, unfreezing, L2-SP,
layer-wise rates, and held-out data for choices."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig
from ds_train.plan.ds_config import zero_settings

_WEIGHTS = ("full", "partial")


def transfer_rules(config: RunConfig) -> Iterator[str]:
    """Every fault of them."""
    yield from _held_out(config)
    yield from _early_stopping(config)
    yield from _unfreeze(config)
    yield from _l2_sp(config)
    method = config.adapter.method
    if config.train.layer_lr_decay is not None and method in VIRTUAL_TOKEN_METHODS:
        yield (
            f"train.layer_lr_decay with adapter.method = {method}: virtual tokens belong to no "
            "layer; remove it."
        )


def _held_out(config: RunConfig) -> Iterator[str]:
    data, fewshot = config.data, config.fewshot
    subset = None if fewshot is None else fewshot.subset
    if data.dev is not None:
        if not (data.dev.fraction or data.dev.sources):
            yield "data.dev is empty; give fraction or sources, or remove it."
        if not (data.validation.fraction or data.validation.sources):
            yield (
                "data.dev without data.validation: dev is what choices are made on, and nothing is "
                "left to report; give data.validation too, or rename dev to validation."
            )
        if subset is not None and subset.dev:
            yield (
                "data.dev with fewshot.subset.dev = true: two sets would be held out for the same "
                "choices; set fewshot.subset.dev: false, or remove data.dev."
            )
    if data.limit is not None and subset is not None:
        yield (
            "data.limit with fewshot.subset: both say how much is trained on; remove one of them."
        )


def _early_stopping(config: RunConfig) -> Iterator[str]:
    early, data = config.train.early_stopping, config.data
    if early is None:
        return
    subset = None if config.fewshot is None else config.fewshot.subset
    has_data = data.validation.fraction or data.validation.sources or data.dev is not None
    if not has_data and not (subset is not None and subset.dev):
        yield (
            "train.early_stopping: nothing is held out to tell when to stop; set data.dev or "
            "data.validation."
        )
    elif config.evaluate.every is None:
        yield (
            "train.early_stopping without evaluate.every: the run would be evaluated at its end "
            "only; set evaluate.every, e.g. 20 steps."
        )
    if not config.checkpoint.best:
        yield (
            "train.early_stopping with checkpoint.best = false: the model is worse at the end than "
            "at its best, which would be lost; set checkpoint.best: true."
        )
    if early.metric == "rank_accuracy" and not config.evaluate.rank_classification:
        yield (
            "train.early_stopping.metric = rank_accuracy: is measured with "
            "evaluate.rank_classification: true only; set it, or choose loss."
        )


def _unfreeze(config: RunConfig) -> Iterator[str]:
    unfreeze, method, train = config.train.unfreeze, config.adapter.method, config.train
    if unfreeze is None:
        return
    if method not in _WEIGHTS:
        yield (
            f"train.unfreeze with adapter.method = {method}: the model's own weights stay frozen, "
            "so that there is nothing to unfreeze; set adapter.method: full, or remove it."
        )
    if config.model.init == "random":
        yield (
            "train.unfreeze with model.init = random: the layers below would pass on noise until "
            "they join; set model.init: pretrained, or remove train.unfreeze."
        )
    limits = {"steps": train.max_steps, "tokens": train.max_tokens}
    limit = limits.get(unfreeze.every.unit, train.num_train_epochs)
    if limit is not None and unfreeze.every.amount >= limit:
        yield (
            f"train.unfreeze.every = {unfreeze.every}: the run ends before more layers join; make "
            "it shorter, or the run longer."
        )


def _l2_sp(config: RunConfig) -> Iterator[str]:
    if config.train.l2_sp is None:
        return
    method = config.adapter.method
    if method not in _WEIGHTS:
        yield (
            f"train.l2_sp with adapter.method = {method}: the pretrained weights do not move, and "
            "an adapter starts from none; set train.weight_decay, or adapter.method: full."
        )
    if config.model.init == "random":
        yield (
            "train.l2_sp with model.init = random: there are no pretrained weights to stay close "
            "to; remove it, or set model.init: pretrained."
        )
    offload = zero_settings(config).get("offload_optimizer") or {}
    if offload.get("device") == "nvme":
        yield (
            "train.l2_sp with the optimizer on NVMe: its weights are in memory one part at a time, "
            "and those at the start are compared with them; offload to the CPU instead."
        )
