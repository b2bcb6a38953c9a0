"""Rank classification against a plain loop, and the cases where a plain loop would do otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds_train.fewshot.ranking import NORMALISATIONS, RANK_METRICS, Floats, Trials, rank_accuracies


def make(sizes: list[int], gold: list[int], example: list[int] | None = None) -> Trials:
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    is_gold = np.zeros(sum(sizes), dtype=bool)
    is_gold[starts + np.array(gold)] = True
    generator = np.random.default_rng(7)
    lengths = {
        name: generator.integers(1, 9, sum(sizes)).astype(np.float64) for name in NORMALISATIONS[1:]
    }
    numbers = np.arange(len(sizes)) if example is None else np.array(example)
    return Trials(np.arange(sum(sizes)), starts, numbers, is_gold, lengths)


def plain(trials: Trials, scores: Floats, name: str) -> float:
    """The share of right trials, one after another."""
    stops = [*trials.starts[1:].tolist(), len(scores)]
    right = 0
    for start, stop in zip(trials.starts.tolist(), stops, strict=True):
        values = [
            scores[i] / (1.0 if name == "none" else trials.lengths[name][i])
            for i in range(start, stop)
        ]
        right += bool(trials.gold[start + values.index(max(values))])
    return right / len(stops)


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 6, 40).tolist()
    trials = make(sizes, [int(generator.integers(size)) for size in sizes])
    scores = -10 * generator.random(sum(sizes))
    found = rank_accuracies(trials, scores)
    for name in NORMALISATIONS:
        assert found[f"rank_accuracy_{name}"] == pytest.approx(plain(trials, scores, name))
    assert found["rank_accuracy"] == found["rank_accuracy_tokens"]
    assert found["rank_chance"] == pytest.approx(np.mean([1 / size for size in sizes]))
    assert set(found) == {*RANK_METRICS, "rank_chance"}
    assert len({found[f"rank_accuracy_{name}"] for name in NORMALISATIONS}) > 1


def test_the_first_of_equal_scores_wins() -> None:
    scores = np.array([-1.0, -1.0])
    assert rank_accuracies(make([2], [0]), scores)["rank_accuracy_none"] == 1
    assert rank_accuracies(make([2], [1]), scores)["rank_accuracy_none"] == 0


def test_what_is_not_a_number_is_not_right() -> None:
    scores = np.array([-1.0, np.nan, -1.0, -2.0])
    assert rank_accuracies(make([2, 2], [0, 0]), scores)["rank_accuracy_none"] == 0.5


def test_an_example_counts_once_however_many_templates_it_has() -> None:
    trials = make([2, 2, 2, 3], [0, 0, 0, 0], example=[0, 0, 0, 1])
    scores = np.array([-1.0, -2, -1, -2, -2, -1, -1, -2, -3])  # 2 of 3 templates; right
    found = rank_accuracies(trials, scores)
    assert trials.num_examples == 2
    assert found["rank_accuracy_none"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["rank_chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_golden_scores(shared_dir: Path) -> None:
    """By tokens and by characters the golden file's own numbers are ranked as it ranks them."""
    file = shared_dir / "golden" / "tfew_losses_golden.json"
    if not file.is_file():
        pytest.skip(f"no golden numbers at {file}")
    examples = json.loads(file.read_text())["examples"]
    trials = make([len(one["choices"]) for one in examples], [one["gold"] for one in examples])
    tokens = [len(ids) for one in examples for ids in one["choice_ids"]]
    chars = [len(choice) for one in examples for choice in one["choices"]]
    lengths = {"tokens": np.array(tokens, float), "chars": np.array(chars, float)}
    lengths["bytes"] = lengths["chars"]
    sums = np.array([value for one in examples for value in one["sum"]])
    found = rank_accuracies(replace(trials, lengths=lengths), sums)
    for name, key in (("tokens", "beta_tokens"), ("chars", "per_char"), ("none", "sum")):
        right = np.mean([int(np.argmax(one[key])) == one["gold"] for one in examples])
        assert found[f"rank_accuracy_{name}"] == pytest.approx(right)
