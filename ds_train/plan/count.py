"""The modules of a model from its config.json alone.

`architectures.py` holds the table; here a row of it becomes modules. Counts are equal to those of
the transformers model (`tests/plan/test_shapes.py` builds both).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ds_train.errors import ModelError
from ds_train.plan.architectures import ARCHITECTURES, Architecture
from ds_train.plan.shapes import ModelShape, Module


class _Settings:
    """config.json with what it leaves out."""

    def __init__(self, given: Mapping[str, Any], architecture: Architecture) -> None:
        self._given, self._architecture = given, architecture

    def get(self, name: str, default: Any = None) -> Any:
        for key in (self._architecture.aliases.get(name, name), name):
            if key in self._given:
                return self._given[key]
        for key in (name, self._architecture.aliases.get(name, name)):
            if key in self._architecture.defaults:
                return self._architecture.defaults[key]
        return default

    def number(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            shown = "is missing" if value is None else f"= {value!r}"
            raise ModelError(
                f"config.json: {name} {shown}: a whole number of at least 1 is needed to count "
                f"the parameters of model_type {self._given.get('model_type')}; copy it again."
            )
        return value


def known(model_type: object) -> bool:
    """Whether the table has this architecture."""
    return model_type in ARCHITECTURES


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The modules of the model that `config` (a config.json) describes.

    Raises:
        ModelError: an architecture that is not in the table, or a setting that is missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(_unknown(model_type))
    architecture = ARCHITECTURES[model_type]
    settings = _Settings(config, architecture)
    dims = _dimensions(settings, model_type)
    is_moe = _moe_layers(settings, model_type)
    modules = tuple(_modules(architecture.table, settings, dims, is_moe))
    return ModelShape(
        model_type=model_type,
        modules=modules,
        tied=bool(settings.get("tie_word_embeddings", False)),
        hidden=dims["d"],
        vocab=dims["v"],
        num_layers=settings.number("num_hidden_layers"),
        num_heads=settings.number("num_attention_heads"),
        num_kv_heads=dims["kv"] // dims["hd"],
        head_dim=dims["hd"],
        feedforward=dims["f"],
        num_experts=dims["e"],
        experts_per_token=int(settings.get("num_experts_per_tok") or 0),
        attention_dropout=bool(settings.get("attn_pdrop")),
        residual_dropout=bool(settings.get("resid_pdrop")),
        max_positions=settings.get("max_position_embeddings"),
    )


def _unknown(model_type: object) -> str:
    near = get_close_matches(str(model_type), list(ARCHITECTURES), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f'config.json: model_type = "{model_type}": its parameters can\'t be counted from the '
        f"config alone, which is known of {', '.join(sorted(ARCHITECTURES))}.{hint} Put the "
        "model's safetensors files beside it, whose headers say the sizes, or measure with "
        "ds-train plan --measure."
    )


def _dimensions(settings: _Settings, model_type: str) -> dict[str, int]:
    hidden, heads = settings.number("hidden_size"), settings.number("num_attention_heads")
    head_dim = hidden // heads
    if model_type not in ("gpt2", "gpt_neox", "phi"):  # these never read it
        head_dim = int(settings.get("head_dim") or head_dim)
    key_heads = int(settings.get("num_key_value_heads") or heads)
    feedforward = settings.get("intermediate_size") or 4 * hidden
    dims = {
        "d": hidden,
        "f": int(feedforward),
        "v": settings.number("vocab_size"),
        "p": int(settings.get("max_position_embeddings") or 0),
        "hd": head_dim,
        "q": heads * head_dim,
        "kv": key_heads * head_dim,
        "e": int(settings.get("num_experts") or settings.get("num_local_experts") or 0),
    }
    dims["fe"] = int(settings.get("moe_intermediate_size") or feedforward)
    dims["fs"] = dims["fe"] * int(settings.get("n_shared_experts") or 0)
    if model_type == "deepseek_v3":
        dims |= _deepseek(settings, heads)
    return dims


def _deepseek(settings: _Settings, heads: int) -> dict[str, int]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    nope, rope = settings.number("qk_nope_head_dim"), settings.number("qk_rope_head_dim")
    values = settings.number("v_head_dim")
    return {
        "hd": rope,  # what transformers calls head_dim here
        "kv": int(settings.get("num_key_value_heads") or heads) * rope,
        "q": heads * (nope + rope),
        "ql": int(settings.get("q_lora_rank") or 0),
        "kl": settings.number("kv_lora_rank"),
        "rope": rope,
        "up": heads * (nope + values),
        "vh": heads * values,
    }


def _moe_layers(settings: _Settings, model_type: str) -> Callable[[int], bool]:
    """Which layers have experts."""
    if model_type == "mixtral":
        return lambda layer: True
    if model_type == "deepseek_v3":
        first = int(settings.get("first_k_dense_replace") or 0)
        return lambda layer: layer >= first
    if model_type == "qwen3_moe":
        dense = set(settings.get("mlp_only_layers") or [])
        every = int(settings.get("decoder_sparse_step") or 1)
        return lambda layer: layer not in dense and (layer + 1) % every == 0
    return lambda layer: False


def _modules(
    table: str, settings: _Settings, dims: Mapping[str, int], is_moe: Callable[[int], bool]
) -> Iterator[Module]:
    """Rows before the layers, each layer's rows, rows after them."""
    rows = [line.split() for line in table.splitlines() if line.strip()]
    places = [number for number, row in enumerate(rows) if "*" in row[0]]
    first, last = places[0], places[-1] + 1

    def build(some: Iterable[list[str]], layer: int | None) -> Iterator[Module]:
        for name, kind, shape, *options in some:
            conditions = dict(option.split("=") for option in options)
            moe = layer is not None and is_moe(layer)
            if not _holds(conditions.get("only", "1"), settings, moe=moe):
                continue
            sizes = tuple(_size(text, dims) for text in shape.split(","))
            has_bias = kind == "layernorm" or _holds(conditions.get("bias", "0"), settings, moe=moe)
            width = sizes[-1] if kind in ("layernorm", "conv1d") else sizes[0]
            yield Module(
                name.replace("*", str(layer)), kind, sizes, width if has_bias else 0, layer
            )

    yield from build(rows[:first], None)
    for layer in range(settings.number("num_hidden_layers")):
        yield from build(rows[first:last], layer)
    yield from build(rows[last:], None)


def _holds(condition: str, settings: _Settings, *, moe: bool) -> bool:
    if condition.startswith("!"):
        return not _holds(condition[1:], settings, moe=moe)
    if condition in ("0", "1"):
        return condition == "1"
    if condition in ("moe", "dense"):
        return moe == (condition == "moe")
    return bool(settings.get(condition, False))


def _size(text: str, dims: Mapping[str, int]) -> int:
    """`q+2*kv` with the dimensions put in."""
    return sum(
        math.prod(int(part) if part.isdigit() else dims[part] for part in term.split("*"))
        for term in text.split("+")
    )
