"""The figure of one run: its losses over steps, what was undone, and where it was interrupted.

The thick line is the run's curve: of each step the time that counts. What was made and undone is
thin, grey and dashed, on a grey ground. Kinds of interruption differ in their lines and letters,
not in colour alone. Needs matplotlib once called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_train.report.figures import COLORS, module, new_figure, style
from ds_train.report.incidents import Incident, Kind

Points = Sequence[tuple[int, float]]
"""(step, loss), steps ascending."""

LETTERS: dict[Kind, str] = {"rollback": "B", "restart": "R", "by hand": "H", "failure": "F"}
_LOOKS: dict[Kind, tuple[str, Any, str]] = {
    "rollback": (COLORS[3], "-", "rolled back: the step diverged"),
    "restart": (COLORS[2], (0, (5, 2)), "restarted by itself"),
    "by hand": (COLORS[6], (0, (1, 1.5)), "started again by hand or scheduler"),
    "failure": (COLORS[4], (0, (5, 2, 1, 2)), "failed"),
}
"""Colour, line and words of each kind."""
_GREY = "0.3"
_FEW = 60
"""With so many steps or fewer each has a marker."""
_ROWS = 3
"""Labels above the picture stand in so many rows where they would touch."""


@dataclass(frozen=True)
class RunCurves:
    """What `plot_run` draws."""

    steps: Points
    """Of each step, as it counts."""
    evaluations: Points = ()
    """On held-out data; 0 is before the first step."""
    undone: Sequence[Points] = ()
    """Stretches that were made and then undone."""
    incidents: Sequence[Incident] = ()
    """By step."""
    unit: str = "nats per token"


def names_of(incidents: Sequence[Incident]) -> list[str]:
    """B1, R1, R2, ...: a letter for the kind, counted within it; in the order given."""
    counts = dict.fromkeys(LETTERS, 0)
    names = []
    for one in incidents:
        counts[one.kind] += 1
        names.append(f"{LETTERS[one.kind]}{counts[one.kind]}")
    return names


def run_figure(curves: RunCurves, *, title: str | None = None) -> Any:
    """The matplotlib figure of `plot_run`; needs matplotlib."""
    with style():
        figure = new_figure(9.0, 4.4, title)
        axes = figure.subplots()
        axes.set(xlabel="optimizer step", ylabel=f"loss ({curves.unit})")
        axes.xaxis.set_major_locator(module("matplotlib.ticker").MaxNLocator(integer=True))
        _draw_losses(axes, curves)
        low, high = _limits(curves)
        axes.set_ylim(low, high)
        _draw_undone(axes, curves, high)
        _draw_incidents(axes, curves.incidents)
        _draw_diverged(axes, curves.incidents, high)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False)
    return figure


def _draw_losses(axes: Any, curves: RunCurves) -> None:
    if curves.steps:
        marker = "o" if len(curves.steps) <= _FEW else None
        axes.plot(
            *_columns(curves.steps),
            color=COLORS[0],
            lw=1.6,
            marker=marker,
            markersize=3,
            zorder=3,
            label="the run: each step as it counts",
        )
    if curves.evaluations:
        axes.plot(
            *_columns(curves.evaluations),
            color=COLORS[1],
            lw=0.8,
            marker="s",
            markersize=5,
            markerfacecolor="white",
            zorder=4,
            label="held-out data",
        )


def _draw_undone(axes: Any, curves: RunCurves, high: float) -> None:
    """Over the run's line, as most of it is equal; beyond the upper edge it is a triangle."""
    marker = "x" if len(curves.steps) <= _FEW else None
    look: dict[str, Any] = {"color": _GREY, "lw": 1.0, "linestyle": "--", "zorder": 3.5}
    for number, points in enumerate(curves.undone):
        steps, losses = _columns(points)
        label = "_" if number else "undone: made, then gone back before it"
        axes.plot(steps, losses, marker=marker, markersize=5, label=label, **look)
        over = losses > high
        axes.plot(steps[over], [high] * int(over.sum()), "^", color=_GREY, clip_on=False)


def _draw_incidents(axes: Any, incidents: Sequence[Incident]) -> None:
    """A thin line at each, its name above the picture; a grey ground over the steps lost by it."""
    names, seen = names_of(incidents), set()
    wide = max(1.0, (axes.get_xlim()[1] - axes.get_xlim()[0]) * 0.035)
    ends = [-np.inf] * _ROWS
    for one, name in zip(incidents, names, strict=True):
        color, line, words = _LOOKS[one.kind]
        of_kind = [n for n, other in zip(names, incidents, strict=True) if other.kind == one.kind]
        label = None if one.kind in seen else f"{_span(of_kind)}: {words}"
        seen.add(one.kind)
        if one.num_lost:
            axes.axvspan(one.from_step, one.step, color="0.5", alpha=0.13, lw=0, zorder=0)
        axes.axvline(one.step, color=color, linestyle=line, lw=1.1, zorder=2, label=label)
        row = next((place for place, end in enumerate(ends) if one.step >= end), _ROWS - 1)
        ends[row] = one.step + wide
        axes.annotate(
            name,
            (one.step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 7 + 9 * row),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="black",
        )


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _draw_diverged(axes: Any, incidents: Sequence[Incident], high: float) -> None:
    """The loss that a rollback undid; at the upper edge where it is not finite, or beyond."""
    found = [one for one in incidents if one.kind == "rollback"]
    if not found:
        return
    losses = [high if one.loss is None else min(one.loss, high) for one in found]
    axes.plot(
        *([one.step for one in found], losses),
        "X",
        color=_LOOKS["rollback"][0],
        markeredgecolor="black",
        markersize=8,
        clip_on=False,
        zorder=5,
        label="its loss; at the upper edge: beyond it, or not finite",
    )


def _limits(curves: RunCurves) -> tuple[float, float]:
    """Those of the run's own curve with a margin: one spike may not flatten it."""
    found = [loss for _, loss in [*curves.steps, *curves.evaluations] if np.isfinite(loss)]
    if not found:
        found = [loss for points in curves.undone for _, loss in points if np.isfinite(loss)]
    if not found:
        return 0.0, 1.0
    margin = max(0.08 * (max(found) - min(found)), 0.01 * abs(max(found)), 1e-9)
    return min(found) - margin, max(found) + margin


def _columns(points: Points) -> tuple[Any, Any]:
    steps, losses = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=float), np.array(losses, dtype=float)
