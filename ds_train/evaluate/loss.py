"""`ds-train evaluate`: how well a model predicts the supervised tokens of a recipe's data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.data.prepare import PreparedData, prepare_data
from ds_train.data.store import TokenStore
from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, DataError, quoted
from ds_train.evaluate.episodes import score_shots, tables
from ds_train.evaluate.model import Target, find_target, load_for_inference
from ds_train.evaluate.ranking import add_ranks, rank_examples, rank_table
from ds_train.evaluate.samples import by_source, score_samples, summarise
from ds_train.evaluate.scorer import RequestScorer
from ds_train.fewshot.build import episodes_section
from ds_train.model.head import LanguageModel
from ds_train.model.tokenizer import pad_token_id

Say = Callable[[str], Any]


def evaluate_command(
    target: str,
    *,
    checkpoint: str = "chosen",
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
        split: `validation`, `train`, or `dev` (of data.dev or fewshot.subset).
        output: a JSON file for the numbers.

    Raises:
        ConfigError: no recipe; DataError: no such split; ModelError, CheckpointError: no model.
    """
    found = find_target(target, checkpoint, base)
    config = _config_of(found, recipe, overrides)
    data = prepare_data(config, say=say)
    part = _choose_split(data, split)
    store = part.gold()
    model, tokenizer = load_for_inference(found, dtype=dtype, device=device, say=say)
    started = time.monotonic()
    language_model = LanguageModel(model, config.model.loss_implementation)
    result: dict[str, Any] = {"target": found.title, "split": split}
    result |= _measure(
        language_model,
        config,
        data,
        store,
        max_samples=max_samples,
        batch_size=batch_size,
        pad_token_id=pad_token_id(tokenizer, say),
    )
    ranked = None
    if config.evaluate.rank_classification:
        ranked = rank_examples(
            RequestScorer(language_model, Ranks(0, 0, 1), max_length=config.data.max_length),
            part,
            data.source_names,
            part=f"the {split} data",
            max_examples=max_samples,
            progress="rank",
        )
        add_ranks(result, ranked)
    result["seconds"] = round(time.monotonic() - started, 3)
    for text in tables(result, format_table) if "shots" in result else [format_table(result)]:
        say(text)
    if ranked is not None:
        say(rank_table(ranked))
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


def _measure(
    model: LanguageModel,
    config: RunConfig,
    data: PreparedData,
    store: TokenStore,
    *,
    max_samples: int | None,
    batch_size: int | None,
    pad_token_id: int,
) -> dict[str, Any]:
    """Losses of the samples, of all and by source; of episodes for each number of shots."""
    train = config.train
    how: dict[str, Any] = {
        "batch_size": batch_size
        or train.per_device_eval_batch_size
        or max(train.per_device_train_batch_size, 8),
        "pad_token_id": pad_token_id,
    }
    if episodes_section(config) is not None:
        shots = score_shots(model, config, data, store, max_samples=max_samples, **how)
        return {**list(shots.values())[-1], "shots": shots}
    if max_samples is not None:
        store = store.select(np.arange(min(max_samples, store.num_samples)))
    scores = score_samples(model, store, max_length=config.data.max_length, **how)
    return {**summarise(store, scores), "sources": by_source(store, scores, data.source_names)}


def _choose_split(data: PreparedData, split: str) -> TokenStore:
    """A part of the data; of labelled examples with the wrong answers, where they are rendered."""
    if split == "train":
        return data.train
    if split not in ("validation", "dev"):
        raise ConfigError(f"--split {split}: validation, dev or train")
    if split == "dev":
        if data.dev is None:
            raise DataError(
                "--split dev: the recipe has no dev examples; data.dev: {fraction: 0.05} or "
                "fewshot.subset: {k: 16, dev: true} takes some."
            )
        return data.dev
    if data.validation is None:
        raise DataError(
            "data.validation: the recipe holds nothing out. Evaluate with --split train, or give "
            "--recipe with data.validation."
        )
    return data.validation


def format_table(result: dict[str, Any]) -> str:
    """The numbers for people, one line per source and one for all of them."""
    head = ["", "samples", "supervised", "loss", "perplexity", "bits/byte", "accuracy"]
    head += ["exact match"]
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
        f"{numbers['bits_per_byte']:.4f}",
        f"{100 * numbers['token_accuracy']:.2f} %",
        f"{100 * numbers['exact_match']:.2f} %",
    )
