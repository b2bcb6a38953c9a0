"""`ds-train data`: the audit, then rows as they are trained on, with what is learned marked.

    Question: 2 + 3?
    Answer:« 5</s>»          without colour; in a terminal the learned part is green

`--step N` shows every row of step N: which rank and micro-batch takes it, and its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.curriculum.describe import format_report
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.curriculum.refresh import add_known_refreshes
from ds_train.curriculum.report import Reporting, has_report
from ds_train.data.audit import format_audit
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import PreparedData, prepare_data
from ds_train.data.show_examples import (
    describe_rendering,
    list_wrong_answers,
    samples_to_show,
    wrong_answers,
)
from ds_train.data.show_step import describe_sample, describe_step
from ds_train.fewshot.build import build_episode_plan, episodes_section, epoch_facts
from ds_train.launch.world import find_world
from ds_train.plan.batch import batch_arithmetic

_GREEN, _DIM, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"
Say = Callable[[str], object]


def show_data(
    config: RunConfig,
    step: int | None = None,
    rows: int = 3,
    color: bool = False,
    *,
    as_json: bool = False,
    say: Say = print,
) -> None:
    """Says the audit and the first `rows` samples, or exactly what `step` trains on.

    `as_json` says one JSON object instead, with ids and masks, and nothing else.
    """
    prepared = prepare_data(config, say=_silent if as_json else say)
    tokenizer = open_tokenizer(config.model)
    facts: dict[str, Any] = {}
    if step is not None:
        facts["step"] = describe_step(config, prepared, tokenizer, step)
    else:
        facts["samples"] = list(_first_samples(prepared, tokenizer, rows))
        if episodes_section(config) is not None:
            facts["episodes"] = _episodes(config, prepared, _silent if as_json else say)
        if has_report(config):
            facts["curriculum"] = _report(config, prepared, _silent if as_json else say)
    if as_json:
        say(json.dumps({"audit": prepared.audit} | facts, ensure_ascii=False))
        return
    say(format_audit(prepared.audit))
    for line in format_report(facts["curriculum"]) if "curriculum" in facts else []:
        say(line)
    for sample in facts.get("samples", []):
        _say_sample(sample, color, say, indent="")
    if step is not None:
        _say_step(facts["step"], color, say)


def _report(config: RunConfig, prepared: PreparedData, say: Say) -> dict[str, Any]:
    """What a curriculum or a mixture will show the model."""
    batch = batch_arithmetic(config, find_world(config.cluster).world_size)
    scores = find_scores(config, prepared, say)
    plan = build_step_plan(config, prepared, scores, batch.global_batch_size, say)
    add_known_refreshes(config, plan, prepared.of_examples.train.num_samples)
    return Reporting(config, prepared, plan, scores).predicted()


def _episodes(config: RunConfig, prepared: PreparedData, say: Say) -> dict[str, Any]:
    """What the first epoch of episodes holds; says it."""
    return epoch_facts(build_episode_plan(config, prepared, say))


def _silent(text: str) -> None:
    """Says nothing: the JSON stands alone."""


def _first_samples(
    prepared: PreparedData, tokenizer: Any, num_samples: int
) -> Iterable[dict[str, Any]]:
    """The first samples, or examples in each of their templates."""
    store = prepared.train
    for index in samples_to_show(store, num_samples):
        facts = describe_sample(prepared, tokenizer, index)
        yield facts | wrong_answers(store, tokenizer, index) if "right" in facts else facts


def _say_step(facts: dict[str, Any], color: bool, say: Say) -> None:
    say(
        f"\nstep {facts['step']:,} of {facts['total_steps']:,}, epoch {facts['epoch']:.3f}: "
        f"{facts['batch']}; {facts['tokens']:,} tokens, "
        f"{facts['supervised_tokens']:,} learned from"
    )
    for rank, micro_batches in enumerate(facts["ranks"]):
        for number, rows in enumerate(micro_batches):
            for position, row in enumerate(rows):
                what = f"{sum(one['tokens'] for one in row):,} tokens" if row else "empty"
                say(f"\nrank {rank}, micro-batch {number}, row {position}: {what}")
                for sample in row:
                    _say_sample(sample, color, say, indent="  ")


def _say_sample(sample: dict[str, Any], color: bool, say: Say, indent: str) -> None:
    head = (
        f"sample {sample['sample']:,} ({sample['source']}, row {sample['source_row'] + 1:,}): "
        f"{sample['tokens']:,} tokens, {sample['supervised_tokens']:,} learned from"
    )
    head += _origin(sample)
    text = "".join(_mark(one["text"], one["learned"], color) for one in sample["segments"])
    say(f"{indent}{_DIM}{head}{_RESET}" if color else f"{indent}{head}")
    say("\n".join(f"{indent}  {line}" for line in text.split("\n")))
    if (wrong := list_wrong_answers(sample)) is not None:
        say(f"{indent}  {_DIM}{wrong}{_RESET}" if color else f"{indent}  {wrong}")


def _origin(sample: dict[str, Any]) -> str:
    """Which rendering a sample is, and where in a curriculum, mixture or episode it comes from."""
    parts = list(describe_rendering(sample))
    if "demonstrations" in sample:
        rows = [f"{one['source_row'] + 1:,}" for one in sample["demonstrations"]]
        parts.append(f"after rows {', '.join(rows)}" if rows else "no demonstrations")
    if "piece" in sample:
        start, stop = sample["piece"]
        parts.append(f"tokens {start:,} to {stop:,} of {sample['of_tokens']:,}")
    if "difficulty" in sample:
        parts.append(f"difficulty {sample['difficulty']:.6g}")
    if "pool" in sample:
        parts.append(f"pool of {sample['pool']:,} ({sample['competence']:.3f})")
    if "stage" in sample:
        parts.append(f"stage {sample['stage']}")
    return "".join(f"; {part}" for part in parts)


def _mark(text: str, learned: bool, color: bool) -> str:
    if not learned:
        return text
    if not color:
        return f"«{text}»"
    # Each line anew, so that the colour survives a pager and the indentation.
    return "\n".join(f"{_GREEN}{line}{_RESET}" for line in text.split("\n"))
