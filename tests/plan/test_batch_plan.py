"""The arithmetic of one step."""

from __future__ import annotations

import pytest

from ds_train.errors import ConfigError
from ds_train.plan.batch import BatchPlan, batch_arithmetic


@pytest.mark.parametrize(
    ("train", "world", "expected"),
    [
        ({"global_batch_size": 32, "per_device_train_batch_size": 4}, 2, (32, 4, 4)),
        ({"global_batch_size": 32, "per_device_train_batch_size": 4}, 8, (32, 4, 1)),
        ({"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}, 4, (24, 2, 3)),
        ({"per_device_train_batch_size": 5}, 3, (15, 5, 1)),
        ({"global_batch_size": 1}, 1, (1, 1, 1)),
    ],
)
def test_arithmetic(make, train, world, expected) -> None:
    batch = batch_arithmetic(make(train=train), world)
    assert (batch.global_batch_size, batch.micro_batch_size, batch.accumulation_steps) == expected
    assert batch.world_size == world
    assert batch.global_batch_size == world * batch.micro_batch_size * batch.accumulation_steps


def test_sum_in_words() -> None:
    assert str(BatchPlan(32, 4, 4, 2)) == (
        "2 processes x 4 rows x 4 micro-batches = 32 rows per step"
    )
    assert str(BatchPlan(1, 1, 1, 1)) == "1 process x 1 row x 1 micro-batch = 1 row per step"


@pytest.mark.parametrize(
    ("global_batch", "micro", "world", "message"),
    [
        (
            30,
            4,
            2,
            "train.global_batch_size = 30 does not divide into 2 processes x 4 rows = 8. "
            "Nearest that do: 24 or 32; or set train.per_device_train_batch_size to 3 or 5.",
        ),
        (
            7,
            1,
            2,
            "train.global_batch_size = 7 does not divide into 2 processes x 1 row = 2. "
            "Nearest that do: 6 or 8; no per_device_train_batch_size divides it over 2 processes. "
            "Or set train.allow_empty_rows, which adds 1 row without content to each step.",
        ),
        (
            4,
            8,
            1,
            "train.global_batch_size = 4 does not divide into 1 process x 8 rows = 8. "
            "Nearest that do: 8; or set train.per_device_train_batch_size to 4.",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(
    make, global_batch, micro, world, message
) -> None:
    config = make(train={"global_batch_size": global_batch, "per_device_train_batch_size": micro})
    with pytest.raises(ConfigError) as caught:
        batch_arithmetic(config, world)
    assert str(caught.value) == message


def test_suggestions_do_divide(make) -> None:
    config = make(train={"global_batch_size": 48, "per_device_train_batch_size": 3})
    assert batch_arithmetic(config, 4).accumulation_steps == 4


SHARED = {"sequence_parallel_size": 2}


def test_ranks_that_share_rows_count_as_one(make) -> None:
    train = {"global_batch_size": 32, "per_device_train_batch_size": 4}
    batch = batch_arithmetic(make(train=train, engine=SHARED), 8)
    assert (batch.dp_size, batch.accumulation_steps) == (4, 2)
    assert str(batch) == (
        "4 groups of 2 processes that share rows x 4 rows x 2 micro-batches = 32 rows per step"
    )


@pytest.mark.parametrize(
    ("train", "world", "message"),
    [
        (
            {},
            9,
            "engine.sequence_parallel_size = 2 must divide the 9 processes; set it to 1 or 3 or 9, "
            "or start another number of processes.",
        ),
        (
            {"global_batch_size": 5, "per_device_train_batch_size": 4},
            4,
            "train.global_batch_size = 5 does not divide into 2 groups of 2 processes that share "
            "rows x 4 rows = 8. Nearest that do: 8; no per_device_train_batch_size divides it over "
            "2 groups of 2 processes that share rows. Or set train.allow_empty_rows, which adds "
            "3 rows without content to each step.",
        ),
    ],
)
def test_groups_that_do_not_divide_are_refused(make, train, world, message) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_arithmetic(make(train=train, engine=SHARED), world)
    assert caught.value.faults == [message]
