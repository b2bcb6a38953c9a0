"""The figures of `report/plot.py`: which numbers are drawn where. Needs matplotlib once called.

Made without pyplot: no window and no global state. Arms differ in colour, line and marker alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito, "Color universal design" (2008), without its yellow, too pale for thin lines."""

_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_UNITS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
_SHARES = ("accuracy", "exact_match")
_STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "ds-train"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A metric of one run over the tokens that it had trained on, tokens ascending."""

    tokens: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class CurriculumCurves:
    """What `plot_curriculum` draws; decile 1 is the easiest tenth of the samples."""

    steps: Sequence[float]
    """[n] steps that the next two belong to; the first step of a run is 1."""
    pool_sizes: Sequence[float]
    """[n] samples that could be drawn in the step."""
    mean_difficulties: Sequence[float]
    """[n] mean difficulty of the step's samples."""
    predicted: Sequence[float]
    """[10] times that a sample of the decile is seen on average, computed before the run."""
    measured: Sequence[float] | None = None
    """[10] the same counted in the run; None before it."""
    predicted_unseen: float | None = None
    """Share of all samples never seen, in [0, 1]."""
    measured_unseen: float | None = None
    """The same counted in the run."""


def mean_and_spread(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats]:
    """(tokens, mean, standard deviation) of several seeds, each [n].

    Seeds need not have been measured at the same tokens: each is read off at every token count of
    any of them by linear interpolation, over the stretch that all of them cover. The deviation is
    the sample's (n - 1 in the denominator), and zero for a single curve.
    """
    known = [_finite(curve) for curve in curves]
    known = [curve for curve in known if len(curve[0])]
    if not known:
        return np.empty(0), np.empty(0), np.empty(0)
    first = max(tokens[0] for tokens, _ in known)
    last = min(tokens[-1] for tokens, _ in known)
    grid = np.unique(np.concatenate([tokens for tokens, _ in known]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, *curve) for curve in known])
    spread = values.std(axis=0, ddof=1) if len(known) > 1 else np.zeros_like(grid)
    return grid, values.mean(axis=0), spread


def _finite(curve: Curve) -> tuple[Floats, Floats]:
    tokens = np.asarray(curve.tokens, dtype=np.float64)
    values = np.asarray(curve.values, dtype=np.float64)
    keep = np.isfinite(tokens) & np.isfinite(values)
    return tokens[keep], values[keep]


def compare_figure(
    curves: Mapping[str, Sequence[Curve]],
    finals: Mapping[str, Mapping[int, float]],
    *,
    metric: str,
    unit: str | None = None,
    title: str | None = None,
) -> Any:
    """The matplotlib figure of `plot_compare`; needs matplotlib."""
    arms = list(dict.fromkeys([*curves, *finals]))
    label = _label(metric, unit)
    with style():
        figure = new_figure(10.0, 4.0, title)
        over, end = figure.subplots(1, 2, width_ratios=[3, 2])
        for number, arm in enumerate(arms):
            _draw_arm(over, arm, curves.get(arm, []), number)
        over.set(xlabel="tokens trained on", ylabel=label)
        over.xaxis.set_major_formatter(module("matplotlib.ticker").EngFormatter())
        if over.lines:
            over.legend(title="arm: mean, ± 1 sd over seeds")
        _draw_finals(end, arms, finals)
        end.set(ylabel=f"{label}, at the end")
    return figure


def _draw_arm(axes: Any, arm: str, curves: Sequence[Curve], number: int) -> None:
    tokens, mean, spread = mean_and_spread(curves)
    if not len(tokens):
        return
    color, line = COLORS[number % len(COLORS)], _LINES[number % len(_LINES)]
    marker = _MARKERS[number % len(_MARKERS)] if len(tokens) <= 40 else None
    seeds = f"{arm} ({len(curves)} {'seed' if len(curves) == 1 else 'seeds'})"
    axes.plot(tokens, mean, color=color, linestyle=line, marker=marker, markersize=3, label=seeds)
    if len(curves) > 1:
        axes.fill_between(tokens, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)


def _draw_finals(axes: Any, arms: Sequence[str], finals: Mapping[str, Mapping[int, float]]) -> None:
    """Every seed's value, joined from arm to arm, as seeds are paired; beside it mean and sd."""
    seeds = sorted({seed for values in finals.values() for seed in values})
    for seed in seeds:
        values = [finals.get(arm, {}).get(seed, np.nan) for arm in arms]
        axes.plot(range(len(arms)), values, color="0.75", lw=0.8, zorder=1, label=f"seed {seed}")
    for number, arm in enumerate(arms):
        found = np.array([v for v in finals.get(arm, {}).values() if np.isfinite(v)])
        if not found.size:
            continue
        color, marker = COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]
        axes.scatter([number] * found.size, found, color=color, marker=marker, s=18, zorder=2)
        spread = found.std(ddof=1) if found.size > 1 else 0.0
        axes.errorbar(
            number + 0.25, found.mean(), yerr=spread, color=color, fmt="_", capsize=3, zorder=2
        )
    axes.set_xticks(range(len(arms)), arms, rotation=30, ha="right")
    axes.set_xlim(-0.5, max(len(arms), 1) - 0.25)


def ladder_figure(
    arms: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    metric: str,
    rungs: str,
    before: float | None = None,
    unit: str | None = None,
    title: str | None = None,
) -> Any:
    """The matplotlib figure of `plot_ladder`; needs matplotlib."""
    with style():
        figure = new_figure(6.5, 4.0, title)
        axes = figure.subplots()
        for number, (arm, values) in enumerate(arms.items()):
            color, marker = COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]
            sizes = [size for size in sorted(values) if len(values[size])]
            middle = [float(np.median(values[size])) for size in sizes]
            low, high = ([float(end(values[size])) for size in sizes] for end in (np.min, np.max))
            line = _LINES[number % len(_LINES)]
            axes.plot(sizes, middle, color=color, linestyle=line, marker=marker, label=arm)
            axes.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
        if before is not None:
            axes.axhline(before, color="0.4", lw=0.9, linestyle=":", label="before training")
        every = sorted({size for values in arms.values() for size in values})
        axes.set_xscale("log")
        axes.set_xticks(every, [f"{size:,}" for size in every])
        axes.minorticks_off()
        axes.set(xlabel=rungs, ylabel=_label(metric, unit))
        axes.legend(title="median; min to max over seeds")
    return figure


def curriculum_figure(
    curves: CurriculumCurves, *, difficulty: str = "difficulty", title: str | None = None
) -> Any:
    """The matplotlib figure of `plot_curriculum`; needs matplotlib."""
    with style():
        figure = new_figure(12.0, 3.6, title)
        pool, mean, exposure = figure.subplots(1, 3)
        pool.plot(curves.steps, curves.pool_sizes, color=COLORS[0])
        pool.set(xlabel="optimizer step", ylabel="pool (samples)", ylim=(0, None))
        mean.plot(curves.steps, curves.mean_difficulties, color=COLORS[3], lw=0.9)
        mean.set(xlabel="optimizer step", ylabel=f"mean {difficulty} of the step")
        _draw_exposure(exposure, curves)
    return figure


def _draw_exposure(axes: Any, curves: CurriculumCurves) -> None:
    kinds = [("predicted", curves.predicted, curves.predicted_unseen, COLORS[5], "")]
    if curves.measured is not None:
        kinds.append(("measured", curves.measured, curves.measured_unseen, COLORS[3], "//"))
    width = 0.8 / len(kinds)
    for number, (name, values, unseen, color, hatch) in enumerate(kinds):
        places = np.arange(1, len(values) + 1) + (number - (len(kinds) - 1) / 2) * width
        label = name if unseen is None else f"{name}, {unseen:.1%} never seen"
        axes.bar(places, values, width, color=color, hatch=hatch, edgecolor="white", label=label)
    axes.set(xlabel="difficulty decile (1 = easiest tenth)", ylabel="times seen per sample")
    axes.set_xticks(range(1, len(curves.predicted) + 1))
    axes.legend()


def _label(metric: str, unit: str | None) -> str:
    last = metric.rsplit(".", 1)[-1]
    if unit is None:
        unit = "share" if last.endswith(_SHARES) else _UNITS.get(last)
    return metric if unit is None else f"{metric} ({unit})"


def new_figure(width: float, height: float, title: str | None) -> Any:
    """An empty figure, its sides in inches."""
    figure = module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    return figure


def style() -> Any:
    """Context in which figures are made and written."""
    return module("matplotlib").rc_context(_STYLE)


def module(name: str) -> Any:
    """A module of matplotlib, imported only now."""
    return importlib.import_module(name)
