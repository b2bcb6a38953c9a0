"""Opens whatever can be asked a question: a run, its base, an adapter folder, a model.

runs/first               recipe.yaml says the base; the checkpoint holds adapter or weights
runs/first/adapter       adapter_config.json names the base
runs/first/merged        a Hugging Face folder
some/hub-name            a model of the hub
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ds_train.checkpoint.folder import find_checkpoint
from ds_train.checkpoint.pieces import StateFiles
from ds_train.config.files import looks_like_path
from ds_train.config.load import load_recipe
from ds_train.config.model import ModelConfig
from ds_train.config.run import RunConfig
from ds_train.data.encode import open_tokenizer
from ds_train.errors import CheckpointError, ModelError, quoted, reason
from ds_train.model.adapter import ADAPTER_CONFIG
from ds_train.model.check import load_architecture
from ds_train.model.load import DTYPES, load_model
from ds_train.model.quiet import quieten_libraries
from ds_train.paths import RunPaths

Say = Callable[[str], Any]
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Target:
    """What shall be evaluated or asked, found but not yet loaded."""

    model: ModelConfig
    """The base, or the model itself, with its tokenizer."""
    title: str
    adapter: Path | None = None
    """PEFT folder over the base."""
    state: Path | None = None
    """Checkpoint whose parameters replace the base's (full and partial fine-tuning)."""
    recipe: RunConfig | None = None
    """Recipe of the run, if it is one."""


def find_target(target: str | Path, checkpoint: str = "chosen", base: bool = False) -> Target:
    """What `target` names. `base`: the run's (or adapter's) base model without what was trained.

    Raises:
        CheckpointError: a run without such a checkpoint; ModelError: nothing that can be loaded.
    """
    folder = Path(target)
    if RunPaths(folder).recipe.is_file():
        recipe = load_recipe(RunPaths(folder).recipe)
        if base:
            return Target(recipe.model, f"base of {folder}", recipe=recipe)
        step = find_checkpoint(folder, checkpoint)
        title = f"{folder}, {step.name}"
        if (step / ADAPTER_CONFIG).is_file():
            return Target(recipe.model, title, adapter=step, recipe=recipe)
        return Target(recipe.model, title, state=step, recipe=recipe)
    if (folder / ADAPTER_CONFIG).is_file():
        name = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
        has_tokenizer = (folder / "tokenizer_config.json").is_file()
        model = ModelConfig(
            name_or_path=name, tokenizer_name_or_path=str(folder) if has_tokenizer else None
        )
        if base:
            return Target(_in_own_dtype(model), f"base of {folder}")
        return Target(_in_own_dtype(model), str(folder), adapter=folder)
    if folder.is_file():
        raise ModelError(f"{quoted(target)}: is a file; name a run, adapter or model folder.")
    if not folder.exists() and (looks_like_path(str(target)) or _lies_among_runs(folder)):
        raise ModelError(f"{quoted(target)}: no such folder; name a run, adapter or model folder.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{quoted(folder)}: neither a run (recipe.yaml), nor an adapter ({ADAPTER_CONFIG}), "
            "nor a model (config.json)."
        )
    if base:
        raise ModelError(f"--base: {quoted(target)} is a model, not a run or an adapter over one.")
    return Target(_in_own_dtype(ModelConfig(name_or_path=str(target))), str(target))


def _lies_among_runs(folder: Path) -> bool:
    """Whether `runs/frist` is a run's name mistyped, and no `org/name` of the hub."""
    if folder.parent == Path():
        return False
    return any(True for _ in folder.parent.glob(f"*/{RunPaths(folder).recipe.name}"))


def _in_own_dtype(model: ModelConfig) -> ModelConfig:
    """The dtype that config.json names; fp32 where it names none."""
    dtype = load_architecture(model).dtype
    name = _DTYPE_NAMES.get(dtype) if isinstance(dtype, torch.dtype) else None
    return model.model_copy(update={"dtype": name or "fp32"})


def load_for_inference(
    target: str | Path | Target,
    checkpoint: str = "chosen",
    dtype: str | None = None,
    device: str | None = None,
    *,
    base: bool = False,
    say: Say = print,
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """(model, tokenizer) in evaluation mode on `device` (the GPU if there is one).

    Args:
        dtype: bf16, fp16 or fp32; the recipe's, else config.json's when left out.

    Raises:
        ModelError, CheckpointError: it can't be found or loaded.
    """
    place = _device(device)
    if not isinstance(target, Target):
        target = find_target(target, checkpoint, base)
    config = target.model
    if dtype is not None:
        config = config.model_copy(update={"dtype": dtype})
    quieten_libraries()
    if not sys.stderr.isatty():
        disable_progress_bar()
    model = _build(target, config)
    say(f"model: {target.title} as {config.dtype} on {place}")
    if config.quantization == "none":
        model = model.to(place)
    return model.eval(), open_tokenizer(config)


def _device(name: str | None) -> str:
    """The device asked for, or the GPU if there is one; ModelError where it can't be used."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"--device {name}: can't be used here ({reason(error)}); leave it out, or take cpu."
        ) from None
    return name


def _build(target: Target, config: ModelConfig) -> nn.Module:
    seed = 0 if target.recipe is None else target.recipe.train.seed
    model = load_model(config, load_architecture(config), seed=seed)
    if target.adapter is not None:
        model = _with_adapter(model, target.adapter)
    if target.state is not None:
        _put_state(model, target.state)
    return model


def _with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about PEFT's calls
            adapted: nn.Module = PeftModel.from_pretrained(
                model, str(folder), autocast_adapter_dtype=False
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{quoted(folder)}: not an adapter of its base ({reason(error)})."
        ) from error
    return adapted


def _put_state(model: nn.Module, checkpoint: Path) -> None:
    """Copy the trained fp32 parameters of a checkpoint over the base's."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    saved = StateFiles(checkpoint)
    strangers = sorted(saved.names - parameters.keys())
    if strangers:
        raise CheckpointError(
            f"{quoted(checkpoint)}: {len(strangers)} of its parameters are not in the model "
            f"({', '.join(strangers[:3])}). Is model.name_or_path still the model of the run?"
        )
    with torch.no_grad():
        for name in saved.names:
            parameters[name].copy_(saved.read(name))
