"""`ds-train evaluate`: how well a model predicts the supervised tokens of a recipe's data.

Every sample stands alone in its row, so nothing depends on packing or attention masks; the sums
are those of training: token losses over all samples, divided by the number of supervised tokens.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.data.batch import Batch, eval_batches
from ds_train.data.prepare import PreparedData, prepare_data
from ds_train.data.store import TokenStore
from ds_train.errors import ConfigError, DataError, quoted
from ds_train.evaluate.model import Target, find_target, load_for_inference
from ds_train.model.head import LanguageModel
from ds_train.model.tokenizer import pad_token_id

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Scores:
    """What a model did on each sample of a store [num_samples]."""

    loss_sum: NDArray[np.float64]
    """Sum of the losses of the supervised tokens, in nats."""
    num_correct: NDArray[np.int64]
    """Supervised tokens that were the most likely ones."""


def evaluate_command(
    target: str,
    *,
    checkpoint: str = "latest",
    base: bool = False,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    split: str = "validation",
    max_samples: int | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Evaluate a run, adapter, model folder or hub model; prints a table and returns the numbers.

    Args:
        base: the run's base model without what was trained.
        recipe: whose data to evaluate on; the run's own when left out.
        split: `validation`, `train`, or `dev` (of fewshot.subset).
        output: a JSON file for the numbers.

    Raises:
        ConfigError: no recipe; DataError: no such split; ModelError, CheckpointError: no model.
    """
    found = find_target(target, checkpoint, base)
    config = _config_of(found, recipe, overrides)
    data = prepare_data(config, say=say)
    store = _choose_split(data, split)
    if max_samples is not None:
        store = store.select(np.arange(min(max_samples, store.num_samples)))
    model, tokenizer = load_for_inference(found, dtype=dtype, device=device, say=say)
    train = config.train
    started = time.monotonic()
    scores = score_samples(
        LanguageModel(model, config.model.loss_implementation),
        store,
        batch_size=batch_size
        or train.per_device_eval_batch_size
        or max(train.per_device_train_batch_size, 8),
        max_length=config.data.max_length,
        pad_token_id=pad_token_id(tokenizer, say),
    )
    result: dict[str, Any] = {"target": found.title, "split": split, **summarise(store, scores)}
    result["seconds"] = round(time.monotonic() - started, 3)
    result["sources"] = _by_source(store, scores, data.source_names)
    say(format_table(result))
    if output is not None:
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _config_of(target: Target, recipe: str | Path | None, overrides: Sequence[str]) -> RunConfig:
    """The recipe whose data is used, with the model that is evaluated in it."""
    if recipe is not None:
        config = load_recipe(recipe, overrides)
    elif target.recipe is None:
        raise ConfigError(
            f"{target.title}: not a run, so it brings no data along. Give --recipe FILE.yaml, "
            "whose data section is evaluated on."
        )
    elif overrides:
        path = Path(target.recipe.output_dir)
        raise ConfigError(f"overrides belong to a --recipe; the run {quoted(path)} is as it is.")
    else:
        config = target.recipe
    return config.model_copy(update={"model": target.model})


def _choose_split(data: PreparedData, split: str) -> TokenStore:
    """A part of the data; of labelled examples the right answers only."""
    if split == "train":
        return data.train.gold()
    if split not in ("validation", "dev"):
        raise ConfigError(f"--split {split}: validation, dev or train")
    if split == "dev":
        if data.dev is None:
            raise DataError(
                "--split dev: the recipe has no dev examples; fewshot.subset: {k: 16, dev: true} "
                "takes some."
            )
        return data.dev.gold()
    if data.validation is None:
        raise DataError(
            "data.validation: the recipe holds nothing out. Evaluate with --split train, or give "
            "--recipe with data.validation."
        )
    return data.validation.gold()


def score_samples(
    model: LanguageModel,
    store: TokenStore,
    *,
    batch_size: int,
    max_length: int,
    pad_token_id: int,
) -> Scores:
    """Scores of every sample of the store, longest samples first, on the model's device."""
    device = next(model.parameters()).device
    loss_sum = np.zeros(store.num_samples)
    num_correct = np.zeros(store.num_samples, dtype=np.int64)
    batches = eval_batches(
        store,
        rank=0,
        dp_size=1,
        micro_batch_size=batch_size,
        max_length=max_length,
        packing=False,
        pad_token_id=pad_token_id,
        # Padding stands on the right and attention looks left: plain positions are the true ones.
        with_positions=False,
    )
    total = math.ceil(store.num_samples / batch_size)
    hidden = not sys.stderr.isatty()
    with torch.inference_mode():
        for batch in tqdm(batches, total=total, desc="evaluate", disable=hidden, leave=False):
            losses, correct = _score_batch(model, batch.to(device))
            ids = batch.sample_ids  # a row each; rows without a sample come last
            loss_sum[ids] = losses[: len(ids)]
            num_correct[ids] = correct[: len(ids)]
    return Scores(loss_sum, num_correct)


def _score_batch(
    model: LanguageModel, batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Loss sum and right argmaxes of each row [rows]."""
    losses, correct = model(
        batch.input_ids, batch.labels, num_supervised=batch.num_supervised, per_token=True
    )
    return losses.double().sum(dim=1).cpu().numpy(), correct.sum(dim=1).cpu().numpy()


def summarise(
    store: TokenStore, scores: Scores, members: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Loss, perplexity, accuracy and exact match over the samples (or some `members`).

    `exact_match` is the share of samples whose every supervised token is the most likely one:
    what greedy decoding, asked the same, would answer word for word.
    """
    chosen = np.ones(store.num_samples, bool) if members is None else members
    supervised = store.supervised[chosen].astype(np.int64)
    num_supervised = int(supervised.sum())
    loss = float(scores.loss_sum[chosen].sum() / num_supervised)
    correct = scores.num_correct[chosen]
    return {
        "num_samples": int(chosen.sum()),
        "num_tokens": int(store.lengths[chosen].sum(dtype=np.int64)),
        "supervised_tokens": num_supervised,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "token_accuracy": float(correct.sum() / num_supervised),
        "exact_match": float((correct == supervised).mean()),
    }


def _by_source(
    store: TokenStore, scores: Scores, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The numbers of each source that has samples in the store."""
    present = np.unique(store.sources).tolist()
    return {
        f"{names[index]}": summarise(store, scores, store.sources == index) for index in present
    }


def format_table(result: dict[str, Any]) -> str:
    """The numbers for people, one line per source and one for all of them."""
    head = ("", "samples", "supervised", "loss", "perplexity", "accuracy", "exact match")
    lines = [_cells(name, numbers) for name, numbers in result["sources"].items()]
    if len(lines) != 1:
        lines.append(_cells("all", result))
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = [f"{result['target']}, {result['split']}"]
    for line in [head, *lines]:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _cells(name: str, numbers: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{numbers['num_samples']:,}",
        f"{numbers['supervised_tokens']:,}",
        f"{numbers['loss']:.4f}",
        f"{numbers['perplexity']:,.2f}",
        f"{100 * numbers['token_accuracy']:.2f} %",
        f"{100 * numbers['exact_match']:.2f} %",
    )
