"""The model that difficulties are measured with: found, checked against the data, run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.curriculum.metrics.spec import MetricSpec
from ds_train.curriculum.scores import ScoreBook
from ds_train.data.encode import open_tokenizer
from ds_train.data.store import TokenStore
from ds_train.engine.ranks import Ranks
from ds_train.errors import DataError, ModelError, quoted
from ds_train.evaluate.model import Target, find_target, load_for_inference
from ds_train.model.check import load_architecture
from ds_train.model.head import LanguageModel
from ds_train.model.tokenizer import pad_token_id
from ds_train.score.losses import Floats, ifd_of, perplexity_of, score_store

Say = Callable[[str], Any]


def score_with_model(book: ScoreBook, spec: MetricSpec, ranks: Ranks, say: Say) -> None:
    """Compute a metric with its model and store it; a collective call when there are several ranks.

    Raises:
        ModelError: the model is not there, or reads other tokens; DataError: it can't be measured
        on this data, or a difficulty is not a number.
    """
    began = time.monotonic()
    config, train = book.config, book.prepared.train
    if spec.kind == "ifd":
        _check_prompts(train)
    target = _target(config, spec)
    _check_same_tokens(config, target)
    _check_positions(train, target)
    model, tokenizer = load_for_inference(target, device=str(ranks.device), say=say)
    language_model = LanguageModel(model, config.model.loss_implementation)
    values = _values(config, spec, language_model, tokenizer, train, ranks)
    if ranks.is_main:
        facts = {"model": target.title, "dtype": target.model.dtype, "ranks": ranks.world_size}
        book.keep(spec, values, time.monotonic() - began, say, **facts)
    ranks.barrier()


def _values(
    config: RunConfig,
    spec: MetricSpec,
    model: LanguageModel,
    tokenizer: Any,
    train: TokenStore,
    ranks: Ranks,
) -> Floats:
    section = config.train
    rows = section.per_device_eval_batch_size or max(section.per_device_train_batch_size, 8)
    pad = pad_token_id(tokenizer, lambda text: None)
    measure = perplexity_of(model, train, pad)
    if spec.kind == "ifd":
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        measure = ifd_of(model, train, pad, eos if bos is None else bos)
    return score_store(measure, train, rows * config.data.max_length, ranks, spec.kind)


def _target(config: RunConfig, spec: MetricSpec) -> Target:
    """`metric_model`, or what the run starts from."""
    if spec.kind == "loss":
        adapter = config.adapter.path
        title = f"{config.model.name_or_path}, where the run starts"
        return Target(config.model, title, Path(adapter) if adapter else None, recipe=config)
    curriculum = config.curriculum
    assert curriculum is not None and curriculum.metric_model is not None
    try:
        return find_target(curriculum.metric_model)
    except ModelError as error:
        faults = [fault.removeprefix("model.name_or_path = ") for fault in error.faults]
        raise ModelError([f"curriculum.metric_model = {fault}" for fault in faults]) from None


def _check_same_tokens(config: RunConfig, target: Target) -> None:
    """The ids in the store mean the same to the model as to the recipe's tokenizer."""
    if target.recipe is config:
        return
    theirs, ours = open_tokenizer(target.model), open_tokenizer(config.model)
    if theirs.get_vocab() != ours.get_vocab():
        name = config.model.tokenizer_name_or_path or config.model.name_or_path
        raise ModelError(
            f"curriculum.metric_model: {target.title} has another tokenizer than {quoted(name)}, "
            "whose tokens the data is stored in; name a model with the same one, for example a "
            "smaller model of the same family."
        )


def _check_positions(train: TokenStore, target: Target) -> None:
    text = load_architecture(target.model).get_text_config()
    positions, longest = getattr(text, "max_position_embeddings", None), int(train.lengths.max())
    if positions is not None and longest > positions:
        raise ModelError(
            f"curriculum.metric_model: {target.title} reads at most {positions:,} positions, and "
            f"the longest sample has {longest:,} tokens; set data.max_length to {positions:,} or "
            "less, or name another model."
        )


def _check_prompts(train: TokenStore) -> None:
    """IFD compares an answer with and without what stands before it."""
    if np.all(train.supervised == train.lengths - 1):
        raise DataError(
            "curriculum.metric = ifd: compares an answer with and without its instruction, and "
            "here every token is learned from (format text, or loss_on: all); choose perplexity."
        )
