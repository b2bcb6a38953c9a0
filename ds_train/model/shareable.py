"""Which architectures rows can be shared with: what is known not to work, before it is tried."""

from __future__ import annotations

from typing import Any

from ds_train.plan.rules_sharing import heads_fault

SETTING = "engine.sequence_parallel_size"
_LAYERS = {"full_attention", "sliding_attention"}
_BY_LENGTH = {"dynamic", "longrope"}


def why_not_shared(text: Any, attention: str | None, size: int) -> str | None:
    """The message about an architecture whose rows `size` ranks can't share; None where they can.

    Args:
        text: the config of the decoder.
        attention: its implementation; None where it is not chosen yet.
    """
    if fault := heads_fault(text.num_attention_heads, size):
        return fault
    problem = None
    if attention is not None and attention != "sdpa" and "flash" not in attention:
        problem = (
            f"the attention {attention!r} needs a mask of all positions, which no rank holds; "
            "set model.attn_implementation: sdpa (or a flash one), or take another model."
        )
    elif mixers := sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS):
        problem = (
            f"{text.model_type} has layers of type {', '.join(mixers)}, which mix positions in "
            f"another way than attention; set {SETTING}: 1."
        )
    elif kinds := sorted(_rope_types(getattr(text, "rope_parameters", None)) & _BY_LENGTH):
        problem = (
            f"rotary positions of type {', '.join(kinds)} follow the longest position at hand, "
            f"which differs between the ranks of a row; set {SETTING}: 1."
        )
    return None if problem is None else f"{SETTING} = {size}: {problem}"


def _rope_types(parameters: Any) -> set[str]:
    """Also of architectures with parameters for each kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    own = {str(parameters["rope_type"])} if "rope_type" in parameters else set()
    return own.union(*(_rope_types(value) for value in parameters.values()))
