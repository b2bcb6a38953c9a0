"""What training changed in the base model's weights: which tensors, and their new values.

For an adapter the arithmetic is PEFT's own. The model is built on the meta device, where it has
modules and names but no memory, and PEFT puts its adapter into it. Then, module by module, the
base weight is read from its file, merged by PEFT in fp32, taken out, and forgotten.

Tied weights (an output layer that is the embedding) are the one thing that PEFT's
`merge_and_unload` gets wrong: a change to one of the two would reach the other, although the
adapter never did that in training. Here each gets its own tensor, and `untied` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ds_train.checkpoint.pieces import StateFiles
from ds_train.errors import CheckpointError, quoted
from ds_train.model.adapter import ADAPTER_NAME, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."

ReadBase = Callable[[str], Tensor]
"""Parameter name of the base model -> its tensor from the files."""


@dataclass(frozen=True)
class Changes:
    """New values of some of the base model's parameters."""

    names: frozenset[str]
    """Parameter names; of tied ones that stay tied, any one may stand for all."""
    make: Callable[[str], Tensor]
    """The new tensor of one of `names`."""
    untied: bool = False
    """Tied weights have parted: both are among `names`."""


def skeleton(architecture: PretrainedConfig, trust_remote_code: bool = False) -> nn.Module:
    """The model of this architecture without memory: modules, names, shapes and ties."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(
            architecture, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    return model


def tied_groups(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of parameters that are one tensor, e.g. the embedding and the output layer."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def full_changes(checkpoint: Path) -> Changes:
    """Changes of full or partial fine-tuning: the fp32 parameters of the state files."""
    saved = StateFiles(checkpoint)
    return Changes(frozenset(saved.names), saved.read)


def adapter_changes(folder: Path, model: nn.Module, read_base: ReadBase) -> Changes:
    """Changes that a PEFT adapter makes once merged into `model`, a skeleton (altered here).

    Raises:
        CheckpointError: the adapter can't be merged, or does not fit this model.
    """
    ties = tied_groups(model)
    adapted = _attach(folder, model)
    merger = _Merger(read_base)
    makers: dict[str, Callable[[str], Tensor]] = {}
    for path, module in adapted.named_modules():
        name = path.removeprefix(_PREFIX)
        if isinstance(module, BaseTunerLayer):
            for part, _ in module.get_base_layer().named_parameters():
                makers[f"{name}.{part}"] = partial(merger.part, name, module, part)
        elif isinstance(module, ModulesToSaveWrapper):
            for part, parameter in module.modules_to_save[ADAPTER_NAME].named_parameters():
                makers[f"{name}.{part}"] = _constant(parameter)
    for path, parameter in adapted.named_parameters():
        # `bias: all` and `bias: lora_only` train biases of the base itself
        name = path.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if path.endswith(".bias") and not parameter.is_meta and name not in makers:
            makers[name] = _constant(parameter)
    return _with_ties(makers, ties, read_base)


def _attach(folder: Path, model: nn.Module) -> PeftModel:
    """PEFT's adapter in the skeleton, its tensors loaded in fp32, nothing missing or left over."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
        saved = load_file(str(folder / ADAPTER_WEIGHTS))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{quoted(folder)}: no adapter can be read there ({error})."
        ) from None
    _refuse_unmergeable(config, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ties and dtypes, both of which are seen to here
        try:
            adapted = get_peft_model(
                model, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False
            )
        except ValueError as error:
            raise CheckpointError(
                f"the adapter in {quoted(folder)} does not fit the base model: {error}"
            ) from None
    if any(
        isinstance(module, AuxiliaryTrainingWrapper)
        and not isinstance(module, ModulesToSaveWrapper)
        for module in adapted.modules()
    ):
        raise CheckpointError(
            f"the adapter in {quoted(folder)} trains single tokens: no merge yet."
        )
    _load(adapted, saved, folder)
    return adapted


def _refuse_unmergeable(config: PeftConfig, folder: Path) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning:
        raise CheckpointError(
            f"--merge: the adapter in {quoted(folder)} is {kind}: it puts learned vectors before "
            "the input and changes no weight, so there is nothing to merge into. Export without "
            "--merge and load it with PEFT over the base model."
        )
    if kind not in ("LORA", "IA3") or getattr(config, "target_parameters", None):
        raise CheckpointError(f"--merge: can't merge {kind} adapters like {quoted(folder)}.")
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(("pissa", "olora", "corda", "loftq")):
        raise CheckpointError(
            f"--merge: the adapter in {quoted(folder)} belongs to a base changed by its start "
            f"(init_lora_weights: {start}). Save it converted to plain LoRA first."
        )


def _load(adapted: PeftModel, saved: Mapping[str, Tensor], folder: Path) -> None:
    """Put the saved tensors into the adapter's places; PEFT itself says which key is which."""
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    path_of = {id(parameter): path for path, parameter in parameters.items()}
    keys = get_peft_model_state_dict(adapted, state_dict=parameters, save_embedding_layers=False)
    missing, surplus = sorted(keys.keys() - saved.keys()), sorted(saved.keys() - keys.keys())
    wrong = [key for key in keys.keys() & saved.keys() if keys[key].shape != saved[key].shape]
    if missing or surplus or wrong:
        shown = ", ".join([*missing, *surplus, *wrong][:3])
        raise CheckpointError(
            f"the adapter in {quoted(folder)} does not fit the base model: {len(missing)} of its "
            f"tensors are missing, {len(surplus)} match no module, {len(wrong)} have another "
            f"shape ({shown}). Was it trained on another base?"
        )
    for key, parameter in keys.items():
        owner, _, attribute = path_of[id(parameter)].rpartition(".")
        module = adapted.get_submodule(owner)
        value = nn.Parameter(saved[key].float(), requires_grad=False)
        if isinstance(module, nn.ParameterDict):
            module[attribute] = value
        else:
            setattr(module, attribute, value)


class _Merger:
    """Merges one module at a time and remembers the last, whose bias may be asked for next."""

    def __init__(self, read_base: ReadBase) -> None:
        self._read_base = read_base
        self._name = ""
        self._merged: dict[str, Tensor] = {}

    def part(self, name: str, module: BaseTunerLayer, part: str, _: str) -> Tensor:
        """Weight or bias of a merged module."""
        if self._name != name:
            self._merged = {}
            self._merged, self._name = self._merge(name, module), name
        return self._merged[part]

    def _merge(self, name: str, module: BaseTunerLayer) -> dict[str, Tensor]:
        base = module.get_base_layer()
        before = dict(base.named_parameters())
        for part, parameter in before.items():
            if parameter.is_meta:
                value = self._read_base(f"{name}.{part}").float()
                setattr(base, part, nn.Parameter(value, requires_grad=False))
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None
        merged = {part: parameter.data for part, parameter in base.named_parameters()}
        module.merged_adapters.clear()
        for part, parameter in before.items():
            setattr(base, part, parameter)
        return merged


def _constant(parameter: nn.Parameter) -> Callable[[str], Tensor]:
    return lambda _: parameter.data


def _with_ties(
    makers: dict[str, Callable[[str], Tensor]],
    ties: list[tuple[str, ...]],
    read_base: ReadBase,
) -> Changes:
    """Give every name of a tied group its own tensor as soon as one of them has changed."""
    untied = False
    for group in ties:
        changed = [name for name in group if name in makers]
        if not changed:
            continue
        if len(changed) == len(group):
            first, *others = (makers[name](name) for name in group)
            if all(torch.equal(first, other) for other in others):
                continue
        untied = True
        for name in group:
            makers.setdefault(name, read_base)
    return Changes(frozenset(makers), lambda name: makers[name](name), untied)
