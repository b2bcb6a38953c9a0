"""Episodes: who stands in them, what is learned, and that any step can be made at any time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from small_store import make_store

from ds_train.config.data import DataConfig
from ds_train.config.fewshot import EpisodesConfig
from ds_train.config.train import TrainConfig
from ds_train.data.batch import IGNORE, collate, step_batches
from ds_train.data.mix import Ints
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.episodes import EpisodeBlocks, Episodes, passes
from ds_train.fewshot.layout import Joints

BOS, EOS, SEP, ANSWER = 1, 2, 3, 4
JOINTS = Joints(BOS, EOS, (SEP,), (ANSWER,))
SIZES = (30, 12)
"""Examples of the two tasks; answers 200, 201, 202 in turn."""


def tasks_store(sizes: tuple[int, ...] = SIZES, num_answers: int = 3) -> TokenStore:
    """Samples BOS input task answer EOS; the input of the n-th sample of a task is 10 + n."""
    rows = [
        ([BOS, 10 + n, 100 + task, 200 + n % num_answers, EOS], task)
        for task, size in enumerate(sizes)
        for n in range(size)
    ]
    ids, sources = [row for row, _ in rows], [task for _, task in rows]
    return make_store(ids, [[0, 0, 0, 1, 1]] * len(rows), sources)


STORE = tasks_store()


def episodes(store: TokenStore = STORE, max_length: int = 64, **settings: Any) -> Episodes:
    config = EpisodesConfig(**{"k": 3, **settings})
    names = [f"task{number}" for number in range(int(store.sources.max()) + 1)]
    return Episodes(store, config, JOINTS, max_length, names, config.k)


def plan(
    made: Episodes, *, batch: int = 4, packing: bool = False, seed: int = 0, epochs: float = 2.0
) -> StepPlan:
    data = DataConfig.model_validate(
        {
            "train": [{"path": "x.jsonl"}],
            "packing": packing,
            "max_length": made.layout.max_length,
        }
    )
    weights = [1.0] * len(made.tasks.tasks)
    return StepPlan(RowPlan(EpisodeBlocks(made, data, seed, weights)), batch, epochs)


def samples(row: Ints) -> list[int]:
    """Samples of a row in their order, the query last."""
    return [sample for sample in row[:, 0].tolist() if sample >= 0]


def all_rows(one: StepPlan, steps: range) -> list[Ints]:
    return [row for step in steps for row in one.rows(step) if len(row)]


def test_rows_of_the_docstring() -> None:
    direct = episodes(k=2).lay(np.array([0]), 2, 0, training=True)
    a, b, query = (STORE.tokens(sample).tolist() for sample in samples(direct.parts))
    batch = collate(STORE, [direct.parts], pad_token_id=0)
    expected = [BOS, *a[1:-1], SEP, *b[1:-1], SEP, *query[1:]]
    assert batch.input_ids[0, : len(expected)].tolist() == expected
    learned = batch.labels[0][batch.labels[0] != IGNORE].tolist()
    assert learned == query[3:] == [200, EOS]
    channel = episodes(k=2, direction="channel").lay(np.array([0]), 2, 0, training=True)
    batch = collate(STORE, [channel.parts], pad_token_id=0)
    turned = [[one[3], ANSWER, *one[1:3]] for one in (a, b, query)]
    expected = [BOS, *turned[0], SEP, *turned[1], SEP, *turned[2], EOS]
    assert batch.input_ids[0, : len(expected)].tolist() == expected
    learned = batch.labels[0][batch.labels[0] != IGNORE].tolist()
    assert learned == [*query[1:3], EOS]


@pytest.mark.parametrize("order", ["random", "balanced"])
@pytest.mark.parametrize("label_overlap", [True, False])
def test_demonstrations_are_others_of_the_same_task(order: str, label_overlap: bool) -> None:
    made = episodes(order=order, label_overlap=label_overlap)
    for row in all_rows(plan(made), range(20)):
        *shown, query = samples(row)
        assert len({*shown, query}) == 4
        assert {int(STORE.sources[one]) for one in shown} == {int(STORE.sources[query])}
        answers = [int(STORE.tokens(one)[3]) for one in shown]
        if not label_overlap:
            assert int(STORE.tokens(query)[3]) not in answers
        if order == "balanced":
            assert len(set(answers)) == (3 if label_overlap else 2)


def test_no_demonstration_has_the_querys_input() -> None:
    """Two of four examples ask the same, and answer differently."""
    rows = [[BOS, 10, 200, EOS], [BOS, 10, 201, EOS], [BOS, 11, 200, EOS], [BOS, 12, 201, EOS]]
    store = make_store(rows, [[0, 0, 1, 1]] * 4)
    for row in all_rows(plan(episodes(store, k=2)), range(4)):
        inputs = [int(store.tokens(one)[1]) for one in samples(row)]
        assert sorted(inputs) == [10, 11, 12]  # each once: one of the twins, where it is shown


def test_an_epoch_asks_every_example_once_after_other_demonstrations_each_time() -> None:
    one = plan(episodes())
    total = one.total_steps(TrainConfig(num_train_epochs=2.0))
    assert total == 21
    rows = all_rows(one, range(total))
    first, second = rows[:42], rows[42:]
    for epoch in (first, second):
        assert sorted(samples(row)[-1] for row in epoch) == list(range(42))
    shown = [{samples(row)[-1]: samples(row)[:-1] for row in epoch} for epoch in (first, second)]
    same = sum(shown[0][query] == shown[1][query] for query in range(42))
    assert same <= 2  # of 42; by chance, one of 24,360 for the larger task


def test_any_step_in_any_order_and_from_another_instance() -> None:
    rows = [[row.tolist() for row in plan(episodes()).rows(step)] for step in range(21)]
    again = plan(episodes())
    for step in (20, 3, 11, 0):
        assert [row.tolist() for row in again.rows(step)] == rows[step]
    other = [[row.tolist() for row in plan(episodes(), seed=1).rows(step)] for step in range(21)]
    assert other != rows


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_together_have_the_rows_of_the_step(ranks: int) -> None:
    rows = plan(episodes()).rows(5)
    seen: Counter[tuple[int, ...]] = Counter()
    for rank in range(ranks):
        batches = step_batches(
            STORE,
            rows,
            rank=rank,
            dp_size=ranks,
            micro_batch_size=1,
            packing=False,
            pad_token_id=0,
        )
        seen.update(tuple(batch.input_ids[0].tolist()) for batch in batches)
    whole = collate(STORE, rows, pad_token_id=0)
    assert seen == Counter(tuple(line) for line in whole.input_ids.tolist())


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("direction", ["direct", "channel"])
@pytest.mark.parametrize("loss_on", ["query", "all"])
def test_the_plan_announces_what_the_batches_hold(
    packing: bool, direction: str, loss_on: str
) -> None:
    one = plan(episodes(direction=direction, loss_on=loss_on), packing=packing)
    for step in range(one.total_steps(TrainConfig(num_train_epochs=2.0))):
        batch = collate(STORE, one.rows(step), pad_token_id=0)
        assert batch.num_supervised == one.num_supervised(step)
        assert int((batch.input_ids != 0).sum()) == one.num_tokens(step)
        assert batch.input_ids.shape[1] <= 64


def test_whole_demonstrations_go_where_a_row_would_be_too_long() -> None:
    """A demonstration takes 4 tokens, the query 5: one of three fits into 12 tokens."""
    made = episodes(max_length=12)
    laid = made.lay(np.arange(42), 3, 0, training=True)
    assert laid.num_shown.tolist() == [1] * 42
    assert laid.dropped.tolist() == [8] * 42 and laid.lengths.tolist() == [9] * 42
    one = plan(made)
    assert one.dropped_before(1) == 4 * 8
    # what stays is what stood nearest to the query
    roomy = episodes().lay(np.arange(42), 3, 0, training=True)
    for number in range(42):
        parts = laid.parts[laid.offsets[number] : laid.offsets[number + 1]]
        whole = roomy.parts[roomy.offsets[number] : roomy.offsets[number + 1]]
        assert samples(parts) == samples(whole)[-2:]


def test_one_that_is_too_long_makes_room_for_others() -> None:
    rows = [[BOS, *[10 + n] * (20 if n == 0 else 1), 200 + n, EOS] for n in range(5)]
    masks = [[0] * (len(row) - 2) + [1, 1] for row in rows]
    made = episodes(make_store(rows, masks), max_length=24, k=4)
    laid = made.lay(np.array([1, 2, 3, 4]), 4 - 0, 0, training=True)
    assert laid.num_shown.tolist() == [3] * 4 and laid.dropped.tolist() == [22] * 4


def test_no_demonstrations_is_plain_training() -> None:
    laid = episodes(k=0).lay(np.arange(42), 0, 0, training=True)
    batch = collate(
        STORE,
        [laid.parts[a:b] for a, b in zip(laid.offsets, laid.offsets[1:], strict=False)],
        pad_token_id=0,
    )
    plain = collate(STORE, [np.array([sample]) for sample in range(42)], pad_token_id=0)
    assert batch.input_ids.tolist() == plain.input_ids.tolist()
    assert batch.labels.tolist() == plain.labels.tolist()


def test_temperature_shares_out_the_queries() -> None:
    """(30, 12) to the power of 1/2: shares 0.6126 and 0.3874 of 42 queries an epoch."""
    weights = passes(STORE.sources.astype(np.int64), [1.0, 1.0], 2.0)
    assert weights[0] * 30 + weights[1] * 12 == pytest.approx(42)
    assert weights[1] * 12 / 42 == pytest.approx(12**0.5 / (12**0.5 + 30**0.5))
    one = plan(episodes(temperature=2.0), epochs=10.0)
    steps = range(one.total_steps(TrainConfig(num_train_epochs=10.0)))
    queries = [samples(row)[-1] for row in all_rows(one, steps)]
    counts = Counter(STORE.sources[queries].tolist())
    assert counts[1] == pytest.approx(0.3874 * 420, abs=1.5)
    each = Counter(queries)
    assert {each[query] for query in range(30, 42)} <= {13, 14}  # without replacement


def test_evaluation_is_the_same_in_every_run_and_learns_from_the_query_alone() -> None:
    one = episodes(loss_on="all").for_evaluation(3)
    assert one.queries.tolist() == list(range(42)) and one.supervised.tolist() == [2] * 42
    again = episodes(loss_on="query").for_evaluation(3)
    assert [row.tolist() for row in one.rows] == [row.tolist() for row in again.rows]
    assert all(len(set(samples(row))) == 4 for row in one.rows)
    assert [samples(row) for row in episodes().for_evaluation(0).rows] == [[n] for n in range(42)]


def test_epochs_and_their_parts() -> None:
    one = plan(episodes(), epochs=1.5)
    assert one.total_steps(TrainConfig(num_train_epochs=1.5)) == 16  # ceil(63 / 4)
    assert one.epoch(0) == 0 and one.epoch(21) == pytest.approx(63 / 42)
    assert one.epoch(5) == pytest.approx(20 / 42)


def test_joints_are_those_inside_a_text() -> None:
    class Backend:
        """Puts a mark (9) before every text, as SentencePiece does."""

        def encode(self, text: str, *, add_special_tokens: bool) -> Any:
            assert not add_special_tokens
            return type("Encoding", (), {"ids": [9, *map(ord, text)]})

    encoder: Any = type("E", (), {"backend": Backend(), "slow": None, "bos_id": 1, "eos_id": 2})
    joints = Joints.of(encoder, EpisodesConfig(separator=";\n", answer_separator=""))
    assert joints == Joints(1, 2, (ord(";"), 10), ())


@pytest.mark.parametrize(
    ("sizes", "answers", "settings", "message"),
    [
        (
            (30, 3),
            3,
            {},
            "fewshot.episodes: 3 demonstrations, but task task1 has 3 different examples, and for "
            "a query at least 2 others; take k (and shots) of at most 2, or remove the task.",
        ),
        (
            (30, 6),
            2,
            {"label_overlap": False, "k": 4},
            "fewshot.episodes: 4 demonstrations, but task task1 has 6 different examples, and for "
            "a query at least 3 with another answer; take k (and shots) of at most 3, or remove "
            "the task.",
        ),
        (
            (30,),
            1,
            {"order": "balanced"},
            "fewshot.episodes.order = balanced: task task0 has one answer only, the same for all "
            "30 examples; remove the task, or the setting.",
        ),
        (
            (30,),
            1,
            {"label_overlap": False},
            "fewshot.episodes.label_overlap = false: task task0 has one answer only, the same for "
            "all 30 examples; remove the task, or the setting.",
        ),
        (
            (30,),
            30,
            {"order": "balanced"},
            "fewshot.episodes.order = balanced: every example of task task0 has an answer of its "
            "own, so there are no classes to balance; take random.",
        ),
        (
            (30,),
            2,
            {"permute_labels": True},
            "fewshot.episodes.permute_labels: task task0 has no labels that its examples share "
            "(format classification has); remove the task, or the setting.",
        ),
    ],
)
def test_tasks_without_such_episodes(
    sizes: tuple[int, ...], answers: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as refusal:
        episodes(tasks_store(sizes, answers), **settings)
    assert str(refusal.value) == message


def test_channel_wants_an_input_and_room_for_its_separator() -> None:
    bare = make_store([[BOS, 200, EOS]] * 2, [[0, 1, 1]] * 2)
    with pytest.raises(DataError, match="row 1 of task0 has no input that could be learned"):
        episodes(bare, k=0, direction="channel")
    turns = make_store([[BOS, 5, 200, 6, 201, EOS]], [[0, 0, 1, 0, 1, 1]])
    with pytest.raises(DataError, match="has no answer that stands at its end"):
        episodes(turns, k=0, direction="channel")
    with pytest.raises(DataError, match=r"has 6 tokens, but data.max_length = 5; raise it"):
        episodes(STORE, k=0, direction="channel", max_length=5)
