"""Bytes that a token leaves in a layer for the backward pass, and those that come up in it.

Counted from what each kind of module keeps for its gradient (as transformers 5 writes it and torch
2.13 differentiates it), w bytes an element of the model's dtype:

    linear layer       its input, once for all layers that share it; nothing where none of them
                       trains or is adapted; LoRA adds its r inner values, dropout its output and
                       mask, IA3 the values that it scales
    norm               input in fp32, one factor; the normalised values where its weight trains
    layernorm          input, mean and deviation
    attention          queries, keys and values with as many heads as the queries, output, one
                       number a head; with packing a row of the mask. Without a fused kernel the
                       scores: heads x length, several times. Where ranks share rows, all of it for
                       their heads and the whole row, without a mask, keys and values as many as
                       there are, and the output once more
    feed-forward       gated: gate, its activation, the other branch; else the activation's input

`tests/plan/test_activations.py` compares this with the tensors that autograd really keeps, and
`tests/plan/test_backward_peak.py` what comes up beside it.
"""

from __future__ import annotations

import math

from ds_train.config.run import RunConfig
from ds_train.plan.execution import Unit
from ds_train.plan.shapes import ModelShape, Module

EAGER = ("gemma2",)
"""Architectures whose attention transformers computes without a fused kernel (a soft cap)."""
_FP32_NORMS = ("gemma", "olmo")
"""Their norms multiply by the weight before they go back to the model's dtype."""
_PYTHON_GELU = ("gpt2", "phi")
"""Their activation is a formula in Python, each factor of which autograd keeps."""


class LayerCounter:
    """Bytes that one token leaves in a module."""

    def __init__(
        self, shape: ModelShape, config: RunConfig, w: int, length: int, *, on_cpu: bool
    ) -> None:
        self.shape, self.config, self.w, self.length = shape, config, w, length
        self.on_cpu = on_cpu
        attention = config.model.attn_implementation
        self.eager = attention == "eager" or (attention is None and shape.model_type in EAGER)
        self.share = config.engine.sequence_parallel_size
        self.shared = self.share > 1
        flash = "flash" in (attention or "")
        self.masked = config.data.packing and not flash and not self.shared

    def outside(self, unit: Unit) -> float:
        module = unit.parameters[0].module
        if module.kind in ("norm", "layernorm"):
            return self._norm(unit)
        return 0.0  # ids of the embeddings; the output layer is the loss's own account

    def layer(self, needed: list[Unit], units: list[Unit]) -> float:
        """All that one layer keeps."""
        if not needed:
            return 0.0
        total = sum(self._norm(unit) for unit in needed)
        stages: dict[int, list[Unit]] = {}
        for unit in units:
            stages.setdefault(unit.stage, []).append(unit)
        for stage in (1, 2, 4, 5):
            total += self._linear_inputs(stages.get(stage, []))
        total += self._attention() if any(one.stage == 2 for one in needed) else 0.0
        return total + self._feedforward(needed)

    def passing(self, needed: list[Unit], units: list[Unit]) -> float:
        """What comes up in the layer's backward pass beside all that it keeps, at its highest.

        That is in the feed-forward part, whose inner width is the largest, or in the attention
        where scores stand whole: what the feed-forward part has kept is gone by then.
        """
        if not needed:
            return 0.0
        late = self._feedforward(needed)
        for stage in (4, 5):
            late += self._linear_inputs([one for one in units if one.stage == stage])
        return max(self._passing_feedforward(needed), self._passing_attention() - late)

    def keeps_its_input(self, units: list[Unit]) -> bool:
        """Whether what a layer keeps first is its input itself, and not a copy of it in fp32."""
        norm = next((one.parameters[0].module for one in units if one.stage == 0), None)
        return self.w == 4 or norm is None or norm.kind == "layernorm"

    def passing_norm(self, unit: Unit) -> float:
        """What comes up in a norm's backward pass: five sums in fp32; one kernel in a layernorm."""
        module = unit.parameters[0].module
        if module.kind not in ("norm", "layernorm"):
            return 0.0
        return (20 if module.kind == "norm" else 2 * self.w) * module.shape[0]

    def _norm(self, unit: Unit) -> float:
        module, w = unit.parameters[0].module, self.w
        if module.kind not in ("norm", "layernorm"):
            return 0.0
        width = module.shape[0]
        if width == self.shape.head_dim and "self_attn" in module.name:
            heads = self.shape.num_kv_heads if "k_" in module.name.rsplit(".", 1)[1] else None
            repeats = heads or self.shape.num_heads
        else:
            repeats = 1
        if module.kind == "layernorm":
            return repeats * (w * width + 8)
        wide = any(one in self.shape.model_type for one in _FP32_NORMS)
        trained = unit.trains * width * (4 if wide else w)
        return repeats * (4 * (width + 1) + trained)

    def _linear_inputs(self, units: list[Unit]) -> float:
        """One input for all layers of a stage, where one of them needs it; adapters' own."""
        linear = [one for one in units if one.parameters[0].module.is_linear]
        adapted = [one for one in linear if one.trains]
        trained = [one for one in adapted if not one.name.endswith("ia3_l.default")]
        modules = {one.owner: one.parameters[0].module for one in trained}
        groups = _shared_inputs(list(modules.values()))
        total = sum(self.w * width for width in groups)
        # the attention's output is kept by the attention itself, and is the next layer's input,
        # unless ranks have exchanged it
        if trained and trained[0].stage == 2 and not self.eager and not self.shared:
            total -= self.w * max(groups, default=0)
        return total + sum(self._adapter(one) for one in adapted)

    def _adapter(self, unit: Unit) -> float:
        adapter, w = self.config.adapter, self.w
        module = unit.parameters[0].module
        if unit.name.endswith("lora_A.default"):
            dropped = (w + 1) * module.in_features if adapter.dropout else 0
            dora = w * module.out_features if adapter.use_dora else 0
            return w * unit.parameters[0].shape[0] + dropped + dora
        if unit.name.endswith("ia3_l.default"):
            return w * max(unit.parameters[0].shape)
        return 0.0

    def _attention(self) -> float:
        shape, w = self.shape, self.w
        queries, values = shape.attention_widths
        scores = shape.num_heads * self.length
        dropped = 0.0
        if shape.residual_dropout:  # masks of two sums; a byte an element on a GPU
            dropped = 2 * shape.hidden * (w if self.on_cpu else 1)
        if self.eager:
            # capped scores, probabilities in fp32, and these in the model's dtype
            return 3 * w * queries + scores * 8 + dropped
        if self.on_cpu and queries != values:
            return 4 * (2 * queries + values + scores) + w * values
        if self.on_cpu and shape.attention_dropout:
            dropped += 12 * scores
        # a fused projection is kept whole, as the values are a view of it, and rotated apart
        fused = any(one.name.endswith("query_key_value") for one in shape.modules)
        mask = w * self.length if self.masked else 0
        wide = 6 * queries if fused else 2 * (queries + values)
        if self.shared and queries == values and shape.head_dim <= 256:
            # without a mask kernels take fewer key heads than query heads as they are
            copies = self.share // math.gcd(self.share, shape.num_kv_heads)
            wide = 2 * queries + 2 * copies * shape.num_kv_heads * shape.head_dim
        return w * wide + 4 * shape.num_heads + mask + dropped

    def _feedforward(self, needed: list[Unit]) -> float:
        shape, w = self.shape, self.w
        names = {one.owner.rsplit(".", 1)[-1]: one for one in needed}
        if not any(one.stage in (4, 5) for one in needed):
            return 0.0
        if any(one.parameters[0].module.kind == "experts" for one in needed):
            return self._experts(needed)
        if "gate_proj" in names or "gate_up_proj" in names:
            return 3 * w * shape.feedforward
        return (4 if shape.model_type in _PYTHON_GELU else 1) * w * shape.feedforward

    def _passing_feedforward(self, needed: list[Unit]) -> float:
        """Gradients of the second layer's input and of both branches: three of the inner width.

        Without a gate two: of the activation's output and input; with LoRA three, as both ways
        through the second layer give a gradient of its input, and then their sum. That input
        itself, kept where the layer trains, is gone by then, unless IA3 scales it and has three
        beside it. With them stand the gradients of the layer's output and of what is added to it.
        """
        shape, w = self.shape, self.w
        names = {one.owner.rsplit(".", 1)[-1] for one in needed}
        second = [one for one in needed if one.stage == 5]
        wide = 2 * shape.hidden
        if any(one.parameters[0].module.kind == "experts" for one in needed):
            experts = next(one for one in needed if one.parameters[0].module.kind == "experts")
            inner = experts.parameters[0].module.shape[1] // 2
            return w * (2 * shape.experts_per_token * inner + wide)
        if not any(one.stage in (4, 5) for one in needed):
            return 0.0
        adapted = any(one.trains and one.name != one.owner for one in second)
        number = 3 if adapted or names & {"gate_proj", "gate_up_proj"} else 2
        number += "gate_up_proj" in names  # halves, and both in one
        number -= any(one.trains and not one.name.endswith("ia3_l.default") for one in second)
        return w * (number * shape.feedforward + wide)

    def _passing_attention(self) -> float:
        """Scores' gradients before and after their softmax; a kernel has none of them."""
        shape = self.shape
        queries, values = shape.attention_widths
        scores = shape.num_heads * self.length
        if self.eager:
            return (4 + self.w) * scores
        if self.on_cpu and queries != values:
            return 8 * scores
        return 4 * scores if self.on_cpu and shape.attention_dropout else 0

    def _experts(self, needed: list[Unit]) -> float:
        """Each token goes through some experts; their inputs are kept apart."""
        shape, w = self.shape, self.w
        experts = next(one for one in needed if one.parameters[0].module.kind == "experts")
        width = experts.parameters[0].module.shape[1] // 2
        routed = shape.experts_per_token * w * (2 * shape.hidden + 4 * width)
        # DeepSeek's router works in fp32
        routed += 4 * shape.hidden if shape.model_type == "deepseek_v3" else 0
        shared = [one for one in needed if "shared_experts.gate_proj" in one.owner]
        return routed + sum(3 * w * one.parameters[0].module.out_features for one in shared)


def _shared_inputs(modules: list[Module]) -> list[int]:
    """Widths of the different inputs: layers of the same width in a stage share one."""
    return sorted({module.in_features for module in modules})
