"""The model of a run, from its files to what DeepSpeed gets: loaded, checked, with what trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig
from ds_train.engine.build import sharded_loading
from ds_train.engine.ranks import Ranks
from ds_train.errors import ModelError
from ds_train.model.adapter import choose_trainable, untied_modules
from ds_train.model.check import load_architecture
from ds_train.model.files import weight_files
from ds_train.model.head import LanguageModel
from ds_train.model.ia3 import choose_ia3
from ds_train.model.integrity import check_integrity
from ds_train.model.load import load_model
from ds_train.model.pissa import initial_lora, restore_residual

Say = Callable[[str], Any]


def build_model(
    config: RunConfig,
    ds_config: dict[str, Any],
    ranks: Ranks,
    saved_lora: Path | None,
    say: Say,
) -> tuple[LanguageModel, dict[str, Tensor], bool]:
    """The model, PiSSA's first A and B ({} otherwise), and whether rows are to be flattened.

    Args:
        saved_lora: PiSSA's first A and B of the run that goes on; None at a first start.
    """
    architecture = load_architecture(config.model)
    pretrained = config.model.init == "pretrained"
    sharded = sharded_loading(ds_config, pretrained)  # has to live until the weights are loaded
    device = ranks.device if ranks.device.type == "cuda" and sharded is None else None
    model = _load_on_all(config, architecture, ranks, device)
    if pretrained and config.model.quantization == "none":
        say(_check_weights(model, config, ranks))
    attention = model.config.get_text_config()._attn_implementation or ""
    if untied := untied_modules(model, config.adapter):
        say(f"adapter: {', '.join(untied)} trains as a copy of its own, no longer tied")
    if config.adapter.method == "ia3" and config.adapter.path is None:
        say(f"adapter: IA3 {choose_ia3(model, config.adapter).remark}")
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
    initial = _initial_lora(adapted, config, saved_lora)
    del sharded
    # Varlen kernels (also those of the kernel hub) tell documents apart in a single row only;
    # virtual tokens stand before every row, so theirs are never joined.
    varlen = "flash" in attention and config.adapter.method not in VIRTUAL_TOKEN_METHODS
    return LanguageModel(adapted, config.model.loss_implementation), initial, varlen


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


def _check_weights(model: Any, config: RunConfig, ranks: Ranks) -> str:
    """Compare what was loaded with the files; a sentence. Raises ModelError where it differs."""
    return check_integrity(
        model,
        weight_files(config.model.name_or_path, config.model.revision),
        rank=ranks.rank,
        world_size=ranks.world_size,
        sum_over_ranks=ranks.sum,
    )


def _initial_lora(
    model: torch.nn.Module, config: RunConfig, saved_lora: Path | None
) -> dict[str, Tensor]:
    if saved_lora is not None and saved_lora.is_file():
        saved = load_file(str(saved_lora))
        restore_residual(model, saved)
        return saved
    return initial_lora(model, config.adapter)
