"""Means, spreads, paired differences, verdicts, best rates: against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ds_train.compare.results import Point, RunResult, find_value
from ds_train.compare.summary import (
    ArmMetric,
    best_rates,
    compare_metric,
    first_reaching,
    lower_is_better,
    spread,
    summarise,
)
from ds_train.config.compare import CompareConfig
from ds_train.errors import RunFailed


def result(arm: str, seed: int, value: float, metric: str = "loss", **rest: Any) -> RunResult:
    """One run with one metric."""
    facts = {"rate": None, "updates": 10, "tokens": 1000, "curve": ()} | rest
    return RunResult(arm=arm, seed=seed, values={metric: value}, **facts)


def config(**settings: Any) -> CompareConfig:
    """Arms a and b."""
    return CompareConfig.model_validate({"arms": {"a": {}, "b": {}}} | settings)


def paired(metric: str, base: list[float], other: list[float]) -> ArmMetric:
    """The metric of an arm against the baseline, seed by seed."""
    baseline = {seed: result("a", seed, value, metric) for seed, value in enumerate(base)}
    runs = [result("b", seed, value, metric) for seed, value in enumerate(other)]
    return compare_metric("b", metric, runs, baseline)


def test_spread() -> None:
    # mean 4; squares 4 + 0 + 4 over 2
    assert spread([2.0, 4.0, 6.0]) == type(spread([1.0]))(3, 4.0, 2.0)
    assert spread([5.0]).sd is None


def test_paired_differences() -> None:
    # differences 0.2, 0.1, 0.3: mean 0.2, sd sqrt((0 + 0.01 + 0.01) / 2) = 0.1
    found = paired("exact_match", [0.5, 0.6, 0.4], [0.7, 0.7, 0.7])
    assert list(found.differences.values()) == pytest.approx([0.2, 0.1, 0.3])
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.2)
    assert found.difference.sd == pytest.approx(0.1)
    assert (found.num_better, found.verdict) == (3, "better")
    # the spread over seeds of the arm itself is another matter
    assert found.spread.sd == 0.0


@pytest.mark.parametrize(
    ("metric", "base", "other", "num_better", "verdict"),
    [
        ("loss", [2.0, 2.0], [1.0, 1.1], 2, "better"),
        ("loss", [1.0, 1.0], [2.0, 2.1], 0, "worse"),
        ("perplexity", [9.0, 9.0], [8.0, 7.9], 2, "better"),
        ("sources.x.loss", [2.0, 2.0], [1.0, 1.1], 2, "better"),
        ("exact_match", [0.2, 0.2], [0.1, 0.11], 0, "worse"),
        # +0.3 and -0.1: mean 0.1, sd 0.283
        ("exact_match", [0.5, 0.5], [0.8, 0.4], 1, "no difference"),
        ("exact_match", [0.5, 0.5], [0.5, 0.5], 0, "no difference"),
        ("exact_match", [0.5], [0.9], 1, "one seed"),
    ],
)
def test_verdict(
    metric: str, base: list[float], other: list[float], num_better: int, verdict: str
) -> None:
    found = paired(metric, base, other)
    assert (found.num_better, found.verdict) == (num_better, verdict)


def test_seeds_that_the_baseline_lacks_count_for_the_mean_only() -> None:
    baseline = {0: result("a", 0, 2.0)}
    found = compare_metric("b", "loss", [result("b", 0, 1.0), result("b", 1, 5.0)], baseline)
    assert found.spread.mean == 3.0
    assert found.differences == {0: -1.0}
    assert found.verdict == "one seed"


def test_best_rate_is_the_best_mean_among_those_with_all_seeds() -> None:
    results = [
        result("a", 0, 2.0, rate=0.1),
        result("a", 1, 4.0, rate=0.1),  # mean 3
        result("a", 0, 2.5, rate=0.2),
        result("a", 1, 2.7, rate=0.2),  # mean 2.6: the best
        result("a", 0, 0.1, rate=0.3),  # its other seed failed
        result("b", 0, 1.0, rate=0.1),
    ]
    assert best_rates(results, config()) == {"a": 0.2, "b": 0.1}
    higher = [result("a", 0, v, "exact_match", rate=r) for r, v in ((0.1, 0.4), (0.2, 0.3))]
    assert best_rates(higher, config(metrics=["exact_match"]))["a"] == 0.1


def test_arms_are_compared_at_their_best_rates() -> None:
    results = [result("a", 0, v, rate=r) for r, v in ((0.1, 3.0), (0.2, 2.0))]
    results += [result("b", 0, v, rate=r) for r, v in ((0.1, 1.0), (0.2, 5.0))]
    a, b = summarise(results, config(), best_rates(results, config()))
    assert (a.rate, b.rate) == (0.2, 0.1)
    assert b.metrics[0].differences == {0: -1.0}


def test_an_arm_without_runs_is_left_out_also_the_baseline() -> None:
    (only,) = summarise([result("b", 0, 1.0)], config(), {"a": None, "b": None})
    assert (only.arm, only.metrics[0].difference) == ("b", None)


def test_tokens_to_reach_the_baselines_end_within_each_seed() -> None:
    def curve(*values: float) -> tuple[Point, ...]:
        return tuple(Point(100 * (place + 1), value) for place, value in enumerate(values))

    results = [
        result("a", 0, 2.0, curve=curve(4, 3, 2)),
        result("a", 1, 1.0, curve=curve(4, 3, 1)),
        result("b", 0, 1.5, curve=curve(3, 2, 1.5)),
        result("b", 1, 1.5, curve=curve(3, 2, 1.5)),
    ]
    a, b = summarise(results, config(), {"a": None, "b": None})
    assert a.tokens_to_reach == {0: 300, 1: 300}
    assert b.tokens_to_reach == {0: 200, 1: None}
    one_point = [result("a", 0, 2.0, curve=curve(2.0))]
    assert summarise(one_point, config(), {"a": None})[0].tokens_to_reach == {}


def test_first_reaching() -> None:
    points = [Point(10, 0.1), Point(20, 0.5), Point(30, 0.4)]
    assert first_reaching(points, 0.45, lower=False) == 20
    assert first_reaching(points, 0.6, lower=False) is None
    assert first_reaching(points, 0.2, lower=True) == 10


def test_which_metrics_are_better_lower() -> None:
    assert [m for m in ("loss", "sources.a.b.perplexity", "exact_match") if lower_is_better(m)] == [
        "loss",
        "sources.a.b.perplexity",
    ]


def test_values_of_an_evaluation() -> None:
    sources = {"a.jsonl": {"loss": 1.0}, "b": {"loss": 4.0}}
    numbers = {"loss": 2.0, "sources": sources}
    assert find_value(numbers, "loss") == 2.0
    assert find_value(numbers, "sources.a.jsonl.loss") == 1.0
    assert find_value(numbers, "sources.mean.loss") == 2.5
    named_mean = {"sources": {**sources, "mean": {"loss": 7.0}}}
    assert find_value(named_mean, "sources.mean.loss") == 7.0
    for metric in ("sources.c.loss", "exact_match"):
        with pytest.raises(RunFailed, match="is missing"):
            find_value(numbers, metric)


def test_inf_and_nan_stay_what_they_are() -> None:
    assert math.isinf(find_value({"perplexity": math.inf}, "perplexity"))


def test_metrics_of_so_many_demonstrations() -> None:
    four = {"loss": 1.5, "sources": {"a": {"loss": 1.0}, "b": {"loss": 2.5}}}
    numbers = {"loss": 9.0, "sources": {"a": {"loss": 9.0}}, "shots": {"0": {}, "4": four}}
    assert find_value(numbers, "shots.4.loss") == 1.5
    assert find_value(numbers, "shots.4.sources.b.loss") == 2.5
    assert find_value(numbers, "shots.4.sources.mean.loss") == 1.75
    assert find_value(numbers, "loss") == 9.0
    for metric in ("shots.2.loss", "shots.0.loss", "shots.4.sources.c.loss"):
        with pytest.raises(RunFailed, match=f"{metric} is missing"):
            find_value(numbers, metric)
    assert lower_is_better("shots.4.sources.a.loss")
    assert not lower_is_better("shots.4.exact_match")
