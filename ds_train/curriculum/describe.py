"""A curriculum's report as text for people, and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_train.report.plot import CurriculumCurves, plot_curriculum

_LINES = 10


def format_report(facts: dict[str, Any]) -> list[str]:
    """Lines: pools over the steps, exposure by difficulty, sources, packing."""
    lines = [_headline(facts), *_scored_again(facts), *_pools(facts["steps"])]
    kind = "measured" if "measured" in facts else "predicted"
    counted = facts[kind]
    if "exposure_by_decile" in counted:
        times = "  ".join(_number(value) for value in counted["exposure_by_decile"])
        lines.append(f"times shown, by tenth of the difficulty (easiest first), {kind}: {times}")
    lines.append(
        f"{counted['unseen_share']:.1%} of {facts['num_samples']:,} samples are never shown, the "
        f"most frequent one {counted['most_often']:.3g} times ({kind})"
    )
    lines += [_stage(number, stage, kind) for number, stage in enumerate(counted.get("stages", []))]
    if len(counted["sources"]) > 1:
        lines += [
            f"source {name}: {one['share_of_tokens']:.1%} of the tokens, {one['passes']:.3g} passes"
            for name, one in counted["sources"].items()
        ]
    if facts.get("tokens_cut_off"):
        lines.append(
            f"{facts['tokens_cut_off']:,} tokens of the samples drawn are cut off, "
            f"{counted['tokens']:,} are shown"
        )
    if packing := facts.get("packing"):
        moved = ""
        if "moved_mean" in packing:
            moved = (
                f"; packing moves a sample by {packing['moved_mean']:.1f} places on average, by "
                f"{packing['moved_at_most']:,} at most"
            )
        lines.append(f"rows are {packing['full']:.1%} full{moved}")
    return lines


def _headline(facts: dict[str, Any]) -> str:
    text = f"curriculum: order {facts['order']}"
    if "metric" in facts:
        text += (
            f", difficulty {facts['metric']} (fingerprint {facts['difficulty_fingerprint'][:12]})"
        )
    if "block_samples" in facts:
        text += f", blocks of {facts['block_samples']:,} samples"
    return text


def _scored_again(facts: dict[str, Any]) -> list[str]:
    """Where the difficulty is measured again, and what is not known because of it."""
    if not (after := facts.get("scored_again_after_steps")):
        return []
    places = ", ".join(f"{step:,}" for step in after)
    line = f"the model scores the samples again after step {places}"
    if known := facts.get("known_steps"):
        line += (
            f"; what is drawn after step {known:,} is known once the run has come there, so the "
            f"numbers below are of steps 1 to {known:,} of {facts['total_steps']:,}"
        )
    return [line]


def _pools(steps: list[dict[str, Any]]) -> list[str]:
    """A short table: first, last and evenly spread steps between."""
    last = len(steps) - 1
    picked = sorted({round(i * last / (_LINES - 1)) for i in range(_LINES)}) if steps else []
    keys = [
        ("step", "step", "{:,}"),
        ("stage", "stage", "{}"),
        ("competence", "competence", "{:.3f}"),
        ("pool", "samples in the pool", "{:,}"),
        ("row_length", "longest row", "{:,}"),
        ("mean_difficulty", "mean difficulty", "{:.4g}"),
    ]
    keys = [key for key in keys if any(key[0] in step for step in steps)]
    table = [[title for _, title, _ in keys]]
    for index in picked:
        facts = steps[index]
        table.append([form.format(facts[k]) if k in facts else "" for k, _, form in keys])
    widths = [max(len(line[i]) for line in table) for i in range(len(keys))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in table
    ]


def _stage(number: int, stage: dict[str, Any], kind: str) -> str:
    shares = ", ".join(
        f"{name} {stage['given'][name]:.1%} (asked {asked:.1%})"
        for name, asked in stage["asked"].items()
    )
    return f"mixture, stage {number + 1}, {stage['tokens']:,} tokens, {kind}: {shares}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw_report(path: Path, facts: dict[str, Any], say: Callable[[str], object]) -> Path | None:
    """The picture of a report over difficulty; None where it has none, or without matplotlib."""
    steps = [step for step in facts["steps"] if "mean_difficulty" in step]
    predicted, measured = facts["predicted"], facts.get("measured")
    if not steps or "exposure_by_decile" not in predicted:
        return None
    curves = CurriculumCurves(
        steps=[step["step"] for step in steps],
        pool_sizes=[step["pool"] for step in steps],
        mean_difficulties=[step["mean_difficulty"] for step in steps],
        predicted=_bars(predicted),
        measured=None if measured is None else _bars(measured),
        predicted_unseen=predicted["unseen_share"],
        measured_unseen=None if measured is None else measured["unseen_share"],
    )
    title = f"order {facts['order']}, difficulty {facts['metric']}"
    return plot_curriculum(path, curves, difficulty=facts["metric"], title=title, say=say)


def _bars(counted: dict[str, Any]) -> list[float]:
    return [value or 0.0 for value in counted["exposure_by_decile"]]
