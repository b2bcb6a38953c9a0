"""Without a curriculum and without stages, the order of rows is what it has always been."""

from __future__ import annotations

import hashlib

import pytest
from small_store import store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan

LENGTHS = [(7 * i * i + 3 * i) % 15 + 2 for i in range(101)]
SOURCES = [i % 3 for i in range(101)]


# Digests of 60 steps, made before blocks existed: changing one changes every recorded run.
@pytest.mark.parametrize(
    ("packing", "shuffle", "seed", "weights", "batch", "epochs", "expected"),
    [
        (True, True, 0, [1.0, 1.0, 1.0], 8, None, "a37c4062f3f63c70"),
        (False, True, 0, [1.0, 1.0, 1.0], 8, None, "e33c4dc93063c87a"),
        (True, True, 3, [0.5, 2.0, 1.3], 4, None, "5dc0169747413cc7"),
        (False, False, 0, [1.0, 0.1, 1.0], 16, None, "a6734d0dfd4519ed"),
        (True, True, 1, [1.0, 1.0, 1.0], 8, 2.5, "c2c46e142cb42b5f"),
    ],
)
def test_the_order_of_sixty_steps(
    packing: bool,
    shuffle: bool,
    seed: int,
    weights: list[float],
    batch: int,
    epochs: float | None,
    expected: str,
) -> None:
    sources = [{"path": "x.jsonl"}] * 3
    config = DataConfig.model_validate(
        {"train": sources, "max_length": 32, "packing": packing, "shuffle": shuffle}
    )
    rows = RowPlan.uniform(store_of_lengths(LENGTHS, SOURCES), config, seed, weights)
    plan = StepPlan(rows, batch, epochs)
    digest = hashlib.blake2b(digest_size=8)
    for step in range(60):
        for row in plan.rows(step):
            digest.update(repr(row.tolist()).encode())
        facts = (plan.num_tokens(step), plan.num_supervised(step), round(plan.epoch(step), 9))
        digest.update(repr(facts).encode())
    assert digest.hexdigest() == expected
