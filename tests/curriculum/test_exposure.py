"""The report: counts by hand, ranks adding up, a resumed run, what a mixture was asked for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, plan_of, prepared_of, scores_of

from ds_train.config.run import RunConfig
from ds_train.curriculum.describe import draw_report, format_report
from ds_train.curriculum.exposure import Deciles
from ds_train.curriculum.report import Reporting, has_report
from ds_train.data.batch import step_batches

LENGTHS = [(7 * i * i + 3 * i) % 15 + 2 for i in range(100)]
VALUES = np.arange(100)
SOURCES = [i % 2 for i in range(100)]


def _reporting(config: RunConfig, batch: int = 8) -> tuple[Any, Reporting]:
    plan = plan_of(config, LENGTHS, batch, sources=SOURCES, values=VALUES)
    prepared = prepared_of(LENGTHS, SOURCES)
    scores = None if config.curriculum is None else scores_of(VALUES)
    return plan, Reporting(config, prepared, plan, scores)


def test_predicted_counts_by_hand() -> None:
    config = config_of({"pacing": {"type": "discrete", "levels": [0.1, 1.0], "at": [0.5]}})
    plan, reporting = _reporting(config, batch=10)
    facts = reporting.predicted()
    counted = facts["predicted"]
    counts = np.zeros(100)
    for step in range(50):
        for sample in plan.sample_ids(step):
            counts[sample] += 1
    assert counted["exposure_by_decile"] == pytest.approx(counts.reshape(10, 10).mean(axis=1))
    # 25 steps of 10 samples out of the 10 easiest, then 250 of all
    assert counts[:10].sum() == pytest.approx(250 + 25, abs=5)
    assert counted["unseen_share"] == np.mean(counts == 0) == 0
    assert counted["passes"] == pytest.approx(5) and counted["most_often"] == counts.max()
    assert counted["tokens"] == plan.tokens_before(50)
    pools = [step["pool"] for step in facts["steps"]]
    assert pools == [10] * 25 + [100] * 25 and len(facts["steps"]) == 50
    assert "packing" not in facts


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("packing", [False, True])
def test_delivered_batches_of_all_ranks_add_up_to_the_plan(world_size: int, packing: bool) -> None:
    config = config_of({}, data={"packing": packing})
    plan, reporting = _reporting(config)
    store = prepared_of(LENGTHS, SOURCES).train
    sums = [reporting.new_exposure() for _ in range(world_size)]
    for step in range(50):
        for rank, exposure in enumerate(sums):
            for batch in step_batches(
                store,
                plan.rows(step),
                rank=rank,
                dp_size=world_size,
                micro_batch_size=2,
                packing=packing,
                pad_token_id=0,
            ):
                exposure.add(step, batch.sample_ids, batch.sample_tokens)
    for other in sums[1:]:
        assert other.of_samples.sum() > 0
        sums[0].of_segments += other.of_segments
        sums[0].of_stages += other.of_stages
    facts = reporting.measured(sums[0], steps_from_plan=0)
    assert facts["measured_equals_predicted"] is True
    assert facts["measured"]["tokens"] == plan.tokens_before(50)
    assert json.loads(json.dumps(facts)) == facts


def test_a_batch_that_was_not_delivered_shows() -> None:
    plan, reporting = _reporting(config_of({}))
    exposure = reporting.new_exposure()
    exposure.add_planned(range(49))
    facts = reporting.measured(exposure, steps_from_plan=0)
    assert facts["measured_equals_predicted"] is False
    assert facts["measured"]["tokens"] == plan.tokens_before(49)


def test_a_resumed_run_says_what_it_has_not_seen_itself() -> None:
    plan, reporting = _reporting(config_of({}))
    exposure = reporting.new_exposure()
    for step in range(30, 50):
        exposure.add(step, *plan.parts(step))
    exposure.add_planned(range(30))
    measured = reporting.measured(exposure, steps_from_plan=30)["measured"]
    assert (measured["steps"], measured["steps_counted_from_the_plan"]) == (20, 30)
    assert measured["tokens"] == plan.tokens_before(50)


def test_a_mixture_is_reported_beside_what_was_asked() -> None:
    stages = [{"until": 0.5, "weights": {"s0": 3, "s1": 1}}, {"weights": {"s1": 1}}]
    config = config_of(None, data={"mixture": {"stages": stages}}, num_sources=2)
    _, reporting = _reporting(config)
    facts = reporting.predicted()
    first, second = facts["predicted"]["stages"]
    assert first["asked"] == {"s0": 0.75, "s1": 0.25}
    assert first["given"] == pytest.approx(first["asked"], abs=0.03)
    assert second["given"] == second["asked"] == {"s0": 0, "s1": 1}
    assert "exposure_by_decile" not in facts["predicted"]
    text = "\n".join(format_report(facts))
    assert "curriculum: order uniform, blocks of 8 samples" in text
    assert "mixture, stage 2, " in text and "s1 100.0% (asked 100.0%)" in text
    assert draw_report(None, facts, say=print) is None  # type: ignore[arg-type]


def test_the_report_as_text() -> None:
    _, reporting = _reporting(config_of({}, data={"packing": True}))
    lines = format_report(reporting.predicted())
    assert lines[0].startswith("curriculum: order easy_to_hard, difficulty length (fingerprint sc")
    assert lines[1].split("  ") == ["step", "competence", "samples in the pool", "mean difficulty"]
    assert lines[2].split()[:2] == ["1", "0.100"]
    assert lines[11].split()[:3] == ["50", "1.000", "100"]
    assert lines[12].startswith("times shown, by tenth of the difficulty (easiest first), predict")
    assert len(lines[12].split(": ")[1].split()) == 10
    assert "samples are never shown" in lines[13]
    assert lines[-1].startswith("rows are ") and "packing moves a sample by " in lines[-1]


def test_uniform_with_a_section_is_reported_too() -> None:
    config = config_of({"order": "uniform"})
    assert has_report(config) and not has_report(config_of(None))
    _, reporting = _reporting(config)
    facts = reporting.predicted()
    assert {step["pool"] for step in facts["steps"]} == {100}
    assert facts["predicted"]["exposure_by_decile"] == pytest.approx([4.0] * 10, abs=0.2)


@pytest.mark.parametrize("num_samples", [1, 3, 9, 10, 11, 1000])
def test_tenths_of_any_number_of_samples(num_samples: int) -> None:
    deciles = Deciles.of(np.arange(num_samples, dtype=np.float32)[::-1].copy())
    sizes = np.bincount(deciles.of_sample, minlength=10)
    assert sizes.max() - sizes.min() <= 1 and sizes.sum() == num_samples
    assert deciles.of_sample[0] == max(deciles.of_sample)  # the first one is the hardest
    means = deciles.mean(np.ones(num_samples))
    assert [mean for mean in means if mean is not None] == [1.0] * min(10, num_samples)
