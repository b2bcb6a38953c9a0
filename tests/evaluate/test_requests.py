"""Rows of requests hold what each request would read alone, whatever they share."""

from __future__ import annotations

import numpy as np
import pytest

from ds_train.errors import DataError
from ds_train.evaluate.prefix_rows import NOTHING_SHARED, Sharing
from ds_train.evaluate.requests import BatchPlan, Request, ScoreBatch, plan_batches

CHEAP_ATTENTION = Sharing(max_depth=1000, token_cost=1e6)
"""Whatever begins alike shares a row."""


def families(seed: int, num_contexts: int = 12) -> list[Request]:
    """Contexts that begin alike, some of them twice, with one to five candidates each."""
    draw = np.random.default_rng(seed)
    stem = draw.integers(1, 5, 9).tolist()
    requests = []
    for _ in range(num_contexts):
        context = stem[: draw.integers(1, 10)] + draw.integers(1, 5, draw.integers(1, 6)).tolist()
        for _ in range(draw.integers(1, 6)):
            requests.append(Request(context, draw.integers(1, 5, draw.integers(1, 7)).tolist()))
    return [*requests, requests[0], Request(requests[1].context, requests[1].continuation)]


def read_by(batch: ScoreBatch, row: int, place: int) -> list[int]:
    """The tokens that a place of a row sees, itself the last one, in the order of their depths."""
    if batch.visible is None or batch.position_ids is None:
        return batch.input_ids[row, : place + 1].tolist()
    seen = np.flatnonzero(batch.visible[row, place])
    depths = batch.position_ids[row, seen]
    assert sorted(depths.tolist()) == list(range(len(seen)))
    return batch.input_ids[row, seen[np.argsort(depths)]].tolist()


def check(plan: BatchPlan, requests: list[Request], max_length: int) -> None:
    """Every label of every request stands once, after exactly what the request has before it."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    for index in range(len(plan)):
        batch = plan.batch(index)
        rows, columns = batch.places
        for row, column, label, owner in zip(
            rows, columns, batch.labels, batch.owners, strict=True
        ):
            found.setdefault(int(owner), []).append((read_by(batch, row, column), int(label)))
    assert sorted(found) == list(range(len(requests)))
    for owner, request in enumerate(requests):
        whole = [*request.context, *request.continuation]
        kept = whole[-(max_length + 1) :]
        wanted = len(request.continuation)
        expected = [(kept[:end], kept[end]) for end in range(len(kept) - wanted, len(kept))]
        assert found[owner] == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sharing", [CHEAP_ATTENTION, NOTHING_SHARED, Sharing(7, 50.0)])
@pytest.mark.parametrize("max_length", [100, 6])
def test_each_label_sees_what_its_request_has_before_it(
    seed: int, sharing: Sharing, max_length: int
) -> None:
    requests = families(seed)
    plan = plan_batches(requests, max_length=max_length, batch_tokens=64, sharing=sharing)
    check(plan, requests, max_length)


def test_what_is_common_is_read_once() -> None:
    context = list(range(100, 140))
    requests = [Request(context, [token, 7, 8]) for token in (1, 2, 3, 4)]
    plan = plan_batches(requests, max_length=99, batch_tokens=999, sharing=CHEAP_ATTENTION)
    assert plan.num_tokens == 40 + 4 * 2
    assert plan.num_request_tokens == 4 * 42


def test_candidates_of_one_token_cost_nothing_and_need_no_mask() -> None:
    requests = [Request([5, 6, 7], [token]) for token in range(20, 30)]
    plan = plan_batches(requests, max_length=9, batch_tokens=99, sharing=NOTHING_SHARED)
    assert (len(plan), plan.num_tokens) == (1, 3)
    assert plan.batch(0).visible is None


def test_nothing_branches_where_it_is_not_allowed() -> None:
    requests = families(3)
    plan = plan_batches(requests, max_length=50, batch_tokens=99, sharing=NOTHING_SHARED)
    assert all(plan.batch(index).visible is None for index in range(len(plan)))


def test_a_request_deeper_than_the_attention_window_stands_alone() -> None:
    deep, flat = list(range(40, 60)), list(range(70, 75))
    requests = [Request(context, [1, token, 3]) for context in (deep, flat) for token in (1, 2)]
    plan = plan_batches(requests, max_length=50, batch_tokens=40, sharing=Sharing(10, 1e6))
    branching = [plan.batch(i) for i in range(len(plan)) if plan.batch(i).visible is not None]
    assert [sorted(set(batch.owners.tolist())) for batch in branching] == [[2, 3]]


def test_long_rows_do_not_grow_where_attention_costs_more_than_it_saves() -> None:
    requests = [Request([1, 2, number], list(range(30, 60))) for number in range(10, 20)]
    plan = plan_batches(requests, max_length=99, batch_tokens=9999, sharing=Sharing(99, 1.0))
    assert plan.num_tokens == plan.num_request_tokens


def test_batches_hold_no_more_than_asked_padding_included() -> None:
    plan = plan_batches(families(1), max_length=99, batch_tokens=96, sharing=Sharing(99, 20.0))
    sizes = [plan.batch(index).input_ids for index in range(len(plan))]
    assert all(ids.size <= 96 or ids.shape[0] == 1 for ids in sizes)
    assert sum(ids.shape[0] for ids in sizes) > len(sizes)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_every_batch_once_and_call_equally_often(world_size: int) -> None:
    plan = plan_batches(families(2), max_length=99, batch_tokens=20, sharing=NOTHING_SHARED)
    shares = [list(plan.share(rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    owners = [batch.owners for share in shares for batch, counts in share if counts]
    alone = [batch.owners for batch, _ in plan.share(0, 1)]
    assert sorted(o.tolist() for o in owners) == sorted(o.tolist() for o in alone)


def test_nothing_to_score_is_no_batch() -> None:
    plan = plan_batches([], max_length=9, batch_tokens=9, sharing=NOTHING_SHARED)
    assert len(plan) == 0
    assert list(plan.share(1, 2)) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request([1], []), "its continuation has no tokens"),
        (Request([], [1]), "its context has no tokens"),
        (Request([1], list(range(10))), "10 tokens, and the model reads at most 9"),
    ],
)
def test_what_can_not_be_scored_is_said(request_: Request, words: str) -> None:
    good = Request([1], [2])
    with pytest.raises(DataError, match="request 1: ") as caught:
        plan_batches([good, request_], max_length=9, batch_tokens=9, sharing=NOTHING_SHARED)
    assert words in str(caught.value)
