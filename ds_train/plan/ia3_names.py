"""Names of the layers that IA3 scales: keys, values and the feed-forward's second layers.

By the ends of module names, so that `model/ia3.py` can ask a model and `plan/` a table of shapes.
"""

from __future__ import annotations

KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "key_proj", "value_proj")
FUSED = {
    "query_key_value": "queries, keys and values",
    "qkv_proj": "queries, keys and values",
    "Wqkv": "queries, keys and values",
    "c_attn": "queries, keys and values",
    "kv_b_proj": "keys and values",
}
"""Layers that make several of them at once, and what one vector over all of it scales."""
SECOND_LAYERS = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo", "mlp.c_proj")


def attention_names(names: list[str]) -> list[str]:
    """Layers that make keys and values, or these with others in one; as endings."""
    return present(KEYS_AND_VALUES, names) or present(tuple(FUSED), names)


def present(endings: tuple[str, ...], names: list[str]) -> list[str]:
    """Those of the endings that some name has."""
    return [ending for ending in endings if any(ends(name, ending) for name in names)]


def ends(name: str, ending: str) -> bool:
    """Whether a module's name is `ending`, or ends with it after a dot."""
    return name == ending or name.endswith(f".{ending}")
