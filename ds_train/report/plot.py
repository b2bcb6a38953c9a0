"""Pictures: a run over its steps, arms of a comparison over tokens, what a curriculum showed.

matplotlib is optional (`pip install 'ds-train[plot]'`). Without it nothing is drawn, which is said
once, and everything that a picture shows stands in a table or JSON file beside it anyway. The same
numbers give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_train.report.figures import (
    CurriculumCurves,
    Curve,
    compare_figure,
    curriculum_figure,
    ladder_figure,
    module,
    style,
)
from ds_train.report.run_figure import RunCurves, run_figure

__all__ = [
    "CurriculumCurves",
    "Curve",
    "RunCurves",
    "plot_compare",
    "plot_curriculum",
    "plot_ladder",
    "plot_run",
]

Say = Callable[[str], object]
_said: set[str] = set()


def plot_compare(
    path: str | Path,
    curves: Mapping[str, Sequence[Curve]],
    finals: Mapping[str, Mapping[int, float]],
    *,
    metric: str,
    unit: str | None = None,
    title: str | None = None,
    say: Say = print,
) -> Path | None:
    """Draw a comparison: the metric over tokens per arm, and each seed's final value.

    Args:
        path: `.png` or `.svg`.
        curves: arm -> one curve per seed; an arm may have none (then only its final values show).
        finals: arm -> seed -> value at the end; NaN where a run has none.
        metric: its name as in the table; `unit` is put behind it, known metrics have one.

    Returns the file written, or None where matplotlib is not installed (said once).
    """

    def draw() -> Any:
        return compare_figure(curves, finals, metric=metric, unit=unit, title=title)

    return _write(Path(path), draw, say)


def plot_ladder(
    path: str | Path,
    arms: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    metric: str,
    rungs: str,
    before: float | None = None,
    unit: str | None = None,
    title: str | None = None,
    say: Say = print,
) -> Path | None:
    """Draw a metric over the amount of training data: median and range over seeds of each arm.

    Args:
        path: `.png` or `.svg`.
        arms: arm -> amount -> the values of its seeds; amounts are drawn on a log scale.
        rungs: what the amounts are, e.g. "examples per class".
        before: the value before any training, as a level line.

    Returns the file written, or None where matplotlib is not installed (said once).
    """

    def draw() -> Any:
        return ladder_figure(
            arms, metric=metric, rungs=rungs, before=before, unit=unit, title=title
        )

    return _write(Path(path), draw, say)


def plot_curriculum(
    path: str | Path,
    curves: CurriculumCurves,
    *,
    difficulty: str = "difficulty",
    title: str | None = None,
    say: Say = print,
) -> Path | None:
    """Draw pool size and mean difficulty over steps, and the exposure of each difficulty decile.

    `difficulty` names the metric with its unit, e.g. "length (tokens)". Returns the file written
    (`.png` or `.svg`), or None where matplotlib is not installed (said once).
    """

    def draw() -> Any:
        return curriculum_figure(curves, difficulty=difficulty, title=title)

    return _write(Path(path), draw, say)


def plot_run(
    path: str | Path, curves: RunCurves, *, title: str | None = None, say: Say = print
) -> Path | None:
    """Draw a run's losses over its steps, what was undone of it, and where it was interrupted.

    Returns the file written (`.png` or `.svg`), or None where matplotlib is not installed (said
    once).
    """

    def draw() -> Any:
        return run_figure(curves, title=title)

    return _write(Path(path), draw, say)


def _write(path: Path, draw: Callable[[], Any], say: Say) -> Path | None:
    """Draw and write one picture, or say once that none can be drawn."""
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise ValueError(f"{path}: a picture is .png or .svg")
    try:
        module("matplotlib")
    except ImportError:
        if "matplotlib" not in _said:
            _said.add("matplotlib")
            say("no picture: matplotlib is not installed; run pip install 'ds-train[plot]'")
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    # without its date and version the same numbers give the same bytes
    metadata = {"Software": None} if kind == ".png" else {"Date": None, "Creator": "ds-train"}
    with style():
        draw().savefig(path, dpi=110, metadata=metadata)
    return path
