"""The output layer of a causal LM, turned into one that can return the loss instead of logits.

`LossHead` takes over the `forward` of the model's own output layer. Given labels, calling the
model yields token losses, or their sum, and no logits ever stand whole in memory; without, it
yields logits as ever. The layer stays where it is, with its parameter names, so that checkpoints
keep their keys, tied weights stay tied, PEFT's wrappers keep working, and ZeRO-3 gathers the
weight exactly while it is used.

Whatever the architecture does to its logits afterwards (Gemma's soft cap, the scale of Cohere
and Granite) moves into the head too, and is switched off in the model; it must not be applied
to a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from ds_train.ops import TokenStats, linear_cross_entropy, linear_logprobs
from ds_train.ops.implementations import Implementation, choose
from ds_train.ops.reference import IGNORE, cap_logits, reference_losses


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits after the output layer."""

    softcap: float | None = None
    scale: float = 1.0


Wanted = Literal["loss_sum", "token_losses", "logprobs"]


@dataclass(frozen=True)
class Asked:
    """What a forward pass shall return in place of logits."""

    labels: Tensor
    """[b, t], IGNORE where nothing is learned"""
    num_supervised: int | None
    """how many labels are not IGNORE, if the host knows"""
    wanted: Wanted
    """the sum of the losses; each token's loss, and whether its argmax is right; or each token's
    log-probability, which losses of another kind are made of"""
    at: tuple[Tensor, Tensor] | None = None
    """rows and columns (negative: from the right end) [n] of labels that are [1, n] then"""


class LossHead:
    """The output layer of `model` in its second role: token losses instead of logits."""

    def __init__(self, model: Any, implementation: Implementation = "auto") -> None:
        self.layer = _innermost(model.get_output_embeddings())
        self.implementation = implementation
        self.transform = _take_logit_transform(model)
        self.asked: Asked | None = None
        self.correct: Tensor | None = None
        self._project = self.layer.forward
        self.layer.forward = self.forward

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [b, t, v]; when a loss was asked for, [b, t, 1], or its sum as [1, 1, 1].

        The hidden states [b, p + t, d] may have p virtual tokens before the t of the labels.
        """
        if self.asked is None:
            return cap_logits(self._project(hidden), self.transform.softcap, self.transform.scale)
        if self.asked.at is not None:
            hidden = hidden[self.asked.at][None]
        else:
            hidden = hidden[:, -self.asked.labels.shape[1] :]
        if self._why_not_fused() is not None:
            return self._through_logits(hidden, self.asked)
        return self._fused_loss(*self._operands(hidden), self.asked)

    def describe(self) -> str:
        """Which implementation makes the loss, and why; compiled now if that was not done yet."""
        if (why := self._why_not_fused()) is not None:
            return f"from the logits of supervised positions, as the output layer {why}"
        weight = self._plain().weight
        name, reason = choose(self.implementation, weight.device, weight.dtype)
        return f"{name} ({reason})"

    def _plain(self) -> Any:
        """The linear layer itself, below LoRA's wrapper if there is one."""
        return self.layer.base_layer if isinstance(self.layer, LoraLinear) else self.layer

    def _why_not_fused(self) -> str | None:
        """Why the layer's own forward has to make the logits, or None."""
        if type(self._plain()) is not nn.Linear:
            return f"is a {type(self._plain()).__name__}"
        if not isinstance(self.layer, LoraLinear):
            return None
        if self.layer.lora_variant or self.layer.merged or len(self.layer.active_adapters) != 1:
            return "has an adapter that is more than plain LoRA"
        if any(hasattr(parameter, "ds_id") for parameter in self.layer.parameters()):
            return "has LoRA and is partitioned by ZeRO-3, which gathers the parts one by one"
        return None

    def _operands(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and weight whose product is the logits; LoRA is merged for this call.

        x W^T + (s dropout(x) A^T) B^T = [x, s dropout(x) A^T] [W, B]^T
        """
        weight = self._plain().weight
        if not isinstance(self.layer, LoraLinear) or self.layer.disable_adapters:
            return hidden, weight
        (name,) = self.layer.active_adapters
        a: Any = self.layer.lora_A[name]
        b: Any = self.layer.lora_B[name]
        low = a(self.layer.lora_dropout[name](hidden.to(a.weight.dtype)))
        low = (low * self.layer.scaling[name]).to(hidden.dtype)
        return torch.cat([hidden, low], dim=-1), torch.cat(
            [weight, b.weight.to(weight.dtype)], dim=1
        )

    def _fused_loss(self, hidden: Tensor, weight: Tensor, asked: Asked) -> Tensor:
        common: dict[str, Any] = {
            "bias": self._plain().bias,
            "softcap": self.transform.softcap,
            "logit_scale": self.transform.scale,
            "num_supervised": asked.num_supervised,
            "implementation": self.implementation,
        }
        if asked.wanted == "logprobs":
            logprobs = linear_logprobs(hidden, weight, asked.labels, **common)
            assert isinstance(logprobs, Tensor)
            return logprobs.unsqueeze(-1)
        per_token = asked.wanted == "token_losses"
        result = linear_cross_entropy(
            hidden,
            weight,
            asked.labels,
            reduction="none" if per_token else "sum",
            return_stats=per_token,
            **common,
        )
        if not isinstance(result, tuple):
            return result.view(1, 1, 1)
        loss, stats = result
        assert isinstance(stats, TokenStats)
        self.correct = stats.correct
        return loss.unsqueeze(-1)

    def _through_logits(self, hidden: Tensor, asked: Asked) -> Tensor:
        """The layer's own forward makes logits, of supervised positions only."""
        supervised = asked.labels != IGNORE
        labels = asked.labels[supervised]
        logits = cap_logits(
            self._project(hidden[supervised]), self.transform.softcap, self.transform.scale
        )
        losses = reference_losses(logits.float(), labels)
        if asked.wanted == "loss_sum":
            return losses.sum().view(1, 1, 1)
        all_losses = losses.new_zeros(supervised.shape).masked_scatter(supervised, losses)
        if asked.wanted == "logprobs":
            return -all_losses.unsqueeze(-1)
        right = logits.argmax(dim=-1) == labels
        self.correct = torch.zeros_like(supervised).masked_scatter(supervised, right)
        return all_losses.unsqueeze(-1)


def _innermost(layer: Any) -> Any:
    """The layer that is called for logits: below `modules_to_save`, its trained copy."""
    if isinstance(layer, ModulesToSaveWrapper):
        (name,) = layer.active_adapters
        return layer.modules_to_save[name]
    return layer


def _take_logit_transform(model: Any) -> LogitTransform:
    """What the model does to its logits; from now on the head does it."""
    inner = getattr(model, "get_base_model", lambda: model)()
    config = inner.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = 1.0
    if softcap is not None:
        config.final_logit_softcapping = None
    if (cohere_scale := getattr(config, "logit_scale", None)) is not None:
        scale = float(cohere_scale)
        config.logit_scale = 1.0
        if hasattr(inner, "logit_scale"):
            inner.logit_scale = 1.0
    if (granite_scale := getattr(config, "logits_scaling", None)) is not None:
        scale = 1.0 / float(granite_scale)
        config.logits_scaling = 1.0
    return LogitTransform(softcap, scale)


class LanguageModel(nn.Module):
    """A Hugging Face (or PEFT) causal LM that returns the loss of a batch."""

    def __init__(self, model: Any, implementation: Implementation = "auto") -> None:
        super().__init__()
        self.model: Any = model  # PreTrainedModel or PeftModel
        self.head = LossHead(model, implementation)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        num_supervised: int | None = None,
        per_token: bool = False,
        logprobs: bool = False,
        places: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Sum of losses over supervised positions; or each position's loss, or log-probability.

        Args:
            input_ids: [b, t]; labels: [b, t], already shifted, IGNORE where nothing is learned.
            position_ids: [b, t], from 0 again at each document of a packed row; the attention
                mask is made from it. None where PEFT numbers positions itself (virtual tokens).
            num_supervised: how many labels are not IGNORE, so that no GPU has to be asked.
            per_token: for evaluation; logprobs: for losses that are made of them.
            places: [2, n], rows and columns of input_ids, each with a label of its own in labels
                [n]; a place may come more than once. Results are [n] then.
            attention_mask: [b, 1, t, t] in place of the causal one, as the attention takes it.

        Returns:
            (loss_sum [] fp32, None); or `per_token` (losses [b, t] fp32, zero where ignored,
            correct [b, t] bool: the argmax is the label); or `logprobs` ([b, t] fp32, zero where
            ignored; None).
        """
        wanted: Wanted = "token_losses" if per_token else "logprobs" if logprobs else "loss_sum"
        at = None if places is None else (places[0], places[1] - input_ids.shape[1])
        labels = labels if places is None else labels[None]
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        self.head.asked = Asked(labels, num_supervised, wanted, at)
        try:
            output = self.model(**inputs, use_cache=False)
        finally:
            self.head.asked = None
        if wanted == "loss_sum":
            return output.logits.sum(), None
        correct, self.head.correct = self.head.correct, None
        values = output.logits[..., 0]
        if places is None:
            return values, correct
        return values[0], None if correct is None else correct[0]
