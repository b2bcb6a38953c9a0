"""Every key that DeepSpeed 0.19 reads, as data; DeepSpeed itself ignores most unknown ones.

A leaf names the kind of value, a tuple its choices, a dict a block. `tests/plan/test_ds_keys.py`
compares the table with the installed DeepSpeed, so that it can't rot.
"""

from __future__ import annotations

from typing import Any

BOOL, COUNT, NUMBER, TEXT, LIST, ANY = "true/false", "whole number", "number", "text", "list", "any"

OFFLOAD_PARAM: dict[str, Any] = {
    "device": ("none", "cpu", "nvme"),
    "nvme_path": TEXT,
    "buffer_count": COUNT,
    "buffer_size": COUNT,
    "max_in_cpu": COUNT,
    "pin_memory": BOOL,
}
OFFLOAD_OPTIMIZER: dict[str, Any] = {
    "device": ("none", "cpu", "nvme"),
    "nvme_path": TEXT,
    "buffer_count": COUNT,
    "pin_memory": BOOL,
    "pipeline_read": BOOL,
    "pipeline_write": BOOL,
    "fast_init": BOOL,
    "ratio": NUMBER,
    "super_offload": BOOL,
    "cpuadam_cores_perc": NUMBER,
}
ZERO: dict[str, Any] = {
    "stage": (0, 1, 2, 3),
    "contiguous_gradients": BOOL,
    "reduce_scatter": BOOL,
    "reduce_bucket_size": COUNT,
    "use_multi_rank_bucket_allreduce": BOOL,
    "allgather_partitions": BOOL,
    "allgather_bucket_size": COUNT,
    "overlap_comm": BOOL,
    "compute_grad_norm": BOOL,
    "load_from_fp32_weights": BOOL,
    "elastic_checkpoint": BOOL,
    "offload_param": OFFLOAD_PARAM,
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "zenflow": ANY,
    "sub_group_size": COUNT,
    "stage3_prefetch_bucket_size": COUNT,
    "stage3_param_persistence_threshold": COUNT,
    "stage3_model_persistence_threshold": COUNT,
    "stage3_max_live_parameters": COUNT,
    "stage3_max_reuse_distance": COUNT,
    "stage3_gather_16bit_weights_on_model_save": BOOL,
    "stage3_module_granularity_threshold": COUNT,
    "stage3_use_all_reduce_for_fetch_params": BOOL,
    "stage3_allgather_sequential": BOOL,
    "ignore_unused_parameters": BOOL,
    "legacy_stage1": BOOL,
    "round_robin_gradients": BOOL,
    "parameter_alignment": BOOL,
    "zero_hpz_partition_size": COUNT,
    "zero_quantized_weights": BOOL,
    "zero_quantized_nontrainable_weights": BOOL,
    "zero_quantized_gradients": BOOL,
    "memory_efficient_linear": BOOL,
    "pipeline_loading_checkpoint": BOOL,
    "override_module_apply": BOOL,
    "log_trace_cache_warnings": BOOL,
    "enable_sanity_checks": BOOL,
    "save_muon_momentum_buffer_in_memory": BOOL,
    "leaf_module": {"classes": LIST, "names": LIST, "name_suffixes": LIST},
}
BF16: dict[str, Any] = {
    "enabled": BOOL,
    "immediate_grad_update": BOOL,
    "check_grad_overflow": BOOL,
    "bf16_master_weights_and_grads": BOOL,
    "bf16_optimizer_states": BOOL,
}
FP16: dict[str, Any] = {
    "enabled": BOOL,
    "auto_cast": BOOL,
    "loss_scale": NUMBER,
    "initial_scale_power": COUNT,
    "loss_scale_window": COUNT,
    "hysteresis": COUNT,
    "consecutive_hysteresis": BOOL,
    "min_loss_scale": COUNT,
    "fp16_master_weights_and_grads": BOOL,
}
MONITORS: dict[str, Any] = {
    "tensorboard": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "csv_monitor": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "wandb": {"enabled": BOOL, "group": TEXT, "team": TEXT, "project": TEXT},
    "comet": {
        "enabled": BOOL,
        "samples_log_interval": COUNT,
        "project": TEXT,
        "workspace": TEXT,
        "api_key": TEXT,
        "experiment_name": TEXT,
        "experiment_key": TEXT,
        "online": BOOL,
        "mode": TEXT,
    },
}
COMMS_LOGGER: dict[str, Any] = {
    "enabled": BOOL,
    "prof_all": BOOL,
    "prof_ops": LIST,
    "verbose": BOOL,
    "debug": BOOL,
}

KNOWN: dict[str, Any] = {
    "train_batch_size": COUNT,
    "train_micro_batch_size_per_gpu": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_allreduce_op": ("mean", "sum"),
    "gradient_clipping": NUMBER,
    "gradient_predivide_factor": NUMBER,
    "prescale_gradients": BOOL,
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "seq_parallel_communication_data_type": ("fp32", "fp16", "bf16"),
    "disable_allgather": BOOL,
    "steps_per_print": COUNT,
    "wall_clock_breakdown": BOOL,
    "memory_breakdown": BOOL,
    "dump_state": BOOL,
    "disable_python_gc": BOOL,
    "vocabulary_size": COUNT,
    "log_level": ("debug", "info", "warning", "error", "critical"),
    "zero_allow_untested_optimizer": BOOL,
    "zero_force_ds_cpu_optimizer": BOOL,
    "optimizer": {"type": TEXT, "params": ANY, "legacy_fusion": BOOL},
    "scheduler": {"type": TEXT, "params": ANY},
    "bf16": BF16,
    "fp16": FP16,
    "data_types": {
        "grad_accum_dtype": ("fp32", "fp16", "bf16"),
        "param_dtype": ("fp32", "fp16", "bf16"),
        "buffer_dtype": ("fp32", "fp16", "bf16"),
        "keep_in_fp32_modules": ANY,
    },
    "zero_optimization": ZERO,
    "aio": {
        "block_size": COUNT,
        "queue_depth": COUNT,
        "intra_op_parallelism": COUNT,
        "single_submit": BOOL,
        "overlap_events": BOOL,
        "use_gds": BOOL,
    },
    "checkpoint": {
        "tag_validation": ("Fail", "Warn", "Ignore"),
        "load_universal": BOOL,
        "use_node_local_storage": BOOL,
        "checkpoint_serialization": BOOL,
        "parallel_write": {"pipeline_stage": BOOL},
        "writer": ANY,
    },
    "comms_logger": COMMS_LOGGER,
    "flops_profiler": {
        "enabled": BOOL,
        "recompute_fwd_factor": NUMBER,
        "profile_step": COUNT,
        "module_depth": COUNT,
        "top_modules": COUNT,
        "detailed": BOOL,
        "output_file": TEXT,
    },
    "timers": {"throughput": {"enabled": BOOL, "synchronized": BOOL}},
    **MONITORS,
}
"""What may stand in a preset, in your own config or in engine.overrides."""

_GONE = "was removed from DeepSpeed 0.19"

REMOVED: dict[str, str] = {
    "amp": f"{_GONE}; use model.dtype: bf16",
    "compression_training": _GONE,
    "curriculum_learning": _GONE,
    "eigenvalue": _GONE,
    "elasticity": f"{_GONE}; global_batch_size stays the same on any number of ranks here",
    "graph_harvesting": _GONE,
    "nebula": _GONE,
    "progressive_layer_drop": _GONE,
    "quantize_training": _GONE,
    "sparse_attention": _GONE,
    "sparse_gradients": _GONE,
    "zero_optimization.mics_hierarchical_params_gather": f"{_GONE}; use zero_hpz_partition_size",
    "zero_optimization.mics_shard_size": f"{_GONE}; use zero_hpz_partition_size",
    "zero_optimization.zeropp_loco_param": _GONE,
    "zero_optimization.cpu_offload": "is the old name; use offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_param": "is the old name; use offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "is the old name; use "
    "offload_optimizer: {pin_memory: true}",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "is the old name; use "
    "stage3_gather_16bit_weights_on_model_save",
    "bfloat16": "is the old name; remove it, model.dtype decides",
}
"""Keys that DeepSpeed refuses or renamed -> why."""

NOT_HERE: dict[str, str] = {
    "activation_checkpointing": "does nothing for Hugging Face models; use "
    "model.gradient_checkpointing: true",
    "autotuning": "relaunches a script that it does not know; it is not supported here",
    "compile": "(DeepCompile) is not supported here",
    "data_efficiency": "would choose other rows than the recipe says; ds-train orders the data "
    "itself, in section data",
    "data_efficiency.data_sampling": "would choose other rows than the recipe says; use section "
    "curriculum, or write this block for training of your own with `ds-train export-curriculum`",
    "data_efficiency.data_routing": "(random-LTD) would be wrong here: DeepSpeed 0.19 cuts a "
    "decoder's attention mask to its top-left corner, whichever tokens stay, so documents in one "
    "row would mix; rotary positions keep their full length beside fewer tokens; and its kernel "
    "needs CUDA. Rows that grow save tokens too: curriculum.seq_len",
    "data_parallel_size": "follows from the number of processes",
    "dataloader_drop_last": "has no effect; ds-train orders the data itself, in section data",
    "managed_gradient_accumulation": "is decided by ds-train, whose step accumulates itself",
    "datastates_ckpt": "is not used; ds-train writes its own checkpoints",
    "expert_parallel": "is not supported here",
    "hybrid_engine": "is for inference inside training, which ds-train does not do",
    "pipeline": "needs a PipelineModule, not a Hugging Face model; it is not supported here",
    "sequence_parallel_size": "would change the scale of the gradients at some stages; set "
    "engine.sequence_parallel_size",
    "tensor_parallel": "(AutoTP) is not supported here: in DeepSpeed 0.19 an adapter fails in its "
    "first forward pass, ZeRO-3 can't load pretrained weights with it, and a checkpoint would hold "
    "one rank's part of each weight; for a model too large for a GPU set engine.preset: zero3, for "
    "rows too long for one engine.sequence_parallel_size",
    "torch_autocast": "is a second way to set the arithmetic; use model.dtype",
    "use_data_before_expert_parallelism": "is not supported here",
    "weight_quantization": "is for inference; use model.quantization",
    "zero_optimization.zenflow": "updates weights inside gradient accumulation, so the loss would "
    "not be that of the recipe; it is not supported here",
    "zero_optimization.elastic_checkpoint": "has no effect since DeepSpeed 0.19",
    "zero_optimization.legacy_stage1": "is refused by DeepSpeed itself",
    "bf16.immediate_grad_update": "belongs to pipeline training; it is not supported here",
}
"""Keys of DeepSpeed that ds-train can't honour -> why."""
