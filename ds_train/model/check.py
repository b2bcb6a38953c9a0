"""What can be known about the model before any process is started: files whole, tokenizer fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ds_train.config.model import ModelConfig
from ds_train.config.run import RunConfig
from ds_train.data.encode import check_eos, open_tokenizer
from ds_train.data.prepare import describe_max_length
from ds_train.errors import ModelError, quoted, reason
from ds_train.model.files import weight_files
from ds_train.model.shareable import why_not_shared
from ds_train.model.tokenizer import check_vocabulary
from ds_train.plan.headers import read_header


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's config.json, with `config_overrides` applied.

    Raises:
        ModelError: it can't be read, or an override names no setting of the architecture.
    """
    if Path(config.name_or_path).is_dir():
        _check_config_json(Path(config.name_or_path), config.trust_remote_code)
    try:
        architecture = AutoConfig.from_pretrained(
            config.name_or_path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.name_or_path = {quoted(config.name_or_path)}: {_where(config)} "
            f"({reason(error)}); check the name and the connection."
        ) from None
    faults = []
    for key, value in config.config_overrides.items():
        if not hasattr(architecture, key):
            faults.append(
                f"model.config_overrides.{key}: {type(architecture).__name__} has no such setting; "
                "remove it."
            )
        setattr(architecture, key, value)
    if faults:
        raise ModelError(faults)
    return architecture


def _where(config: ModelConfig) -> str:
    if Path(config.name_or_path).is_dir():
        return "its config.json can't be used"
    return "no such folder here, and no config of it could be had from the hub"


def _check_config_json(folder: Path, trust_remote_code: bool) -> None:
    """ModelError for a config.json that is none, or of an unknown architecture."""
    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; name the folder of a model.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: is not valid JSON ({reason(error)}); copy it again.") from None
    if model_type not in CONFIG_MAPPING_NAMES and not trust_remote_code:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING_NAMES), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"{path}: model_type = {quoted(model_type)}: the installed transformers does not know "
            f"it; correct it, or install a version that does.{hint}"
        )


def check_model(config: RunConfig, say: Callable[[str], Any] = print) -> None:
    """Read the architecture, the tokenizer and every weight file's header; no weights.

    Raises:
        ModelError: whatever would otherwise be found only after the launch, all at once.
    """
    text = load_architecture(config.model).get_text_config()
    faults: list[str] = []
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and config.data.max_length > longest:
        faults.append(describe_max_length(config, longest))
    size = config.engine.sequence_parallel_size
    problem = None if size == 1 else why_not_shared(text, config.model.attn_implementation, size)
    if problem is not None:
        faults.append(problem)
    try:
        tokenizer = open_tokenizer(config.model)
        check_eos(tokenizer)
        check_vocabulary(tokenizer, text.vocab_size, config.model.name_or_path)
    except ModelError as error:
        faults += error.faults
    if config.model.init == "pretrained":
        files, weight_faults = _check_weights(config)
        faults += weight_faults
    if faults:
        raise ModelError(faults)
    if config.model.init == "pretrained":
        say(files)


def _check_weights(config: RunConfig) -> tuple[str, list[str]]:
    """A line about the weight files, and their faults."""
    faults: list[str] = []
    num_tensors, num_files = 0, 0
    try:
        for path in weight_files(config.model.name_or_path, config.model.revision):
            num_files += 1
            try:
                num_tensors += len(read_header(path))
            except ModelError as error:
                faults += error.faults
    except ModelError as error:
        faults += error.faults
    files = "1 safetensors file, which is" if num_files == 1 else f"{num_files} files, all of them"
    return f"model: {num_tensors:,} tensors in {files} whole", faults
