"""PiSSA: an adapter begins as the principal components of its base weights, which lose them.

So its first A and B are kept: to give a resumed run the base weights of its first start, and to
write the adapter as an ordinary LoRA over the untouched base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ds_train.config.adapter import AdapterConfig
from ds_train.model.adapter import ADAPTER_NAME


def initial_lora(model: nn.Module, config: AdapterConfig) -> dict[str, Tensor]:
    """PiSSA only: the first A and B, which its base weights have lost. Names as in the model."""
    if config.method != "lora" or config.init != "pissa" or config.path is not None:
        return {}
    return {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def restore_residual(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """PiSSA resume: make the base weights those of the first start, W - scale B0 A0.

    The decomposition has been computed anew while the model was built; where it came out
    otherwise (another machine), the difference is moved back into the base weight.
    """
    for name, module in model.named_modules():
        key = f"{name}.lora_A.{ADAPTER_NAME}.weight"
        if key not in saved:
            continue
        key_b = key.replace(".lora_A.", ".lora_B.")
        a_now = module.lora_A[ADAPTER_NAME].weight.detach().float()
        b_now = module.lora_B[ADAPTER_NAME].weight.detach().float()
        if torch.equal(a_now, saved[key]) and torch.equal(b_now, saved[key_b]):
            continue
        weight = module.get_base_layer().weight
        change = b_now @ a_now - saved[key_b].to(b_now) @ saved[key].to(a_now)
        weight.data += (module.scaling[ADAPTER_NAME] * change).to(weight.dtype)


def plain_lora(tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        first = initial.get(name.replace(".weight", f".{ADAPTER_NAME}.weight"))
        if first is None:
            result[name] = tensor
        elif ".lora_A." in name:
            result[name] = torch.cat([tensor, first.to(tensor)], dim=0)
        else:
            result[name] = torch.cat([tensor, -first.to(tensor)], dim=1)
    return result
