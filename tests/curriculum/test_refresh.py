"""Difficulties measured during the run: what is known when, what is drawn, stored and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, order_of, prepared_of, scores_of
from small_store import store_of_lengths

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.run import RunConfig
from ds_train.curriculum.describe import format_report
from ds_train.curriculum.exposure import Deciles
from ds_train.curriculum.pacing import refresh_steps
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.refresh import (
    named_scores,
    remove_refreshes_from,
    resume_refreshes,
    segments_of,
    store_refresh,
)
from ds_train.curriculum.report import Reporting
from ds_train.curriculum.scores import DifficultyScores
from ds_train.data.order import StepPlan
from ds_train.data.share import share_of_rank
from ds_train.errors import CheckpointError, NotScoredYet
from ds_train.paths import RunPaths

LENGTHS = [(7 * i * i + 3 * i) % 15 + 2 for i in range(300)]
SOURCES = [i % 3 // 2 for i in range(300)]
FIRST = np.arange(300, dtype=np.float32)
LATER = [FIRST[::-1].copy(), np.roll(FIRST, 100)]
"""What the model finds hard after steps 20 and 35 of 50."""
KINDS: dict[str, dict[str, Any]] = {
    "easy_to_hard": {},
    "hard_to_easy": {"order": "hard_to_easy"},
    "value": {"normalise": "value"},
    "window": {"window": 40},
    "stratified": {"stratify_by": "source"},
    "seq_len": {"seq_len": {"start": 8}},
    "mixture": {},
}


def _config(kind: str = "easy_to_hard", packing: bool = False, **changes: Any) -> RunConfig:
    section = {"metric": "loss", "refresh_at": [0.4, 0.7], "pacing": {"end_at": 1.0}}
    stages = [{"until": 0.5, "weights": {"s0": 1, "s1": 3}}, {"weights": {"s0": 1, "s1": 1}}]
    data = {"packing": packing} | ({"mixture": {"stages": stages}} if kind == "mixture" else {})
    return config_of(section | KINDS[kind] | changes, data=data, num_sources=2)


def _plan(config: RunConfig, later: list[np.ndarray] | None = None) -> StepPlan:
    """A plan of batches of 8 that knows the first difficulties and `later` ones."""
    plan = build_step_plan(config, prepared_of(LENGTHS, SOURCES), scores_of(FIRST), 8)
    for values in LATER if later is None else later:
        _segments(plan).add(named_scores(values, "loss"))
    return plan


def _segments(plan: StepPlan) -> Any:
    segments = segments_of(plan)
    assert segments is not None
    return segments


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_up_to_a_boundary_are_known_and_no_others(kind: str, packing: bool) -> None:
    plan, whole = _plan(_config(kind, packing), []), _plan(_config(kind, packing))
    assert _segments(plan).next_step == 20 and plan.total_steps(_config().train) == 50
    assert order_of(plan, 20) == order_of(whole, 20)
    # what the loop asks for when it has made step 20
    for known in ("tokens_before", "supervised_before", "epoch"):
        assert getattr(plan, known)(20) == getattr(whole, known)(20)
    assert plan.num_supervised(19) == whole.num_supervised(19)
    with pytest.raises(NotScoredYet, match=r"drawn after step 20 is .* only steps 1 to 20 are kno"):
        for step in range(20, 26):  # a block that was begun before the boundary goes on
            plan.rows(step)
    _segments(plan).add(named_scores(LATER[0], "loss"))
    assert order_of(plan, 35) == order_of(whole, 35)
    with pytest.raises(NotScoredYet, match="only steps 1 to 35 are known yet"):
        plan.rows(49)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_whenever_it_is_asked_for(kind: str, packing: bool) -> None:
    """A resumed run asks for its first step first; and ranks divide any step."""
    whole = _plan(_config(kind, packing))
    expected = order_of(whole, 50)
    for step in (49, 35, 20, 34, 19, 0, 40):
        plan = _plan(_config(kind, packing))
        rows = plan.rows(step)
        assert [row.tolist() for row in rows] == expected[step]
        for world_size in (1, 2, 4):
            union = []
            for rank in range(world_size):
                for micro_batch in share_of_rank(
                    store_of_lengths(LENGTHS),
                    rows,
                    rank=rank,
                    dp_size=world_size,
                    micro_batch_size=2,
                    packing=packing,
                ):
                    union += [tuple(row.ravel().tolist()) for row in micro_batch]
            assert sorted(union) == sorted(tuple(row.ravel().tolist()) for row in rows)


def test_each_segment_draws_by_its_own_difficulty() -> None:
    plan = _plan(_config())
    for step in range(50):
        values = FIRST if step < 20 else LATER[0] if step < 35 else LATER[1]
        pool = np.ceil(round(300 * (0.1 + 0.9 * (step + 1) / 50), 6))
        assert values[plan.sample_ids(step)].max() < pool


def test_the_boundary_is_exact_where_blocks_lie_across_steps() -> None:
    """An epoch of 300 ends in the middle of a step of 8, and blocks begin there from then on."""
    plan = _plan(_config(refresh_at=[0.8, 0.9]))
    drawn = [plan.row_plan.block(plan.row_plan.locate(row)[0]).drawn for row in range(400)]
    assert [one.segment for one in drawn if one] == [0] * 320 + [1] * 40 + [2] * 40


def test_the_same_difficulties_again_are_drawn_in_another_order() -> None:
    """A new segment begins a new pass, which is shuffled anew."""
    config = _config(pacing={"type": "step", "start": 0.4, "end_at": 1.0})
    order = order_of(_plan(config, [FIRST, FIRST]), 50)
    assert order[20:35] != order[:15] and order[35:50] != order[:15]


def test_a_packed_block_goes_on_over_the_boundary() -> None:
    plan = _plan(_config(packing=True))
    stream, segments = plan.row_plan, []
    for step in range(50):
        rows = range(plan.first_row(step), plan.first_row(step + 1))
        drawn = [stream.block(stream.locate(row)[0]).drawn for row in rows]
        segments.append({one.segment for one in drawn if one is not None})
    assert segments[0] == {0} and segments[49] == {2}
    assert all(segments[step] == {0} for step in range(20))
    assert segments == sorted(segments, key=max)


def test_boundaries_are_steps() -> None:
    assert refresh_steps(_config()) == (20, 35)
    assert refresh_steps(_config(refresh_at=[0.01, 0.3, 0.5001])) == (1, 15, 26)
    uniform = _config(order="uniform")
    assert refresh_steps(uniform) == () and segments_of(_plan(uniform, [])) is None
    assert segments_of(_plan(config_of({}), [])) is None


# The report


def test_the_report_counts_each_segment_by_its_own_tenths() -> None:
    config, prepared = _config(), prepared_of(LENGTHS, SOURCES)
    plan = _plan(config)
    facts = Reporting(config, prepared, plan, scores_of(FIRST)).predicted()
    counted, borders = facts["predicted"], [0, 20, 35, 50]
    by_hand = []
    for values, first, stop in zip([FIRST, *LATER], borders[:-1], borders[1:], strict=True):
        counts = np.zeros(300)
        for step in range(first, stop):
            np.add.at(counts, plan.sample_ids(step), 1)
        tenths = Deciles.of(values).of_sample
        by_hand.append([float(counts[tenths == tenth].mean()) for tenth in range(10)])
    segments = counted["segments"]
    assert [one["exposure_by_decile"] for one in segments] == [pytest.approx(o) for o in by_hand]
    assert sum(one["tokens"] for one in segments) == counted["tokens"] == plan.tokens_before(50)
    assert counted["exposure_by_decile"] == pytest.approx(np.sum(by_hand, axis=0))
    assert facts["scored_again_after_steps"] == [20, 35] and "known_steps" not in facts
    assert len(set(facts["difficulty_fingerprints"])) == 3
    means = {one["step"]: one["mean_difficulty"] for one in facts["steps"]}
    for step, values in ((20, FIRST), (21, LATER[0]), (36, LATER[1])):
        assert means[step] == pytest.approx(values[plan.sample_ids(step - 1)].mean())


def test_before_the_run_the_report_ends_at_the_first_boundary() -> None:
    config, prepared = _config(), prepared_of(LENGTHS, SOURCES)
    plan = _plan(config, [])
    facts = Reporting(config, prepared, plan, scores_of(FIRST)).predicted()
    assert facts["known_steps"] == 20 and facts["total_steps"] == 50
    assert facts["predicted"]["tokens"] == plan.tokens_before(20)
    assert facts["steps"][-1]["step"] == 20
    assert format_report(facts)[1] == (
        "the model scores the samples again after step 20, 35; what is drawn after step 20 is "
        "known once the run has come there, so the numbers below are of steps 1 to 20 of 50"
    )


def test_ranks_and_a_resume_add_up_to_what_was_planned() -> None:
    config, prepared = _config(packing=True), prepared_of(LENGTHS, SOURCES)
    plan = _plan(config)
    reporting = Reporting(config, prepared, plan, scores_of(FIRST))
    exposure, other = reporting.new_exposure(), reporting.new_exposure()
    for step in range(25, 50):
        samples, tokens = plan.parts(step)
        exposure.add(step, samples[::2], tokens[::2])
        other.add(step, samples[1::2], tokens[1::2])
    exposure.of_segments += other.of_segments
    exposure.of_stages += other.of_stages
    exposure.add_planned(range(25))
    assert reporting.measured(exposure, steps_from_plan=25)["measured_equals_predicted"] is True


# Stored in the run folder


def _stored(folder: Path) -> tuple[RunPaths, list[DifficultyScores]]:
    """The folder of a run that has passed both boundaries."""
    paths, plan = RunPaths(folder), _plan(_config(), [])
    scores = [named_scores(values, "loss") for values in LATER]
    for one in scores:
        store_refresh(paths, _segments(plan), one, seconds=0.1)
        _segments(plan).add(one)
    return paths, scores


def test_a_checkpoint_finds_what_its_run_had_measured(tmp_path: Path) -> None:
    paths, scores = _stored(tmp_path)
    plan, names = _plan(_config(), []), [one.fingerprint for one in scores]
    resume_refreshes(paths, _segments(plan), names, 300)
    assert order_of(plan, 50) == order_of(_plan(_config()), 50)
    early = _plan(_config(), [])
    resume_refreshes(paths, _segments(early), names[:1], 300)
    assert _segments(early).next_step == 35  # the second is measured again
    remove_refreshes_from(paths, _segments(early))
    assert sorted(path.name for path in paths.difficulty.iterdir()) == [
        "step-00000020.f32",
        "step-00000020.json",
    ]


@pytest.mark.parametrize("harm", ["other", "missing", "damaged", "shorter"])
def test_other_difficulties_than_the_checkpoints_are_refused(tmp_path: Path, harm: str) -> None:
    paths, scores = _stored(tmp_path)
    values, names = paths.difficulty / "step-00000020.f32", [one.fingerprint for one in scores]
    what = "is missing or damaged"
    if harm == "other":
        names[0], what = "ff" * 16, "holds other difficulties"
    elif harm == "missing":
        values.unlink()
    else:
        data = bytearray(values.read_bytes())
        data[5] ^= 1
        values.write_bytes(data if harm == "damaged" else data[:-4])
    with pytest.raises(CheckpointError, match=rf'step-00000020"?\.f32 {what}: .* after step 20'):
        resume_refreshes(paths, _segments(_plan(_config(), [])), names, 300)


def test_the_names_stand_in_the_checkpoint() -> None:
    facts = CheckpointFacts(25, 25, 1, None, "base", "data", "first", refreshed=["a", "b"])
    assert '"refreshed": [' in facts.to_json()
