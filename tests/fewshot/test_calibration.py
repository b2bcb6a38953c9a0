"""Calibration against plain formulas in probability space, and what each is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ds_train.config.shots import CALIBRATIONS, NORMALISATIONS, parse_names
from ds_train.fewshot import calibration
from ds_train.fewshot.spread import spread

LOGS = st.floats(-30, 0)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return powers / powers.sum(axis=-1, keepdims=True)


@settings(deadline=None)
@given(arrays(np.float64, 4, elements=LOGS), arrays(np.float64, (3, 4), elements=LOGS))
def test_contextual_is_the_formula_of_zhao(scores: np.ndarray, free: np.ndarray) -> None:
    bias = softmax(free).mean(axis=0)
    bias /= bias.sum()
    expected = np.linalg.inv(np.diag(bias)) @ softmax(scores)
    np.testing.assert_allclose(np.exp(calibration.contextual(scores, free)), expected, rtol=1e-9)


@settings(deadline=None)
@given(arrays(np.float64, (5, 3), elements=LOGS))
def test_batch_is_the_formula_of_zhou(scores: np.ndarray) -> None:
    expected = scores - np.log(softmax(scores).mean(axis=0))
    np.testing.assert_allclose(calibration.batch(scores), expected, rtol=1e-9)


def test_far_below_what_float64_can_hold() -> None:
    scores = np.array([[-3000.0, -3100.0], [-5000.0, -4000.0]])
    assert np.isfinite(calibration.batch(scores)).all()
    assert np.isfinite(calibration.contextual(scores[0], scores)).all()


def test_contextual_takes_away_a_constant_bias() -> None:
    rng = np.random.default_rng(0)
    fair, bias = rng.normal(size=(50, 3)), np.array([4.0, 0.0, -4.0])
    free = np.tile(bias, (3, 1))
    best = [np.argmax(calibration.contextual(scores + bias, free)) for scores in fair]
    assert best == np.argmax(fair, axis=1).tolist()


def test_batch_takes_away_a_constant_bias() -> None:
    rng = np.random.default_rng(0)
    fair, bias = 0.1 * rng.normal(size=(2000, 2)), np.array([5.0, 0.0])
    biased = (fair + bias).argmax(axis=1) == fair.argmax(axis=1)
    calibrated = calibration.batch(fair + bias).argmax(axis=1) == fair.argmax(axis=1)
    assert biased.mean() < 0.55
    assert calibrated.mean() > 0.95


def test_batch_accuracy_is_one_number_of_all_items() -> None:
    # the first answer is always preferred; calibrated, each input says what it says
    items = [([-1.0, -4.0], [0]), ([-2.0, -3.0], [1]), ([-1.0, -4.5], [0]), ([-2.0, -2.5], [1])]
    assert np.mean([calibration.is_right(np.array(s), g) for s, g in items]) == 0.5
    assert calibration.batch_accuracy(items) == 1.0


def test_pmi_and_normalise() -> None:
    given, alone = np.array([-4.0, -6.0]), np.array([-1.0, -5.0])
    assert calibration.pmi(given, alone).tolist() == [-3.0, -1.0]
    assert calibration.normalise(given, np.array([1.0, 3.0])).tolist() == [-4.0, -2.0]
    assert calibration.normalise(given, None) is given


def test_the_first_of_equal_scores_wins() -> None:
    assert calibration.is_right(np.array([-2.0, -2.0]), [0]) == 1.0
    assert calibration.is_right(np.array([-2.0, -2.0]), {1}) == 0.0
    assert calibration.is_right(np.array([-2.0, -1.0]), [0, 1]) == 1.0


def test_spread() -> None:
    found = spread([0.5, 0.7, 0.6, 0.8])
    assert found == {
        "num": 4,
        "mean": pytest.approx(0.65),
        "sd": pytest.approx(np.std([0.5, 0.7, 0.6, 0.8], ddof=1)),
        "min": 0.5,
        "max": 0.8,
        "median": pytest.approx(0.65),
        "iqr": pytest.approx(0.15),
    }
    assert spread([0.5])["sd"] is None


def test_names() -> None:
    assert parse_names("contextual,batch, contextual", CALIBRATIONS) == ["contextual", "batch"]
    assert parse_names(["tokens", "none"], NORMALISATIONS) == ["tokens", "none"]
    with pytest.raises(
        ValueError, match=r"none, contextual, batch, pmi. Did you mean contextual\?"
    ):
        parse_names("contextal", CALIBRATIONS)
    assert parse_names("characters,chars", NORMALISATIONS) == ["chars"]
    with pytest.raises(ValueError, match=r"Did you mean bytes\?"):
        parse_names("byte", NORMALISATIONS)
    with pytest.raises(ValueError, match="names nothing"):
        parse_names([], NORMALISATIONS)
