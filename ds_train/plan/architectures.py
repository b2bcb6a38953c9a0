"""What the most used decoders are made of: a table of module names and shapes for each.

Read by `shapes.py`, never executed. A row is

    name   kind   shape   [bias=CONDITION]   [only=CONDITION]

`*` in a name stands for the number of a layer. Kinds: embedding, linear [out, in], conv1d [in, out]
(GPT-2's), norm (one vector), layernorm (a vector and a bias), router (a weight that is no linear
layer), experts (the parameter itself: all experts of a layer in one tensor). Dimensions are sums
and products of the names that `shapes.py` reads from config.json:

    d hidden   f feed-forward   v vocabulary   p positions   q all query heads   kv all key heads
    hd one head   e experts   fe an expert's feed-forward   fs the shared experts'
    ql, kl ranks of compressed queries and keys   qk, rope, up   DeepSeek's head sizes

A condition is a setting of the config, `moe` or `dense` (of the layer), `1`, or one of these with
`!` before it. `defaults` are what transformers takes for settings that config.json leaves out;
`tests/plan/test_shapes.py` compares both with transformers' own classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One `model_type`."""

    table: str
    """Rows as above, in the order of the model's own parameters within a layer."""
    defaults: dict[str, Any]
    aliases: dict[str, str] = field(default_factory=dict)
    """Setting -> its name in this config.json."""


_ATTENTION = """
model.layers.*.self_attn.q_proj  linear  q,d  bias=attention_bias
model.layers.*.self_attn.k_proj  linear  kv,d  bias=attention_bias
model.layers.*.self_attn.v_proj  linear  kv,d  bias=attention_bias
model.layers.*.self_attn.o_proj  linear  d,q  bias=attention_bias
"""
_QWEN2_ATTENTION = """
model.layers.*.self_attn.q_proj  linear  q,d  bias=1
model.layers.*.self_attn.k_proj  linear  kv,d  bias=1
model.layers.*.self_attn.v_proj  linear  kv,d  bias=1
model.layers.*.self_attn.o_proj  linear  d,q
"""
_HEAD_NORMS = """
model.layers.*.self_attn.q_norm  norm  hd
model.layers.*.self_attn.k_norm  norm  hd
"""
_MLP = """
model.layers.*.mlp.gate_proj  linear  f,d  bias=mlp_bias only=dense
model.layers.*.mlp.up_proj  linear  f,d  bias=mlp_bias only=dense
model.layers.*.mlp.down_proj  linear  d,f  bias=mlp_bias only=dense
"""
_EXPERTS = """
model.layers.*.mlp.experts.gate_up_proj  experts  e,2*fe,d  only=moe
model.layers.*.mlp.experts.down_proj  experts  e,d,fe  only=moe
model.layers.*.mlp.gate  router  e,d  only=moe
"""
_TWO_NORMS = """
model.layers.*.input_layernorm  norm  d
model.layers.*.post_attention_layernorm  norm  d
"""
_FOUR_NORMS = f"""{_TWO_NORMS}
model.layers.*.pre_feedforward_layernorm  norm  d
model.layers.*.post_feedforward_layernorm  norm  d
"""
_FIRST = "model.embed_tokens  embedding  v,d\n"
_LAST = "model.norm  norm  d\nlm_head  linear  v,d\n"

_LLAMA = _FIRST + _ATTENTION + _MLP + _TWO_NORMS + _LAST
_GEMMA2 = _FIRST + _ATTENTION + _MLP + _FOUR_NORMS + _LAST

_PHI = """
model.embed_tokens  embedding  v,d
model.layers.*.self_attn.q_proj  linear  q,d  bias=1
model.layers.*.self_attn.k_proj  linear  kv,d  bias=1
model.layers.*.self_attn.v_proj  linear  kv,d  bias=1
model.layers.*.self_attn.dense  linear  d,q  bias=1
model.layers.*.self_attn.q_layernorm  layernorm  hd  only=qk_layernorm
model.layers.*.self_attn.k_layernorm  layernorm  hd  only=qk_layernorm
model.layers.*.mlp.fc1  linear  f,d  bias=1
model.layers.*.mlp.fc2  linear  d,f  bias=1
model.layers.*.input_layernorm  layernorm  d
model.final_layernorm  layernorm  d
lm_head  linear  v,d  bias=1
"""
_PHI3 = f"""{_FIRST}
model.layers.*.self_attn.o_proj  linear  d,q
model.layers.*.self_attn.qkv_proj  linear  q+2*kv,d
model.layers.*.mlp.gate_up_proj  linear  2*f,d
model.layers.*.mlp.down_proj  linear  d,f
{_TWO_NORMS}{_LAST}"""
_GPT2 = """
transformer.wte  embedding  v,d
transformer.wpe  embedding  p,d
transformer.h.*.ln_1  layernorm  d
transformer.h.*.attn.c_attn  conv1d  d,3*d  bias=1
transformer.h.*.attn.c_proj  conv1d  d,d  bias=1
transformer.h.*.ln_2  layernorm  d
transformer.h.*.mlp.c_fc  conv1d  d,f  bias=1
transformer.h.*.mlp.c_proj  conv1d  f,d  bias=1
transformer.ln_f  layernorm  d
lm_head  linear  v,d
"""
_GPT_NEOX = """
gpt_neox.embed_in  embedding  v,d
gpt_neox.layers.*.input_layernorm  layernorm  d
gpt_neox.layers.*.post_attention_layernorm  layernorm  d
gpt_neox.layers.*.attention.query_key_value  linear  3*d,d  bias=attention_bias
gpt_neox.layers.*.attention.dense  linear  d,d  bias=attention_bias
gpt_neox.layers.*.mlp.dense_h_to_4h  linear  f,d  bias=1
gpt_neox.layers.*.mlp.dense_4h_to_h  linear  d,f  bias=1
gpt_neox.final_layer_norm  layernorm  d
lm_head  linear  v,d
"""
_OLMO2 = f"""{_FIRST}{_ATTENTION}
model.layers.*.self_attn.q_norm  norm  q
model.layers.*.self_attn.k_norm  norm  kv
{_MLP}
model.layers.*.post_attention_layernorm  norm  d
model.layers.*.post_feedforward_layernorm  norm  d
{_LAST}"""
_DEEPSEEK_V3 = f"""{_FIRST}
model.layers.*.self_attn.q_proj  linear  q,d  only=!q_lora_rank
model.layers.*.self_attn.q_a_proj  linear  ql,d  bias=attention_bias only=q_lora_rank
model.layers.*.self_attn.q_a_layernorm  norm  ql  only=q_lora_rank
model.layers.*.self_attn.q_b_proj  linear  q,ql  only=q_lora_rank
model.layers.*.self_attn.kv_a_proj_with_mqa  linear  kl+rope,d  bias=attention_bias
model.layers.*.self_attn.kv_a_layernorm  norm  kl
model.layers.*.self_attn.kv_b_proj  linear  up,kl
model.layers.*.self_attn.o_proj  linear  d,vh  bias=attention_bias
{_MLP}{_EXPERTS}
model.layers.*.mlp.shared_experts.gate_proj  linear  fs,d  only=moe
model.layers.*.mlp.shared_experts.up_proj  linear  fs,d  only=moe
model.layers.*.mlp.shared_experts.down_proj  linear  d,fs  only=moe
{_TWO_NORMS}{_LAST}"""

_OLD = {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False}
_GEMMA = {"tie_word_embeddings": True, "attention_bias": False, "head_dim": 256}
_MOE = {"mlp_only_layers": [], "decoder_sparse_step": 1}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_LLAMA, {**_OLD, "attention_bias": False, "mlp_bias": False}),
    "mistral": Architecture(_LLAMA, {**_OLD, "num_key_value_heads": 8}),
    "qwen2": Architecture(
        _FIRST + _QWEN2_ATTENTION + _MLP + _TWO_NORMS + _LAST, {**_OLD, "num_key_value_heads": 32}
    ),
    "qwen3": Architecture(
        _FIRST + _ATTENTION + _HEAD_NORMS + _MLP + _TWO_NORMS + _LAST,
        {**_OLD, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    ),
    "qwen3_moe": Architecture(
        _FIRST + _ATTENTION + _HEAD_NORMS + _MLP + _EXPERTS + _TWO_NORMS + _LAST,
        {
            **_OLD,
            **_MOE,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        {"num_experts": "num_local_experts"},
    ),
    "mixtral": Architecture(
        _FIRST + _ATTENTION + _EXPERTS + _TWO_NORMS + _LAST,
        {**_OLD, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "gemma": Architecture(_LLAMA, {**_GEMMA, "num_key_value_heads": 16}),
    "gemma2": Architecture(_GEMMA2, {**_GEMMA, "num_key_value_heads": 4}),
    "gemma3_text": Architecture(
        _FIRST + _ATTENTION + _HEAD_NORMS + _MLP + _FOUR_NORMS + _LAST,
        {**_GEMMA, "num_key_value_heads": 4},
    ),
    "phi": Architecture(_PHI, {**_OLD, "qk_layernorm": False}),
    "phi3": Architecture(_PHI3, _OLD),
    "gpt2": Architecture(
        _GPT2,
        {
            "n_inner": None,
            "n_positions": 1024,
            "tie_word_embeddings": True,
            "vocab_size": 50257,
            "attn_pdrop": 0.1,
            "resid_pdrop": 0.1,
        },
        {
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
        },
    ),
    "gpt_neox": Architecture(_GPT_NEOX, {"tie_word_embeddings": False, "attention_bias": True}),
    "olmo2": Architecture(
        _OLMO2, {"num_key_value_heads": None, "tie_word_embeddings": False, "attention_bias": False}
    ),
    "smollm3": Architecture(
        _LLAMA,
        {
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
    "deepseek_v3": Architecture(
        _DEEPSEEK_V3,
        {
            "tie_word_embeddings": False,
            "attention_bias": False,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
        },
        {"num_experts": "n_routed_experts"},
    ),
}
"""By `model_type` of config.json."""
