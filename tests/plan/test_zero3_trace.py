"""What stage 3 gathers, against numbers that DeepSpeed's communication logger counted.

Two ranks, Llama of 205,760 parameters in fp32 (4 layers, 64 wide), LoRA of rank 4: bytes and calls
of all_gather_into_tensor in a step of two micro-batches, as `benchmarks/plan_worker.py` logged them
with DeepSpeed 0.19.8. `tests/distributed/test_plan_traffic.py` counts some of them anew.
"""

from __future__ import annotations

from typing import Any

import pytest

from ds_train.config.adapter import AdapterConfig
from ds_train.plan.count import shape_of
from ds_train.plan.trainable import choose
from ds_train.plan.zero3_trace import play

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 259,
}


def zero(bucket: int, live: int, reuse: int, threshold: int = 0) -> dict[str, int]:
    return {
        "stage3_param_persistence_threshold": threshold,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": reuse,
    }


DEFAULT = zero(50_000_000, 1_000_000_000, 1_000_000_000)
NONE = zero(0, 0, 0)
SOME = zero(20_000, 80_000, 80_000)
COUNTED: list[tuple[str, dict[str, int], bool, int, int]] = [
    ("full", DEFAULT, False, 823_040, 2),
    ("full", NONE, False, 1_646_080, 156),
    ("full", NONE, True, 2_172_416, 220),
    ("full", SOME, False, 1_366_016, 58),
    ("full", zero(0, 0, 0, 5000), False, 1_347_712, 81),
    ("full", DEFAULT, True, 823_040, 2),
    ("lora", DEFAULT, False, 894_720, 2),
    ("lora", NONE, False, 1_690_112, 370),
    ("lora", NONE, True, 2_536_960, 548),
    ("lora", SOME, False, 1_384_960, 66),
    ("lora", zero(0, 0, 0, 5000), False, 1_317_248, 135),
    ("lora", DEFAULT, True, 1_584_896, 74),
]


@pytest.mark.parametrize(("method", "settings", "recompute", "logged", "calls"), COUNTED)
def test_as_counted(
    method: Any, settings: dict[str, int], recompute: bool, logged: int, calls: int
) -> None:
    trainable = choose(shape_of(CONFIG), AdapterConfig(method=method, r=4))
    found = play(trainable, settings, recompute=recompute)
    elements = 2 * found.elements + found.persistent_elements
    assert elements * 4 // 2 == logged
    assert 2 * found.calls + found.persistent_calls == calls


def test_a_large_model_is_gathered_twice_but_for_its_end() -> None:
    """8 billion parameters: what is needed again within a billion elements stays."""
    large = {
        **CONFIG, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    }  # fmt: skip
    trainable = choose(shape_of(large), AdapterConfig(method="full"))
    found = play(
        trainable, {**DEFAULT, "stage3_param_persistence_threshold": 100_000}, recompute=False
    )
    whole = trainable.num_elements
    assert 1.8 * whole < found.elements < 2 * whole
    # a whole output layer of 525 million is gathered beside what is kept
    assert found.peak_elements < 1e9 + 128256 * 4096
