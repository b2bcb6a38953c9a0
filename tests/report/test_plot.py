"""Pictures: the file is written, and what is drawn are the numbers that were given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_train.report import plot
from ds_train.report.figures import (
    COLORS,
    compare_figure,
    curriculum_figure,
    ladder_figure,
    mean_and_spread,
)
from ds_train.report.plot import CurriculumCurves, Curve, plot_compare, plot_curriculum

CURVES = {
    "uniform": [Curve([0, 10, 20], [4.0, 3.0, 2.0]), Curve([0, 10, 20], [4.0, 5.0, 4.0])],
    "easy_to_hard": [Curve([0, 20], [4.0, 1.0])],
}
FINALS = {"uniform": {0: 2.0, 1: 4.0}, "easy_to_hard": {0: 1.0}}
CURRICULUM = CurriculumCurves(
    steps=[1, 2, 3],
    pool_sizes=[10, 20, 30],
    mean_difficulties=[1.0, 1.5, 2.5],
    predicted=[2.0] * 5 + [0.5] * 5,
    measured=[1.75] * 5 + [0.75] * 5,
    predicted_unseen=0.25,
    measured_unseen=0.119,
)


def line(axes: Any, start: str) -> Any:
    """The one line whose label begins so."""
    (found,) = [one for one in axes.lines if str(one.get_label()).startswith(start)]
    return found


def test_mean_and_spread_of_seeds_at_the_same_tokens() -> None:
    tokens, mean, spread = mean_and_spread(CURVES["uniform"])
    assert tokens.tolist() == [0, 10, 20]
    assert mean.tolist() == [4, 4, 3]
    assert spread.tolist() == pytest.approx([0, 2**0.5, 2**0.5])  # sd of a pair: difference/sqrt 2


def test_seeds_at_other_tokens_are_read_off_between_over_what_all_cover() -> None:
    tokens, mean, _ = mean_and_spread([Curve([0, 10], [0, 10]), Curve([4, 8, 12], [4, 8, 12])])
    assert tokens.tolist() == [4, 8, 10]
    assert mean.tolist() == [4, 8, 10]


def test_a_value_that_is_not_finite_is_left_out() -> None:
    tokens, mean, spread = mean_and_spread([Curve([1, 2, 3], [1.0, float("nan"), 3.0])])
    assert (tokens.tolist(), mean.tolist(), spread.tolist()) == ([1, 3], [1, 3], [0, 0])
    assert all(len(part) == 0 for part in mean_and_spread([Curve([1], [float("nan")])]))


def test_compare_draws_means_bands_and_every_final_value() -> None:
    over, end = compare_figure(CURVES, FINALS, metric="loss").axes
    assert line(over, "uniform (2 seeds)").get_xydata().tolist() == [[0, 4], [10, 4], [20, 3]]
    assert line(over, "easy_to_hard (1 seed)").get_xydata().tolist() == [[0, 4], [20, 1]]
    (band,) = over.collections  # one seed has no spread
    assert np.nanmax(band.get_paths()[0].vertices[:, 1]) == pytest.approx(4 + 2**0.5)
    points = [
        one.get_offsets().data.tolist() for one in end.collections if len(one.get_offsets()) > 0
    ]
    assert [[0, 2], [0, 4]] in points and [[1, 1]] in points
    assert line(end, "seed 0").get_ydata().tolist() == [2, 1]
    assert np.isnan(line(end, "seed 1").get_ydata()[1])  # the arm has no such run
    assert [tick.get_text() for tick in end.get_xticklabels()] == ["uniform", "easy_to_hard"]


def test_axes_say_what_they_show_and_in_which_unit() -> None:
    over, end = compare_figure(CURVES, FINALS, metric="loss").axes
    assert over.get_xlabel() == "tokens trained on"
    assert over.get_ylabel() == "loss (nats per token)"
    assert end.get_ylabel() == "loss (nats per token), at the end"
    for metric, label in [
        ("sources.L9.exact_match", "sources.L9.exact_match (share)"),
        ("perplexity", "perplexity"),
    ]:
        assert compare_figure({}, FINALS, metric=metric).axes[0].get_ylabel() == label
    assert compare_figure({}, FINALS, metric="x", unit="m").axes[0].get_ylabel() == "x (m)"


def test_arms_differ_without_colour_too() -> None:
    arms = {name: [Curve([0, 1], [0, 1])] for name in "abcdefg"}
    over = compare_figure(arms, {}, metric="loss").axes[0]
    looks = [(one.get_linestyle(), one.get_marker()) for one in over.lines]
    assert len(set(looks)) == len(arms)
    assert len({one.get_color() for one in over.lines}) == len(COLORS)


def test_a_comparison_with_no_run_yet_is_drawn_empty() -> None:
    over, end = compare_figure({"a": []}, {"a": {0: float("nan")}}, metric="loss").axes
    assert not over.lines and not end.collections


def test_curriculum_draws_pool_difficulty_and_exposure() -> None:
    pool, mean, exposure = curriculum_figure(CURRICULUM, difficulty="length (tokens)").axes
    assert pool.lines[0].get_xydata().tolist() == [[1, 10], [2, 20], [3, 30]]
    assert mean.lines[0].get_ydata().tolist() == [1.0, 1.5, 2.5]
    heights = [bar.get_height() for bar in exposure.patches]
    assert heights == [*CURRICULUM.predicted, *(CURRICULUM.measured or [])]
    assert mean.get_ylabel() == "mean length (tokens) of the step"
    assert [text.get_text() for text in exposure.get_legend().get_texts()] == [
        "predicted, 25.0% never seen",
        "measured, 11.9% never seen",
    ]


def test_before_the_run_only_the_prediction_is_drawn() -> None:
    curves = CurriculumCurves([1], [10], [1.0], predicted=[1.0] * 10)
    exposure = curriculum_figure(curves).axes[2]
    assert [bar.get_height() for bar in exposure.patches] == [1.0] * 10
    assert [text.get_text() for text in exposure.get_legend().get_texts()] == ["predicted"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_file_is_small_and_the_same_every_time(tmp_path: Path, kind: str) -> None:
    written = []
    for number in range(2):
        path = tmp_path / str(number) / f"compare.{kind}"
        assert plot_compare(path, CURVES, FINALS, metric="loss", title="arms") == path
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert len(written[0]) < 200_000
    assert plot_curriculum(tmp_path / f"c.{kind}", CURRICULUM) == tmp_path / f"c.{kind}"


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        plot_compare(tmp_path / "x.jpg", CURVES, FINALS, metric="loss")


def test_without_matplotlib_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it now fails
    monkeypatch.setattr(plot, "_said", set())
    said: list[str] = []
    path = tmp_path / "c.png"
    assert plot_compare(path, CURVES, FINALS, metric="loss", say=said.append) is None
    assert plot_curriculum(path, CURRICULUM, say=said.append) is None
    assert said == ["no picture: matplotlib is not installed; run pip install 'ds-train[plot]'"]
    assert not path.exists()


def test_importing_the_module_does_not_import_matplotlib() -> None:
    code = "import sys, ds_train.report.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_ladder_draws_median_and_range_over_the_amount_of_data() -> None:
    arms = {"lora": {16: [0.5, 0.7, 0.9], 4: [0.2, 0.3, 0.7]}, "full": {4: [0.1]}}
    (axes,) = ladder_figure(arms, metric="rank_accuracy", rungs="examples", before=0.25).axes
    assert line(axes, "lora").get_xydata().tolist() == [[4, 0.3], [16, 0.7]]
    assert line(axes, "full").get_xydata().tolist() == [[4, 0.1]]
    assert line(axes, "before training").get_ydata()[0] == 0.25
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0.2, 0.9)
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "rank_accuracy (share)"
