"""What can be known about the model before any process is started: files whole, tokenizer fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ds_train.config.model import ModelConfig
from ds_train.config.run import RunConfig
from ds_train.data.encode import open_tokenizer
from ds_train.errors import ModelError
from ds_train.model.files import read_header, weight_files
from ds_train.model.tokenizer import check_vocabulary


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's config.json, with `config_overrides` applied.

    Raises:
        ModelError: it can't be read, or an override names no setting of the architecture.
    """
    try:
        architecture = AutoConfig.from_pretrained(
            config.name_or_path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.name_or_path = {config.name_or_path!r}: no model config could be read there "
            f"({str(error).splitlines()[0]}). Name a folder with config.json, or a hub model."
        ) from None
    for key, value in config.config_overrides.items():
        if not hasattr(architecture, key):
            raise ModelError(
                f"model.config_overrides.{key}: {type(architecture).__name__} has no such setting"
            )
        setattr(architecture, key, value)
    return architecture


def check_model(config: RunConfig, say: Callable[[str], Any] = print) -> None:
    """Read the architecture, the tokenizer and every weight file's header; no torch, no weights.

    Raises:
        ModelError: whatever would otherwise be found only after the launch.
    """
    architecture = load_architecture(config.model)
    tokenizer = open_tokenizer(config.model)
    text = architecture.get_text_config()
    check_vocabulary(tokenizer, text.vocab_size, config.model.name_or_path)
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and config.data.max_length > longest:
        raise ModelError(
            f"data.max_length = {config.data.max_length:,}: the model reads at most {longest:,} "
            f"positions (max_position_embeddings). Set data.max_length to {longest:,} or less."
        )
    if config.model.init == "pretrained":
        files = weight_files(config.model.name_or_path, config.model.revision)
        num_tensors = sum(len(read_header(path)) for path in files)
        say(f"model: {num_tensors:,} tensors in {len(files)} safetensors file(s), all whole")
