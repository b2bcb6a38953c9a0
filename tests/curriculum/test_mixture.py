"""Mixtures: shares of the tokens, stages, caps, and what happens when a source runs out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_train.errors import DataError

RNG = np.random.default_rng(0)
# source 0: 600 short samples, source 1: 300 long ones, source 2: 30 of any length
LENGTHS = np.concatenate(
    [RNG.integers(2, 6, 600), RNG.integers(9, 17, 300), RNG.integers(2, 17, 30)]
)
SOURCES = np.repeat([0, 1, 2], [600, 300, 30])


def _plan(mixture: dict[str, Any], *, packing: bool = False, steps: int = 300, **rest: Any) -> Any:
    config = config_of(
        rest.pop("curriculum", None),
        data={"mixture": mixture, "packing": packing},
        train={"max_steps": steps},
        num_sources=3,
    )
    lengths, sources = LENGTHS.tolist(), SOURCES.tolist()
    return plan_of(config, lengths, 16, sources=sources, values=np.arange(930), **rest)


def _shares(plan: Any, first: int, stop: int) -> list[float]:
    """Share of the tokens of steps [first, stop) that each source has."""
    ids = np.concatenate([plan.sample_ids(step) for step in range(first, stop)])
    tokens = np.bincount(SOURCES[ids], weights=LENGTHS[ids], minlength=3)
    return (tokens / tokens.sum()).tolist()


@given(
    weights=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(lambda w: sum(w) > 0),
    packing=st.booleans(),
    curriculum=st.sampled_from([None, {}]),
)
@settings(max_examples=15, deadline=None)
def test_shares_of_tokens_are_those_asked_for(
    weights: list[int], packing: bool, curriculum: dict[str, Any] | None
) -> None:
    stages = [{"weights": {f"s{i}": weight for i, weight in enumerate(weights)}}]
    plan = _plan({"stages": stages}, packing=packing, curriculum=curriculum)
    asked = np.array(weights) / sum(weights)
    # a window that begins and ends anywhere cuts two blocks
    assert _shares(plan, 0, 300) == pytest.approx(asked.tolist(), abs=0.01)
    assert _shares(plan, 100, 160) == pytest.approx(asked.tolist(), abs=0.05)


def test_stages_follow_one_another() -> None:
    stages = [
        {"until": "90 steps", "weights": {"s0": 0.8, "s1": 0.2}},
        {"until": "240 steps", "weights": {"s1": 1}},
        {"weights": {"s0": 1, "s2": 1}},
    ]
    plan = _plan({"stages": stages})
    assert _shares(plan, 0, 90) == pytest.approx([0.8, 0.2, 0], abs=0.01)
    assert _shares(plan, 90, 240) == pytest.approx([0, 1, 0], abs=0.005)
    assert _shares(plan, 240, 300) == pytest.approx([0.5, 0, 0.5], abs=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1, 2, 1e6])
def test_temperature_flattens_the_sources_sizes(temperature: float) -> None:
    sizes = np.bincount(SOURCES, weights=LENGTHS) ** (1 / temperature)
    plan = _plan({"temperature": temperature})
    assert _shares(plan, 0, 300) == pytest.approx((sizes / sizes.sum()).tolist(), abs=0.01)


def test_a_source_is_passed_evenly() -> None:
    plan = _plan({"stages": [{"weights": {"s0": 1, "s1": 1, "s2": 1}}]})
    ids = np.concatenate([plan.sample_ids(step) for step in range(300)])
    for source in range(3):
        counts = Counter(ids[SOURCES[ids] == source].tolist())
        assert len(counts) == (source == SOURCES).sum()
        assert max(counts.values()) - min(counts.values()) <= 1


def test_an_exhausted_source_gives_its_share_to_the_others() -> None:
    stages = [{"weights": {"s0": 1, "s1": 1, "s2": 2}}]
    plan = _plan({"stages": stages, "max_epochs": {"s2": 3}})
    ids = np.concatenate([plan.sample_ids(step) for step in range(300)])
    counts = Counter(ids[SOURCES[ids] == 2].tolist())
    assert set(counts.values()) == {3} and len(counts) == 30
    assert _shares(plan, 0, 10)[2] == pytest.approx(0.5, abs=0.05)
    assert _shares(plan, 100, 300) == pytest.approx([0.5, 0.5, 0], abs=0.01)


def test_an_exhausted_source_goes_on_when_it_may() -> None:
    stages = [{"until": 0.5, "weights": {"s0": 1, "s2": 1}}, {"weights": {"s1": 1}}]
    plan = _plan({"stages": stages, "max_epochs": {"s2": 1}, "on_exhausted": "repeat"})
    assert _shares(plan, 0, 150)[2] == pytest.approx(0.5, abs=0.01)


def test_an_exhausted_source_may_be_refused_before_the_run() -> None:
    stages = [{"until": 0.5, "weights": {"s0": 1, "s2": 1}}, {"weights": {"s1": 1}}]
    mixture = {"stages": stages, "max_epochs": {"s2": 1.5}, "on_exhausted": "error"}
    with pytest.raises(DataError) as caught:
        _plan(mixture)
    text = str(caught.value)
    assert text.startswith("data.mixture.max_epochs.s2 = 1.5: reached after ")
    assert text.endswith(
        " tokens, while stage 1 still asks for it (on_exhausted: error); raise max_epochs, lower "
        "its weight, or set on_exhausted: renormalise."
    )
    _plan(mixture | {"max_epochs": {"s2": 500}})


def test_nothing_left_at_all_is_refused_before_the_run() -> None:
    with pytest.raises(DataError, match=r"data\.mixture\.stages\[0\]: after .* nothing is left"):
        _plan({"stages": [{"weights": {"s2": 1}}], "max_epochs": {"s2": 2}})


def test_with_a_curriculum_each_source_has_its_own_pool() -> None:
    plan = _plan(
        {
            "stages": [
                {"weights": {"s0": 1, "s1": 1}},
            ]
        },
        curriculum={},
    )
    early = np.concatenate([plan.sample_ids(step) for step in range(15)])
    limits = [(600, 0), (300, 600)]
    for source, (size, first) in enumerate(limits):
        places = early[SOURCES[early] == source] - first
        assert places.max() < 0.2 * size
    drawn = plan.row_plan.block(0).drawn
    assert drawn.pools[:2] == (60, 30)


def test_half_a_run_is_planned_like_the_whole() -> None:
    """A block never depends on later ones, and samples in it are shuffled."""
    plan = _plan({"stages": [{"weights": {"s0": 1, "s1": 1}}]}, packing=True)
    ids = plan.row_plan.block(3).samples
    assert 0.1 < np.mean(SOURCES[ids[: len(ids) // 2]] == 1) < 0.4
