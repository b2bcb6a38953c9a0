"""Everything between the recipe and the first step: data opened, model built, engine running."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from ds_train.checkpoint.folder import CheckpointFacts, latest_checkpoint, read_facts
from ds_train.checkpoint.state import load_checkpoint, remove_partial
from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.data.batch import Batch, eval_batches, step_batches
from ds_train.data.encode import open_tokenizer
from ds_train.data.order import RowPlan, StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.engine.engine import (
    Engine,
    build_engine,
    offloads_optimizer,
    sharded_loading,
)
from ds_train.engine.ranks import Ranks
from ds_train.errors import CheckpointError, ModelError, quoted
from ds_train.model.adapter import (
    VIRTUAL_TOKEN_METHODS,
    choose_trainable,
    initial_lora,
    parameter_groups,
    restore_residual,
    untied_modules,
    write_adapter,
)
from ds_train.model.check import load_architecture
from ds_train.model.files import base_fingerprint, weight_files
from ds_train.model.head import LanguageModel
from ds_train.model.integrity import check_integrity
from ds_train.model.load import count_parameters, load_model
from ds_train.model.tokenizer import pad_token_id
from ds_train.model.write import save_tensors
from ds_train.paths import RunPaths, replace_text
from ds_train.plan.batch import BatchPlan, batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config, use_coalesced_reduction
from ds_train.plan.resume import check_same_inputs, check_same_run
from ds_train.train.guard import check_packing_isolation

Say = Callable[[str], Any]
INITIAL_LORA = "initial_lora.safetensors"


@dataclass(frozen=True)
class Run:
    """A run that is ready to make its next step."""

    config: RunConfig
    paths: RunPaths
    ranks: Ranks
    data: PreparedData
    plan: StepPlan
    batch: BatchPlan
    engine: Engine
    start: CheckpointFacts
    """Where it begins: step 0, or the facts of the checkpoint it goes on from."""
    total_steps: int
    pad_token_id: int
    flatten: bool
    """The attention implementation wants documents one after another, without padding."""
    initial: dict[str, Tensor]
    """PiSSA's first A and B; empty otherwise."""

    def build_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        return step_batches(
            self.data.train,
            self.plan.rows(step),
            rank=self.ranks.rank,
            dp_size=self.ranks.world_size,
            micro_batch_size=self.batch.micro_batch_size,
            packing=self.config.data.packing,
            **self._layout(),
        )

    def build_validation(self) -> Iterator[Batch]:
        """This rank's share of the validation rows, one micro-batch after the other."""
        assert self.data.validation is not None
        train = self.config.train
        return eval_batches(
            self.data.validation,
            rank=self.ranks.rank,
            dp_size=self.ranks.world_size,
            micro_batch_size=train.per_device_eval_batch_size or train.per_device_train_batch_size,
            packing=self.config.data.packing,
            max_rows=self.config.evaluate.max_rows,
            **self._layout(),
        )

    def _layout(self) -> dict[str, Any]:
        return {
            "pad_token_id": self.pad_token_id,
            "flatten": self.flatten,
            "max_length": self.config.data.max_length,
            "with_positions": self.config.adapter.method not in VIRTUAL_TOKEN_METHODS,
        }

    @property
    def write_extra(self) -> Callable[[Path, dict[str, Tensor]], None] | None:
        """Writes the adapter in PEFT's format beside the state; None without an adapter."""
        model: Any = self.engine.module.model
        if not hasattr(model, "peft_config"):
            return None
        return lambda folder, trained: write_adapter(model, trained, self.initial, folder)


def set_up(config: RunConfig, ranks: Ranks, data: PreparedData, say: Say) -> Run:
    """Build the run; a collective call, after the process group has been started."""
    paths = RunPaths(Path(config.output_dir))
    batch = batch_arithmetic(config, ranks.world_size)
    ds_config = resolve_ds_config(config, batch)
    start = _agreed_start(config, batch, data.fingerprint, ranks)
    plan = StepPlan(
        RowPlan(data.train, config.data, config.train.seed, data.source_weights),
        batch.global_batch_size,
        config.train.num_train_epochs,
    )
    tokenizer = open_tokenizer(config.model)
    model, initial, flatten = _build_model(config, ds_config, ranks, paths, start, say)
    groups = parameter_groups(
        model,
        weight_decay=config.train.weight_decay,
        lora_plus_lr_ratio=config.adapter.lora_plus_lr_ratio,
    )
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
    if config.data.packing:
        text = model.model.config.get_text_config()
        check_packing_isolation(
            engine,
            attention=text._attn_implementation,
            vocab_size=text.vocab_size,
            flatten=flatten,
        )
        say(f"packing: documents do not see each other ({text._attn_implementation}; tried)")
    if start.step:
        load_checkpoint(paths.checkpoint(start.step), engine, start)
        say(f"resume: goes on after step {start.step:,} of {quoted(paths.root)}")
    run = Run(
        config=config,
        paths=paths,
        ranks=ranks,
        data=data,
        plan=plan,
        batch=batch,
        engine=engine,
        start=start,
        total_steps=plan.total_steps(config.train),
        pad_token_id=pad_token_id(tokenizer, say),
        flatten=flatten,
        initial=initial,
    )
    if ranks.is_main:
        _write_run_folder(run, ds_config)
    return run


def _agreed_start(
    config: RunConfig, batch: BatchPlan, data_fingerprint: str, ranks: Ranks
) -> CheckpointFacts:
    """Where the run begins, and proof that every rank sees the same files.

    Raises:
        CheckpointError: on every rank, where output_dir, model or data differ between machines.
    """
    start = find_start(config, batch, base_fingerprint(config.model), data_fingerprint)
    seen = ranks.texts(f"step {start.step}, {start.base_fingerprint}, {start.data_fingerprint}")
    if len(set(seen)) > 1:
        other = next(text for text in seen if text != seen[0])
        raise CheckpointError(
            f"output_dir = {quoted(config.output_dir)}: rank 0 sees {seen[0]} and rank "
            f"{seen.index(other)} sees {other} (checkpoint, model, data). Every machine must see "
            "the same files: put output_dir, model and data on a shared file system."
        )
    return start


def find_start(config: RunConfig, batch: BatchPlan, base: str, data: str) -> CheckpointFacts:
    """The facts of the latest checkpoint in output_dir, or those of step 0.

    Raises:
        CheckpointError: the folder holds a run that this recipe can't go on from.
    """
    check_same_run(config, batch.global_batch_size)
    check_same_inputs(config, base, data)
    folder = latest_checkpoint(RunPaths(Path(config.output_dir)))
    if folder is not None:
        return read_facts(folder)
    return CheckpointFacts(0, 0, 0, None, base, data)


def _build_model(
    config: RunConfig,
    ds_config: dict[str, Any],
    ranks: Ranks,
    paths: RunPaths,
    start: CheckpointFacts,
    say: Say,
) -> tuple[LanguageModel, dict[str, Tensor], bool]:
    architecture = load_architecture(config.model)
    pretrained = config.model.init == "pretrained"
    sharded = sharded_loading(ds_config, pretrained)  # has to live until the weights are loaded
    device = ranks.device if ranks.device.type == "cuda" and sharded is None else None
    model = _load_on_all(config, architecture, ranks, device)
    if pretrained and config.model.quantization == "none":
        files = weight_files(config.model.name_or_path, config.model.revision)
        say(
            check_integrity(
                model,
                files,
                rank=ranks.rank,
                world_size=ranks.world_size,
                sum_over_ranks=ranks.sum,
            )
        )
    attention = model.config.get_text_config()._attn_implementation or ""
    if untied := untied_modules(model, config.adapter):
        say(f"adapter: {', '.join(untied)} trains as a copy of its own, no longer tied")
    adapted = choose_trainable(
        model,
        config.adapter,
        base=config.model.name_or_path,
        seed=config.train.seed,
        tokenizer=config.model.tokenizer_name_or_path,
    )
    if config.model.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        adapted.enable_input_require_grads()
    initial = _initial_lora(adapted, config, paths, start)
    del sharded
    # Varlen kernels (also those of the kernel hub) tell documents apart in a single row only;
    # virtual tokens stand before every row, so theirs are never joined.
    varlen = "flash" in attention and config.adapter.method not in VIRTUAL_TOKEN_METHODS
    return LanguageModel(adapted), initial, varlen


def _load_on_all(
    config: RunConfig,
    architecture: PretrainedConfig,
    ranks: Ranks,
    device: torch.device | None,
) -> Any:
    """The base model; under ZeRO-3 a fault can show on rank 0 alone, and the others must know."""
    model, fault = None, ""
    try:
        model = load_model(config.model, architecture, seed=config.train.seed, device=device)
    except ModelError as error:
        fault = str(error)
    if fault := ranks.first_text(fault):
        raise ModelError(fault)
    return model


def _initial_lora(
    model: torch.nn.Module, config: RunConfig, paths: RunPaths, start: CheckpointFacts
) -> dict[str, Tensor]:
    if start.step and (paths.root / INITIAL_LORA).is_file():
        saved = load_file(str(paths.root / INITIAL_LORA))
        restore_residual(model, saved)
        return saved
    return initial_lora(model, config.adapter)


def _write_run_folder(run: Run, ds_config: dict[str, Any]) -> None:
    paths = run.paths
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_partial(paths)
    replace_text(paths.recipe, dump_recipe(run.config))
    replace_text(paths.ds_config, json.dumps(ds_config, indent=1) + "\n")
    replace_text(paths.audit, json.dumps(run.data.audit, indent=1) + "\n")
    packages = ("ds-train", "deepspeed", "torch", "transformers", "peft", "datasets")
    facts = {
        "base_fingerprint": run.start.base_fingerprint,
        "data_fingerprint": run.start.data_fingerprint,
        "global_batch_size": run.batch.global_batch_size,
        "world_size": run.ranks.world_size,
        "total_steps": run.total_steps,
        "versions": {name: version(name) for name in packages},
    }
    replace_text(paths.run_facts, json.dumps(facts, indent=1) + "\n")
    if run.initial and not run.start.step:
        save_tensors(paths.root / INITIAL_LORA, run.initial)
