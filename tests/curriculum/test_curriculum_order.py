"""The order under a curriculum is a function of the step: ranks, resume, prefetch, tiny data."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, hardest, order_of, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import store_of_lengths

from ds_train.data.batch import step_batches
from ds_train.data.loader import prefetch
from ds_train.data.share import share_of_rank

LENGTHS = [(7 * i * i + 3 * i) % 15 + 2 for i in range(300)]
VALUES = np.arange(300)
MIXTURE = {"stages": [{"until": 0.5, "weights": {"s0": 1, "s1": 3}}, {"weights": {"s0": 1}}]}
KINDS: dict[str, dict[str, Any]] = {
    "easy_to_hard": {},
    "hard_to_easy": {"order": "hard_to_easy"},
    "random_pool": {"order": "random_pool"},
    "value": {"normalise": "value", "pacing": {"type": "root", "start": 0.2}},
    "levels": {"pacing": {"type": "discrete", "levels": [0.2, 0.6, 1.0], "at": [0.3, 0.6]}},
    "cover": {"cover": True},
    "window": {"window": 40},
    "stratified": {"stratify_by": "source"},
}
SOURCES = [i % 3 // 2 for i in range(300)]  # two thirds, one third


def _plan(kind: str, packing: bool = False, **train: Any) -> Any:
    curriculum, data = KINDS.get(kind), {"packing": packing}
    if kind.startswith("mixture"):
        data["mixture"] = MIXTURE
        curriculum = {} if kind == "mixture_of_pools" else None
    train = train or {"max_steps": 50}
    config = config_of(curriculum, data=data, train=train, num_sources=2)
    return plan_of(config, LENGTHS, 24, values=VALUES, sources=SOURCES)


ALL = [*KINDS, "mixture", "mixture_of_pools"]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_ranks_share_a_step_and_nothing_else(kind: str, packing: bool) -> None:
    plan, store = _plan(kind, packing), store_of_lengths(LENGTHS)
    for step in (0, 1, 7, 24, 25, 49):
        rows = plan.rows(step)
        expected = sorted(tuple(row.tolist()) for row in rows)
        assert len(rows) == 24
        for world_size in (1, 2, 3, 4, 8):
            union = []
            for rank in range(world_size):
                share = share_of_rank(
                    store,
                    rows,
                    rank=rank,
                    dp_size=world_size,
                    micro_batch_size=24 // world_size // (3 if world_size != 8 else 1),
                    packing=packing,
                )
                union += [tuple(row.tolist()) for micro_batch in share for row in micro_batch]
            assert sorted(union) == expected


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_a_run_resumed_at_any_step_goes_on_as_uninterrupted(kind: str, packing: bool) -> None:
    whole = order_of(_plan(kind, packing), 50)
    for resumed_at in range(50):
        fresh = _plan(kind, packing)
        assert [row.tolist() for row in fresh.rows(resumed_at)] == whole[resumed_at]
        assert [row.tolist() for row in fresh.rows(49)] == whole[49]


@pytest.mark.parametrize("kind", ALL)
@given(order=st.permutations(range(30)))
@settings(max_examples=8, deadline=None)
def test_steps_may_be_asked_for_in_any_order(kind: str, order: list[int]) -> None:
    expected = order_of(_plan(kind, True), 30)
    plan = _plan(kind, True)
    for step in order:
        assert [row.tolist() for row in plan.rows(step)] == expected[step]
        assert plan.num_tokens(step) == sum(LENGTHS[i] for row in expected[step] for i in row)
        assert np.array_equal(plan.sample_ids(step), np.concatenate(plan.rows(step)))


@pytest.mark.parametrize("kind", ["easy_to_hard", "cover", "mixture_of_pools"])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_what_is_delivered_does_not_depend_on_prefetch(kind: str, depth: int) -> None:
    """Delivered batches, in a thread that builds ahead while this one asks for other steps."""
    plan, store = _plan(kind, True), store_of_lengths(LENGTHS)
    expected = [sorted(np.concatenate(plan.rows(step)).tolist()) for step in range(50)]

    def build(step: int) -> Any:
        return step_batches(
            store,
            other.rows(step),
            rank=0,
            dp_size=1,
            micro_batch_size=6,
            packing=True,
            pad_token_id=0,
        )

    other = _plan(kind, True)
    for step, batches in prefetch(range(50), build, depth):
        other.num_supervised(max(0, step - 3))
        found = np.concatenate([batch.sample_ids for batch in batches])
        assert sorted(found.tolist()) == expected[step]


@given(
    num_samples=st.integers(1, 60),
    batch=st.integers(1, 12),
    packing=st.booleans(),
    epochs=st.sampled_from([1, 2, 3]),
    order=st.sampled_from(["easy_to_hard", "hard_to_easy", "random_pool"]),
    kind=st.sampled_from([{"cover": True}, {"window": 7}]),
)
@settings(max_examples=80, deadline=None)
def test_covering_shows_each_sample_once_an_epoch(
    num_samples: int, batch: int, packing: bool, epochs: int, order: str, kind: dict[str, Any]
) -> None:
    lengths = LENGTHS[:num_samples]
    config = config_of(
        {"order": order, **kind}, data={"packing": packing}, train={"num_train_epochs": epochs}
    )
    plan = plan_of(config, lengths, batch)
    counts: Counter[int] = Counter()
    for step in range(plan.total_steps(config.train)):
        counts.update(plan.sample_ids(step).tolist())
    assert counts == dict.fromkeys(range(num_samples), epochs)
    assert plan.epoch(plan.total_steps(config.train)) == epochs


@pytest.mark.parametrize("num_samples", [1, 2, 50, 99])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stratified"])
@pytest.mark.parametrize("packing", [False, True])
def test_tiny_data_works(num_samples: int, kind: str, packing: bool) -> None:
    config = config_of(KINDS[kind], data={"packing": packing})
    plan = plan_of(config, LENGTHS[:num_samples], 8, values=VALUES[:num_samples])
    for rows in order_of(plan, 50):
        assert len(rows) == 8 and all(rows)


def test_pools_grow_and_controls_have_the_same_sizes() -> None:
    sizes, reach = {}, {}
    for order in ("easy_to_hard", "hard_to_easy", "random_pool"):
        config = config_of({"order": order, "pacing": {"start": 0.1, "end_at": 0.5}})
        plan = plan_of(config, LENGTHS, 8, values=VALUES)
        blocks = [plan.row_plan.block(number).drawn for number in range(50)]
        sizes[order] = [drawn.pools for drawn in blocks if drawn is not None]
        reach[order] = [VALUES[plan.sample_ids(step)] for step in range(50)]
    assert sizes["easy_to_hard"] == sizes["hard_to_easy"] == sizes["random_pool"]
    flat = [size for (size,) in sizes["easy_to_hard"]]
    assert flat[0] == 30 and flat == sorted(flat) and flat[25:] == [300] * 25
    assert all(found.max() < flat[step] for step, found in enumerate(reach["easy_to_hard"]))
    assert all(found.min() >= 300 - flat[step] for step, found in enumerate(reach["hard_to_easy"]))
    assert np.mean(np.concatenate(reach["random_pool"][:12])) == pytest.approx(150, abs=40)


def test_a_decreasing_schedule_decreases() -> None:
    levels = {"type": "discrete", "levels": [1.0, 0.5, 0.1], "at": [0.3, 0.6]}
    plan = plan_of(config_of({"pacing": levels}), LENGTHS, 8, values=VALUES)
    found = hardest(plan, VALUES, 50)
    assert max(found[:15]) > 250
    assert 100 < max(found[15:30]) < 150
    assert max(found[30:]) < 30
    falling = {"type": "linear", "start": 1.0, "end": 0.1, "end_at": 1.0}
    plan = plan_of(config_of({"pacing": falling}), LENGTHS, 8, values=VALUES)
    limits = [300 * (1 - 0.9 * step / 50) for step in range(50)]
    assert all(h <= limit for h, limit in zip(hardest(plan, VALUES, 50), limits, strict=True))


def test_a_pool_gives_each_sample_once_before_any_twice() -> None:
    levels = {"type": "discrete", "levels": [0.2, 1.0], "at": [0.5]}
    plan = plan_of(config_of({"pacing": levels}), LENGTHS, 10, values=VALUES)
    first = np.concatenate([plan.sample_ids(step) for step in range(24)])  # 240 = 4 passes of 60
    for start in range(0, 240, 60):
        assert sorted(first[start : start + 60].tolist()) == list(range(60))
    assert first[:60].tolist() != first[60:120].tolist()


def test_after_the_curriculum_all_samples_are_covered() -> None:
    plan = plan_of(config_of({}, train={"max_steps": 120}), LENGTHS, 10, values=VALUES)
    after = np.concatenate([plan.sample_ids(step) for step in range(60, 90)])
    assert sorted(after.tolist()) == list(range(300))


def test_equal_difficulties_come_in_no_order_of_the_file() -> None:
    plan = plan_of(config_of({}), LENGTHS, 8, values=np.zeros(300))
    first = np.concatenate([plan.sample_ids(step) for step in range(6)])
    assert first.max() > 200
    other = plan_of(config_of({}, train={"max_steps": 50, "seed": 1}), LENGTHS, 8, values=[0] * 300)
    assert set(other.sample_ids(0).tolist()) != set(plan.sample_ids(0).tolist())


def test_a_window_sorts_inside_itself_and_nothing_else() -> None:
    plan = plan_of(config_of({"window": 40, "then": "continue"}), LENGTHS, 8, values=VALUES)
    order = np.concatenate([plan.sample_ids(step) for step in range(50)])[:280]
    for start in range(0, 280, 40):
        part = VALUES[order[start : start + 40]]
        assert part.tolist() == sorted(part.tolist())
        assert part.max() - part.min() > 200
    falls = config_of({"window": 40, "order": "hard_to_easy"})
    order = np.concatenate(
        [plan_of(falls, LENGTHS, 8, values=VALUES).sample_ids(s) for s in (0, 1)]
    )
    assert VALUES[order].tolist() == sorted(VALUES[order].tolist(), reverse=True)


def test_strata_stay_mixed_while_difficulty_rises() -> None:
    """All of source 1 is harder than source 0; both rise together when stratified."""
    sources = [0] * 200 + [1] * 100
    for stratify_by, low, high in ((None, 0.0, 0.0), ("source", 0.28, 0.39)):
        config = config_of({"stratify_by": stratify_by}, num_sources=2)
        plan = plan_of(config, LENGTHS, 24, values=VALUES, sources=sources)
        early = np.concatenate([plan.sample_ids(step) for step in range(8)])
        assert low <= np.mean(np.array(sources)[early]) <= high
        assert early.max() < 240


@pytest.mark.parametrize("packing", [False, True])
def test_the_first_pool_holds_a_global_batch_and_that_is_said(packing: bool) -> None:
    said: list[str] = []
    config = config_of({"pacing": {"start": 0.01}}, data={"packing": packing})
    plan = plan_of(config, LENGTHS, 16, values=VALUES, say=said.append)
    drawn = plan.row_plan.block(0).drawn
    assert drawn is not None
    (pool,) = drawn.pools
    assert said == [
        "curriculum: the smallest pool (0.01) would hold 3 of 300 samples, less than one global "
        f"batch; raised to {pool}"
    ]
    assert len(set(plan.sample_ids(0).tolist())) == len(plan.sample_ids(0))
    assert pool == 16 if not packing else 16 < pool < 60
    plan_of(config_of({}), LENGTHS, 16, values=VALUES, say=said.append)
    assert len(said) == 1


def test_packing_stays_inside_a_block() -> None:
    """Rows of one pool stand together: no sample of a later block comes before this block ends."""
    config = config_of({}, data={"packing": True}, train={"max_steps": 400})
    plan = plan_of(config, LENGTHS * 10, 8)
    blocks: Any = plan.row_plan.blocks
    for number in range(12):
        block, start = plan.row_plan.block(number), plan.row_plan.start(number)
        assert block.drawn is not None and block.samples.size <= blocks.sizes.usual
        assert len(set(block.samples.tolist())) == block.samples.size
        moved = blocks.moved(number, start)
        assert moved.max() < block.samples.size


def test_rows_are_nearly_as_full_as_those_of_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 20_000).tolist()
    full = {}
    for curriculum in (None, {}):
        data = {"packing": True, "max_length": 2048}
        config = config_of(curriculum, data=data, train={"max_steps": 400})
        plan = plan_of(config, lengths, 8, values=np.arange(20_000))
        full[curriculum is None] = plan.tokens_before(400) / (400 * 8 * 2048)
    assert full[False] > 0.985 and full[True] > 0.995


def test_uniform_is_todays_order() -> None:
    for packing in (False, True):
        config = config_of({"order": "uniform"}, data={"packing": packing})
        plain = config_of(None, data={"packing": packing})
        assert order_of(plan_of(config, LENGTHS, 8), 50) == order_of(plan_of(plain, LENGTHS, 8), 50)
