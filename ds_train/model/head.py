"""The output layer of a causal LM, turned into one that can return the loss instead of logits.

`LossHead` takes over the `forward` of the model's own output layer. Given labels, calling the
model yields the sum of the token losses; without, it yields logits as ever. The layer stays
where it is, with its parameter names, so that checkpoints keep their keys, tied weights stay
tied, PEFT's wrappers keep working, and ZeRO-3 gathers the weight exactly while it is used.

Whatever the architecture does to its logits afterwards (Gemma's soft cap, the scale of Cohere
and Granite) moves into the head too, and is switched off in the model; it must not be applied
to a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ds_train.ops.reference import (
    IGNORE,
    cap_logits,
    cross_entropy_sum,
    linear_cross_entropy_sum,
)


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits after the output layer."""

    softcap: float | None = None
    scale: float = 1.0


class LossHead:
    """The output layer of `model` in its second role: token losses instead of logits."""

    def __init__(self, model: Any) -> None:
        self.layer = model.get_output_embeddings()
        self.transform = _take_logit_transform(model)
        self.labels: Tensor | None = None
        self.num_correct: Tensor | None = None
        self._project = self.layer.forward
        self.layer.forward = self.forward

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [b, t, v], or the loss sum as [1, 1, 1] when labels are set.

        The hidden states [b, p + t, d] may have p virtual tokens before the t of the labels.
        """
        if self.labels is None:
            return cap_logits(self._project(hidden), self.transform.softcap, self.transform.scale)
        hidden = hidden[:, -self.labels.shape[1] :]
        loss_sum, self.num_correct = self._loss_sum(hidden, self.labels)
        return loss_sum.view(1, 1, 1)

    def _loss_sum(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        softcap, scale = self.transform.softcap, self.transform.scale
        if type(self.layer) is nn.Linear:
            return linear_cross_entropy_sum(
                hidden,
                self.layer.weight,
                labels,
                bias=self.layer.bias,
                softcap=softcap,
                scale=scale,
            )
        # A wrapped layer (LoRA, modules_to_save, quantised): its own forward makes the logits.
        supervised = labels != IGNORE
        logits = self._project(hidden[supervised])
        return cross_entropy_sum(cap_logits(logits, softcap, scale), labels[supervised])


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

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model  # PreTrainedModel or PeftModel
        self.head = LossHead(model)

    def forward(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of losses over supervised positions, and how many argmaxes are right.

        Args:
            input_ids: [b, t]; labels: [b, t], already shifted, IGNORE where nothing is learned.
            position_ids: [b, t], from 0 again at each document of a packed row; the attention
                mask is made from it. None where PEFT numbers positions itself (virtual tokens).

        Returns:
            loss_sum [] fp32, num_correct [] int64.
        """
        self.head.labels = labels
        try:
            output = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        finally:
            self.head.labels = None
        assert self.head.num_correct is not None
        return output.logits.sum(), self.head.num_correct
