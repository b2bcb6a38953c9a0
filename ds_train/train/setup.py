"""Everything between the recipe and the first step: plans made, model built, engine running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_train.checkpoint.state import load_checkpoint
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.refresh import resume_refreshes, segments_of
from ds_train.curriculum.report import Reporting, has_report
from ds_train.curriculum.scores import DifficultyScores
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import PreparedData
from ds_train.engine.build import build_engine, offloads_optimizer
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, quoted
from ds_train.model.head import LanguageModel
from ds_train.model.load import count_parameters
from ds_train.model.tokenizer import pad_token_id
from ds_train.paths import RunPaths
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config, use_coalesced_reduction
from ds_train.train.build import build_model
from ds_train.train.folder import INITIAL_LORA, agreed_start, write_run_folder
from ds_train.train.guard import check_packing_isolation
from ds_train.train.run import Run
from ds_train.train.sharing import check_shared_rows
from ds_train.train.unfreeze import optimizer_groups

Say = Callable[[str], Any]


def _describe_loss(model: LanguageModel) -> str:
    """How the loss is computed; compiles its kernels, on their first use on this machine."""
    try:
        return model.head.describe()
    except ValueError as error:
        said = str(error).removeprefix("linear_cross_entropy: ")
        raise ConfigError(f"model.loss_implementation: {said}") from None


def _isolating(config: RunConfig) -> str | None:
    """The setting by which rows hold what must not see each other; None where none does."""
    if config.data.packing:
        return "data.packing = true"
    seq_len = None if config.curriculum is None else config.curriculum.seq_len
    is_window = seq_len is not None and seq_len.mode == "window"
    return "curriculum.seq_len.mode = window" if is_window else None


def set_up(
    config: RunConfig,
    ranks: Ranks,
    data: PreparedData,
    say: Say,
    scores: DifficultyScores | None = None,
) -> Run:
    """Build the run; a collective call, after the process group has been started.

    `scores`: the samples' difficulty, where the recipe has a curriculum.
    """
    paths = RunPaths(Path(config.output_dir))
    ranks = replace(ranks, sequence_parallel_size=config.engine.sequence_parallel_size)
    batch = batch_arithmetic(config, ranks.world_size)
    ds_config = resolve_ds_config(config, batch)
    difficulty = scores.fingerprint if scores is not None else ""
    start = agreed_start(config, batch, data.fingerprint, difficulty, ranks)
    plan = build_step_plan(config, data, scores, batch.global_batch_size, say)
    if (segments := segments_of(plan)) is not None:
        resume_refreshes(paths, segments, start.refreshed, data.of_examples.train.num_samples)
    tokenizer = open_tokenizer(config.model)
    saved_lora = paths.root / INITIAL_LORA if start.step else None
    model, initial, flatten = build_model(config, ds_config, ranks, saved_lora, say)
    engine = _start_engine(config, ds_config, model, ranks, say)
    say(f"loss: {_describe_loss(model)}")
    _try_rows(config, model, engine, flatten, say)
    if start.step:
        load_checkpoint(paths.checkpoint(start.step), engine, start)
        engine.resume_thaw(start.joined_at)
        say(f"resume: goes on after step {start.step:,} of {quoted(paths.root)}")
    run = Run(
        config=config,
        paths=paths,
        ranks=ranks,
        data=data,
        plan=plan,
        batch=batch,
        engine=engine,
        reporting=Reporting(config, data, plan, scores) if has_report(config) else None,
        start=start,
        total_steps=plan.total_steps(config.train),
        pad_token_id=pad_token_id(tokenizer, say),
        flatten=flatten,
        initial=initial,
    )
    if ranks.is_main:
        write_run_folder(run, ds_config)
    return run


def _start_engine(
    config: RunConfig, ds_config: dict[str, Any], model: LanguageModel, ranks: Ranks, say: Say
) -> Engine:
    """DeepSpeed around the model, with what trains in its optimizer."""
    groups = optimizer_groups(model, config, say)
    num_all, num_trainable = count_parameters(model)
    say(
        f"parameters: {num_trainable:,} of {num_all:,} train "
        f"({100 * num_trainable / num_all:.2f} %), method {config.adapter.method}"
    )
    coalesce = use_coalesced_reduction(config, ds_config)
    if offloads_optimizer(ds_config):
        say("engine: DeepSpeedCPUAdam is compiled at its first use, which takes minutes")
    engine = build_engine(
        model, groups, train=config.train, ds_config=ds_config, coalesce=coalesce, ranks=ranks
    )
    often = "every micro-batch" if engine.stage >= 2 and not coalesce else "once a step"
    say(f"engine: ZeRO-{engine.stage}, {engine.optimizer_name}, gradients reduced {often}")
    return engine


def _try_rows(
    config: RunConfig, model: LanguageModel, engine: Engine, flatten: bool, say: Say
) -> None:
    """Try on the model itself that shared rows are computed as whole ones, and packed documents
    each as if it were alone."""
    if engine.shared is not None:
        say(check_shared_rows(engine))
    if (setting := _isolating(config)) is not None:
        text = model.model.config.get_text_config()
        check_packing_isolation(
            engine,
            attention=text._attn_implementation,
            vocab_size=text.vocab_size,
            flatten=flatten,
            setting=setting,
        )
        say(f"packing: documents do not see each other ({text._attn_implementation}; tried)")
