"""The names of settings: the valid ones, the nearest to a mistyped one, those of other tools.

A right key in a wrong section and a name from another tool are answered with the place here; only
then is spelling considered.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

from ds_train.config.base import Section
from ds_train.config.run import RunConfig
from ds_train.config.yaml_strict import KeyPath, dotted

OTHER_TOOLS = {
    "adam_beta_1": "train.adam_beta1",
    "adapter_name_or_path": "adapter.path",
    "adapter_path": "adapter.path",
    "attention_implementation": "model.attn_implementation",
    "base_model": "model.name_or_path",
    "base_model_config": "model.name_or_path",
    "base_model_name": "model.name_or_path",
    "base_model_name_or_path": "model.name_or_path",
    "batch_size": "train.global_batch_size (rows per optimizer step over all ranks) or "
    "train.per_device_train_batch_size",
    "bf16": "model.dtype: bf16",
    "bfloat16": "model.dtype: bf16",
    "bias": "adapter.method: partial with adapter.trainable: [bias]",
    "block_size": "data.max_length",
    "clip_grad_norm": "train.max_grad_norm",
    "compute_dtype": "model.dtype",
    "cutoff_len": "data.max_length",
    "data": "data.train: [{path: ...}]",
    "data_files": "data.train[].path",
    "data_path": "data.train[].path",
    "data_seed": "train.seed",
    "dataset": "data.train: [{path: ...}]",
    "dataset_dir": "data.train[].path",
    "dataset_name": "data.train[].path",
    "dataset_path": "data.train[].path",
    "dataset_text_field": "data.train[].columns: {text: ...}",
    "datasets": "data.train: [{path: ...}, ...]",
    "deepspeed": "engine.config (your ds_config.json) or engine.preset: zero2",
    "deepspeed_config": "engine.config",
    "do_eval": "evaluate.every",
    "ds_config": "engine.config",
    "early_stopping_patience": "train.early_stopping: {patience: 3}",
    "early_stopping_threshold": "train.early_stopping: {min_delta: 0.01}",
    "end_ratio": "train.min_lr_ratio",
    "epochs": "train.num_train_epochs",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "eval_dataset": "data.validation.sources: [{path: ...}]",
    "eval_steps": "evaluate.every",
    "eval_strategy": "evaluate.every",
    "evaluation_strategy": "evaluate.every",
    "evals_per_epoch": "evaluate.every: 1 epoch",
    "finetuning_type": "adapter.method",
    "flash_attention": "model.attn_implementation: flash_attention_2",
    "flash_attn": "model.attn_implementation: flash_attention_2",
    "fp16": "model.dtype: fp16",
    "freeze_layers": "adapter.frozen_layers (with adapter.method: partial)",
    "fp32": "model.dtype: fp32",
    "global_batch": "train.global_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "grad_clip": "train.max_grad_norm",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
    "hostfile_path": "cluster.hostfile",
    "init_lora_weights": "adapter.init",
    "layer_wise_lr_decay": "train.layer_lr_decay",
    "llrd": "train.layer_lr_decay",
    "load_best_model_at_end": "train.early_stopping (its best checkpoint is the result)",
    "load_in_4bit": "model.quantization: nf4",
    "load_in_8bit": "model.quantization: int8",
    "log_steps": "report.log_every",
    "logging_steps": "report.log_every",
    "lora": "adapter.method: lora",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_model_dir": "adapter.path",
    "lora_modules_to_save": "adapter.modules_to_save",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_target": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules: all-linear",
    "lora_target_modules": "adapter.target_modules",
    "loraplus_lr_ratio": "adapter.lora_plus_lr_ratio",
    "lr": "train.learning_rate",
    "lr_end_ratio": "train.min_lr_ratio",
    "lr_scheduler": "train.lr_scheduler_type",
    "lr_schedule": "train.lr_scheduler_type",
    "max_epochs": "train.num_train_epochs",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_train_steps": "train.max_steps",
    "mc_loss": "fewshot.losses.length_normalised",
    "micro_batch_size": "train.per_device_train_batch_size",
    "min_lr": "train.min_lr_ratio (a share of the peak)",
    "mixed_precision": "model.dtype",
    "model_id": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "model_path": "model.name_or_path",
    "neat_packing": "data.packing",
    "num_epochs": "train.num_train_epochs",
    "n_shot": "fewshot.subset.k (to train on) or evaluate.shots (demonstrations of tasks)",
    "num_gpus": "cluster.processes_per_node",
    "num_processes": "cluster.processes_per_node",
    "num_shot": "fewshot.subset.k (to train on) or evaluate.shots (demonstrations of tasks)",
    "optimizer": "train.optim",
    "out_dir": "output_dir",
    "output": "output_dir",
    "output_path": "output_dir",
    "pad_to_sequence_len": "data.packing",
    "per_device_batch_size": "train.per_device_train_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "peft_type": "adapter.method",
    "precision": "model.dtype",
    "preprocessing_num_workers": "data.num_workers",
    "dataset_num_proc": "data.num_workers",
    "rank": "adapter.r",
    "report_to": "report.trackers",
    "resume": "nothing: a run continues by itself in an existing output_dir",
    "resume_from_checkpoint": "nothing: a run continues by itself in an existing output_dir",
    "rope_scaling": "model.config_overrides (with model.init: random)",
    "sample_packing": "data.packing",
    "save_every": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_strategy": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "scheduler": "train.lr_scheduler_type",
    "seq_len": "data.max_length",
    "seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "sequence_length": "data.max_length",
    "context_parallel_size": "engine.sequence_parallel_size",
    "cp_size": "engine.sequence_parallel_size",
    "sequence_parallel_degree": "engine.sequence_parallel_size",
    "sp_size": "engine.sequence_parallel_size",
    "ulysses_sequence_parallel_size": "engine.sequence_parallel_size",
    "special_tokens": "model.tokenizer_name_or_path (a tokenizer that has them)",
    "target_module": "adapter.target_modules",
    "template": "data.chat_template",
    "tokenizer": "model.tokenizer_name_or_path",
    "tokenizer_path": "model.tokenizer_name_or_path",
    "torch_dtype": "model.dtype",
    "train_batch_size": "train.global_batch_size",
    "train_files": "data.train[].path",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "train_on_inputs": "data.loss_on: completion (false) or all (true)",
    "train_on_prompt": "data.loss_on: completion (false) or all (true)",
    "type": "data.train[].format (for data) or adapter.method",
    "unlikely_loss": "fewshot.losses.unlikelihood",
    "use_dora": "adapter.use_dora",
    "use_lora": "adapter.method: lora",
    "val_set_size": "data.validation.fraction",
    "val_size": "data.validation.fraction",
    "wandb_name": "report.run_name",
    "wandb_project": "report.project (with report.trackers: [wandb])",
    "warmup_ratio": "train.warmup_steps (a share such as 0.03 is understood)",
    "world_size": "cluster.processes_per_node",
    "zero_stage": "engine.preset: zero2",
}
"""Name in another tool -> what to write here."""


def section_of(annotation: Any) -> type[Section] | None:
    """The section class inside a field's annotation, also inside a list or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_of(arg))), None)


def is_list_of_sections(annotation: Any) -> bool:
    """Whether a field holds several sections, as data.train does."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) is list and section_of(annotation) is not None


def all_keys(section: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    """Every setting with its place: `train.seed`, `data.train[].path`, ..."""
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        if (inner := section_of(info.annotation)) is not None:
            brackets = "[]" if is_list_of_sections(info.annotation) else ""
            keys += all_keys(inner, f"{prefix}{name}{brackets}.")
    return keys


def unknown_key(parent: KeyPath, key: str, section: type[Section]) -> str:
    """What to say about `key`, which `section` at `parent` does not have."""
    return f"{dotted((*parent, key))}: no such setting{_advice(parent, key, section)}"


def _advice(parent: KeyPath, key: str, section: type[Section]) -> str:
    plain = key.strip().lower().replace("-", "_").replace(" ", "_")
    here = dotted(tuple("[]" if isinstance(part, int) else part for part in parent))
    here = here.replace(".[]", "[]")
    siblings = list(section.model_fields)
    if plain in siblings:
        return f". Did you mean {dotted((*parent, plain))}?"
    elsewhere = [name for name in all_keys() if name.rsplit(".", 1)[-1] == plain]
    if elsewhere and plain not in ("train", "data"):
        return f"{' in ' + here if here else ' at the top level'}; here it is " + _either(elsewhere)
    if plain in OTHER_TOOLS:
        return f"; here it is {OTHER_TOOLS[plain]}."
    if near := get_close_matches(plain, siblings, n=1, cutoff=0.7):
        return f". Did you mean {dotted((*parent, near[0]))}?"
    if other := _nearest_anywhere(plain):
        return f". Did you mean {other}?"
    return f". {'In ' + here if here else 'At the top level'} there are: {', '.join(siblings)}."


def _either(places: list[str]) -> str:
    return " or ".join(places) + "."


def _nearest_anywhere(key: str) -> str | None:
    """Place of the setting whose last name is nearest to `key`; other tools' names count too."""
    places: dict[str, str] = {}
    for name in all_keys():
        places.setdefault(name.rsplit(".", 1)[-1], name)
    near = get_close_matches(key, [*places, *OTHER_TOOLS], n=1, cutoff=0.75)
    if not near:
        return None
    return places.get(near[0]) or OTHER_TOOLS[near[0]]
