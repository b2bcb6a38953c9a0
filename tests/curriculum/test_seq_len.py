"""Rows that grow: which length when, the numbers of each step, every label once an epoch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, plan_of, prepared_of, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import make_store

from ds_train.config.curriculum import SeqLenConfig
from ds_train.curriculum.describe import format_report
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.report import Reporting
from ds_train.curriculum.seq_len import row_length
from ds_train.data.batch import collate, step_batches
from ds_train.data.divide import PreparedData
from ds_train.data.order import StepPlan
from ds_train.data.pieces import row_tokens
from ds_train.data.row_plan import RowPlan
from ds_train.data.show_step import StepView
from ds_train.errors import DataError
from ds_train.plan.batch import BatchPlan

LENGTHS = [3, 16, 9, 12, 5, 16, 2, 7] * 12


def lengths_of(**config: Any) -> list[int]:
    seq_len = SeqLenConfig.model_validate(config)
    return [row_length(seq_len, 512, tau / 8) for tau in range(9)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"start": 64}, [64, 120, 176, 232, 288, 344, 400, 456, 512]),
        ({"start": 64, "end": 128}, [64, 72, 80, 88, 96, 104, 112, 120, 128]),
        # a last length that is no multiple is reached exactly, at the end and not after it
        ({"start": 8, "end": 100}, [8, 16, 24, 40, 48, 64, 72, 88, 100]),
        # a first length that is no multiple is rounded up to one
        ({"start": 10, "end": 40, "step": 8}, [16, 16, 16, 16, 24, 24, 32, 32, 40]),
        ({"start": 1, "end": 9, "step": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (
            {"start": 64, "pacing": "wu_root"},
            [64, 216, 288, 336, 376, 416, 448, 480, 512],
        ),
        ({"start": 64, "pacing": "quad"}, [64, 64, 88, 120, 176, 232, 312, 400, 512]),
    ],
)
def test_lengths_by_hand(config: dict[str, Any], expected: list[int]) -> None:
    assert lengths_of(**config) == expected


def test_past_its_end_a_length_stays() -> None:
    assert row_length(SeqLenConfig(start=8, end=100), 512, 1.7) == 100
    assert row_length(SeqLenConfig(start=8), 512, 1.0) == 512


def test_the_rule_of_deepspeed() -> None:
    """fixed_linear of 0.19.8: floor to the step, at least the minimum; compared before its end."""
    for step in range(100):
        value = int(step / 100 * (80 - 16) + 16)
        value -= value % 8
        assert row_length(SeqLenConfig(start=16, end=80), 512, step / 100) == value


def seq_len(mode: str, **settings: Any) -> dict[str, Any]:
    growing = {"start": 4, "end_at": 0.5, "step": 2, "mode": mode, **settings}
    return {"order": "uniform", "seq_len": growing}


TRAINS = [{"max_steps": 40}, {"max_tokens": 2000}, {"num_train_epochs": 2}]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
@pytest.mark.parametrize("train", TRAINS)
def test_the_numbers_of_a_step_are_known_and_true(
    mode: str, packing: bool, train: dict[str, Any]
) -> None:
    """Tokens and labels are counted before the first forward; positions fit into the length."""
    config = config_of(seq_len(mode), train=train, data={"packing": packing})
    plan = plan_of(config, LENGTHS)
    total, store = plan.total_steps(config.train), prepared_of(LENGTHS).train
    widths = []
    for step in range(total):
        rows = plan.rows(step)
        batch = collate(store, rows, pad_token_id=0)
        assert plan.num_tokens(step) == sum(row_tokens(store, row) for row in rows)
        assert plan.num_supervised(step) == batch.num_supervised >= 1
        assert batch.position_ids is not None
        spans = [row[:, 2] - row[:, 1] if row.ndim == 2 else store.lengths[row] for row in rows]
        widths.append(max(int(one.max(initial=0)) for one in spans))
        if mode != "window":
            width = plan.row_plan.block(plan.row_plan.locate(step * 8)[0]).drawn
            assert width is not None and width.row_length is not None
    assert max(widths[: total // 4]) < 16  # short in the first quarter,
    assert max(widths[total // 2 + total // 8 :]) == 16  # and whole after the half


@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
def test_lengths_never_fall(mode: str) -> None:
    plan = plan_of(config_of(seq_len(mode)), LENGTHS)
    lengths = []
    for number in range(40):
        drawn = plan.row_plan.block(number).drawn
        assert drawn is not None and drawn.row_length is not None
        lengths.append(drawn.row_length)
    assert lengths == sorted(lengths) and lengths[0] == 4 and lengths[-1] == 16


@pytest.mark.parametrize("packing", [True, False])
def test_reshape_shows_every_label_once_an_epoch(packing: bool) -> None:
    """Whatever the length grows to in between; one epoch, ended by its samples."""
    first, ids = 1, []
    for length in LENGTHS:
        ids.append(list(range(first, first + length)))
        first += length
    store = make_store(ids)
    prepared = PreparedData(store, None, {}, "data", ("s0",), (1.0,))
    for extra in ({}, {"order": "easy_to_hard", "cover": True}):
        config = config_of(
            seq_len("reshape") | extra, train={"num_train_epochs": 1}, data={"packing": packing}
        )
        scores = scores_of(LENGTHS) if extra else None
        plan = build_step_plan(config, prepared, scores, 8)
        seen: Counter[int] = Counter()
        for step in range(plan.total_steps(config.train)):
            labels = collate(store, plan.rows(step), pad_token_id=0).labels
            seen.update(labels[labels != -100].tolist())
        assert seen == Counter(token for one in ids for token in one[1:])
        assert plan.dropped_before(plan.total_steps(config.train)) == 0


def test_without_an_order_the_samples_come_as_they_always_did() -> None:
    config = config_of(seq_len("truncate"), train={"max_steps": 30})
    plan = plan_of(config, LENGTHS)
    plain = StepPlan(RowPlan.uniform(prepared_of(LENGTHS).train, config.data, 0, [1.0]), 8)
    for step in range(30):
        assert plan.sample_ids(step).tolist() == plain.sample_ids(step).tolist()


def test_weights_of_sources_still_count() -> None:
    sources = [0, 1] * 48
    prepared = prepared_of(LENGTHS, sources)
    twice = PreparedData(prepared.train, None, {}, "data", ("s0", "s1"), (2.0, 0.5))
    config = config_of(seq_len("truncate"), train={"num_train_epochs": 1}, num_sources=2)
    plan = build_step_plan(config, twice, None, 8)
    steps = range(plan.total_steps(config.train))
    counts = np.bincount([sources[one] for step in steps for one in plan.sample_ids(step)])
    assert counts.tolist() == [96, 24]


def test_truncation_counts_what_it_drops() -> None:
    plan = plan_of(config_of(seq_len("truncate")), LENGTHS)
    store = prepared_of(LENGTHS).train
    for step in range(40):
        rows = plan.rows(step)
        whole = sum(int(store.lengths[sample]) for sample in plan.sample_ids(step))
        kept = sum(row_tokens(store, row) for row in rows)
        assert plan.dropped_before(step + 1) - plan.dropped_before(step) == whole - kept
    assert plan.dropped_before(10) > 0
    assert plan.dropped_before(49) == plan.dropped_before(40)  # nothing is cut after the end


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 100),
    mode=st.sampled_from(["reshape", "truncate", "window"]),
    packing=st.booleans(),
)
def test_steps_are_a_pure_function(seed: int, mode: str, packing: bool) -> None:
    """Asked for in any order, from a fresh plan or an old one, a step holds the same rows."""
    config = config_of(
        seq_len(mode), train={"max_steps": 50, "seed": seed}, data={"packing": packing}
    )
    plan = plan_of(config, LENGTHS)
    rows = [[row.tolist() for row in plan.rows(step)] for step in range(50)]
    fresh = plan_of(config, LENGTHS)
    for step in np.random.default_rng(seed).permutation(50).tolist():
        assert [row.tolist() for row in fresh.rows(step)] == rows[step]


@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
def test_ranks_share_the_rows_of_a_step(mode: str) -> None:
    config = config_of(seq_len(mode))
    plan, store = plan_of(config, LENGTHS), prepared_of(LENGTHS).train
    for step in (0, 7, 20, 45):
        expected = Counter(
            tuple(map(tuple, np.atleast_2d(row).tolist())) for row in plan.rows(step)
        )
        sums = set()
        for dp_size in (1, 2, 4, 8):
            batches = [
                batch
                for rank in range(dp_size)
                for batch in step_batches(
                    store,
                    plan.rows(step),
                    rank=rank,
                    dp_size=dp_size,
                    micro_batch_size=1,
                    packing=False,
                    pad_token_id=0,
                )
            ]
            assert sum(batch.num_rows for batch in batches) == sum(expected.values())
            sums.add(
                (
                    sum(b.num_supervised for b in batches),
                    sum(int(b.labels.sum()) for b in batches)
                    - sum(int((b.labels == -100).sum()) * -100 for b in batches),
                )
            )
        assert len(sums) == 1 and sums.pop()[0] == plan.num_supervised(step)


def test_pieces_of_one_sample_do_not_make_up_a_step() -> None:
    """A text of 16 tokens makes 8 pieces of 3; they are spread over the block."""
    lengths = [16] * 64
    config = config_of(seq_len("reshape", start=3, step=1), train={"max_steps": 400})
    plan = plan_of(config, lengths)
    per_step = [len(set(plan.sample_ids(step).tolist())) for step in range(20)]
    assert min(per_step) > 2  # of 8 rows; in order, a step would hold the pieces of two at most


def test_where_nothing_is_left_to_learn_it_is_said() -> None:
    store = make_store([[1] * 16] * 64, [[0] * 12 + [1] * 4] * 64)
    prepared = PreparedData(store, None, {}, "data", ("s0",), (1.0,))
    config = config_of(seq_len("truncate"))
    with pytest.raises(DataError) as caught:
        build_step_plan(config, prepared, None, 8).rows(0)
    assert str(caught.value) == (
        "curriculum.seq_len.start = 4: mode truncate leaves nothing to learn from in any of the 8 "
        "samples of a block, since their supervised tokens come after the first 4; start longer, "
        "or set mode: reshape or window."
    )
    build_step_plan(config_of(seq_len("reshape")), prepared, None, 8).rows(0)


def test_with_an_order_too_the_pool_grows_beside_the_length() -> None:
    curriculum = seq_len("reshape") | {"order": "easy_to_hard"}
    plan = plan_of(config_of(curriculum), LENGTHS)
    first = np.array(LENGTHS)[plan.sample_ids(0)]
    assert first.max() <= 5  # the easiest tenth, at least one batch
    assert [length_at(plan, step) for step in (0, 49)] == [4, 16]


def length_at(plan: StepPlan, step: int) -> int:
    """Longest row that a step may begin with."""
    drawn = plan.row_plan.block(plan.row_plan.locate(plan.first_row(step))[0]).drawn
    assert drawn is not None and drawn.row_length is not None
    return drawn.row_length


@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
@pytest.mark.parametrize("train", [{"max_steps": 12}, {"max_tokens": 1200}])
def test_packed_rows_of_a_short_run_grow_too(mode: str, train: dict[str, Any]) -> None:
    """Packing wants large blocks, and short rows take few samples: the length comes first."""
    config = config_of(seq_len(mode), train=train, data={"packing": True})
    plan = plan_of(config, LENGTHS * 4)
    total = plan.total_steps(config.train)
    lengths = [length_at(plan, step) for step in range(total)]
    assert lengths[0] == 4 and lengths[-4:] == [16] * 4
    assert len(set(lengths)) >= 4


def test_what_is_cut_off_is_reported() -> None:
    config, prepared = config_of(seq_len("truncate"), data={"packing": True}), prepared_of(LENGTHS)
    scores = scores_of(LENGTHS)
    plan = build_step_plan(config, prepared, scores, 8)
    facts = Reporting(config, prepared, plan, scores).predicted()
    assert facts["tokens_cut_off"] == plan.dropped_before(50) > 0
    assert 0.5 < facts["packing"]["full"] <= 1  # of the room that short rows have
    lines = format_report(facts)
    assert any(
        line == f"{facts['tokens_cut_off']:,} tokens of the samples drawn are cut off, "
        f"{facts['predicted']['tokens']:,} are shown"
        for line in lines
    )


@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
def test_the_step_that_is_shown_learns_what_the_step_learns(mode: str) -> None:
    """`ds-train data --step`: the parts' learned tokens add up to the announced ones."""
    config, prepared = config_of(seq_len(mode), data={"packing": True}), prepared_of(LENGTHS)
    plan = build_step_plan(config, prepared, None, 8)

    class Letters:
        """A tokenizer that needs no file."""

        def decode(self, ids: list[int]) -> str:
            return "x" * len(ids)

    batch = BatchPlan(8, 8, 1, 1)
    for step in (0, 10, 40):
        view = StepView(prepared, Letters(), plan, None, step)
        parts = [part for rows in view.rank(0, batch, True) for row in rows for part in row]
        assert sum(part["supervised_tokens"] for part in parts) == plan.num_supervised(step)
        assert sum(part["tokens"] for part in parts) == plan.num_tokens(step)
