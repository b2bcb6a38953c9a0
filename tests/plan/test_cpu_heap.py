"""What malloc keeps of freed memory: when the plan counts it, and that it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_activations import sizes_of
from transformers import AutoConfig

from ds_train.config.run import RunConfig
from ds_train.plan.cluster import Cluster
from ds_train.plan.count import shape_of
from ds_train.plan.cpu_heap import GIVE_BACK, OF_ACTIVATIONS, keeps_freed_memory
from ds_train.plan.estimate import estimate
from ds_train.plan.memory import Memory


@pytest.mark.parametrize(
    ("environment", "keeps"),
    [
        ({}, True),
        (GIVE_BACK, False),
        ({"MALLOC_MMAP_THRESHOLD_": "8388608"}, True),
        ({"MALLOC_MMAP_THRESHOLD_": "a lot"}, True),
        ({"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"}, False),
        ({"LD_PRELOAD": "/opt/lib/libtcmalloc_minimal.so.4:/opt/lib/libiomp5.so"}, False),
        ({"LD_PRELOAD": "/opt/lib/libiomp5.so"}, True),
    ],
)
def test_which_processes_keep_what_they_free(environment: dict[str, str], keeps: bool) -> None:
    assert keeps_freed_memory(environment) is keeps


def memory(
    make: Callable[..., RunConfig], cluster: Cluster, length: int = 2048, **engine: Any
) -> Memory:
    """A plan of a small Llama on a cluster."""
    config = make(
        model={"name_or_path": "x", "dtype": "fp32", "gradient_checkpointing": True},
        data={"max_length": length},
        engine=engine,
    )
    raw = AutoConfig.for_model("llama", **sizes_of("llama", 3)).to_dict()
    return estimate(config, shape_of(raw), cluster).memory


def test_holes_are_those_of_activations_also_where_they_are_recomputed(
    make: Callable[..., RunConfig],
) -> None:
    keeping = Cluster("here", 1, 2, is_cpu=True)
    giving = replace(keeping, keeps_freed=False)
    kept, given = memory(make, keeping, preset="zero2"), memory(make, giving, preset="zero2")
    whole = kept.activations.at_the_loss(recompute=False)
    assert kept.peak - given.peak == round(OF_ACTIVATIONS * whole)
    assert {one.name for one in kept.terms} - {one.name for one in given.terms} == {
        "freed, kept by malloc"
    }


def test_gathered_weights_leave_holes_too(make: Callable[..., RunConfig]) -> None:
    cluster = Cluster("here", 1, 2, is_cpu=True)
    sharded = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    holes = [
        next(one.num_bytes for one in plan.terms if one.name == "freed, kept by malloc")
        for plan in (
            memory(make, cluster, preset="zero2"),
            memory(make, cluster, preset="zero3", overrides=sharded),
        )
    ]
    assert holes[1] > holes[0]


def test_large_blocks_go_back_by_themselves(make: Callable[..., RunConfig]) -> None:
    """[tokens, hidden] in fp32 above 32 MiB."""
    plan = memory(make, Cluster("here", 1, 2, is_cpu=True), length=1 << 20)
    assert "freed, kept by malloc" not in {one.name for one in plan.terms}


def test_a_gpu_has_none_of_it(make: Callable[..., RunConfig]) -> None:
    terms = memory(make, Cluster("there", 1, 2, gpu_memory=80 << 30), preset="zero2").terms
    assert "freed, kept by malloc" not in {one.name for one in terms}
