"""Every module of a model with the shapes of its parameters: what a plan is made of.

`count.py` makes it from config.json, `headers.py` from the weight files' headers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A module with parameters of its own."""

    name: str
    kind: str
    """embedding, linear, conv1d, norm, layernorm, router, experts; `other` when counted only."""
    shape: Shape
    """Of its weight."""
    bias: int = 0
    """Elements of its bias."""
    layer: int | None = None
    """Number of the decoder layer that it stands in."""

    @property
    def tensors(self) -> list[tuple[str, Shape]]:
        """Name and shape of its parameters, as in `named_parameters()`."""
        weight = self.name if self.kind in ("experts", "other") else f"{self.name}.weight"
        found = [(weight, self.shape)]
        return [*found, (f"{self.name}.bias", (self.bias,))] if self.bias else found

    @property
    def num_elements(self) -> int:
        """Elements of weight and bias."""
        return math.prod(self.shape) + self.bias

    @property
    def is_linear(self) -> bool:
        """Whether PEFT sees a linear layer in it."""
        return self.kind in ("linear", "conv1d")

    @property
    def out_features(self) -> int:
        """Of a linear layer."""
        return self.shape[1] if self.kind == "conv1d" else self.shape[0]

    @property
    def in_features(self) -> int:
        """Of a linear layer."""
        return self.shape[0] if self.kind == "conv1d" else self.shape[1]


@dataclass(frozen=True)
class ModelShape:
    """A decoder, module by module."""

    model_type: str
    modules: tuple[Module, ...]
    """In the model's order; the output layer too where its weight is that of the embeddings."""
    tied: bool
    """Output layer and embeddings share one weight."""
    hidden: int
    vocab: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feedforward: int
    """Width of a dense layer's feed-forward."""
    num_experts: int
    experts_per_token: int
    max_positions: int | None
    attention_dropout: bool = False
    """Of the architecture itself; GPT-2 has it."""
    residual_dropout: bool = False
    remark: str = ""
    """About how it was counted; empty for the table."""

    @property
    def own_modules(self) -> tuple[Module, ...]:
        """Those that own their parameters: without a tied output layer (but its bias)."""
        output = self.output
        if not self.tied or output is None:
            return self.modules
        rest = [one for one in self.modules if one is not output]
        if output.bias:
            rest.append(Module(f"{output.name}.bias", "other", (output.bias,)))
        return tuple(rest)

    @property
    def output(self) -> Module | None:
        """The output layer."""
        last = self.modules[-1]
        return last if last.kind == "linear" and last.shape[0] == self.vocab else None

    @property
    def attention_widths(self) -> tuple[int, int]:
        """Of all heads' queries, and of their values: DeepSeek's differ."""
        wide = self.num_heads * self.head_dim
        for module in self.modules:
            if module.name.endswith("kv_b_proj"):
                made = next(one for one in self.modules if one.name.endswith("self_attn.o_proj"))
                queries = next(
                    one for one in self.modules if one.name.endswith((".q_b_proj", ".q_proj"))
                )
                return queries.out_features, made.in_features
        return wide, wide

    @property
    def embeddings(self) -> Module:
        """The token embeddings."""
        return self.modules[0]

    @property
    def tensors(self) -> list[tuple[str, Shape]]:
        """Every parameter once."""
        return [pair for module in self.own_modules for pair in module.tensors]

    @property
    def num_parameters(self) -> int:
        """All of them, a tied weight once."""
        return sum(module.num_elements for module in self.own_modules)

    def by_kind(self) -> dict[str, int]:
        """Elements of each kind of module."""
        counts: dict[str, int] = {}
        for module in self.own_modules:
            counts[module.kind] = counts.get(module.kind, 0) + module.num_elements
        return counts


def layer_number(name: str) -> int | None:
    """The first number in a module's name: that of its layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
