"""`ds-train fewshot --demo`: what few-shot training gains over its controls, shown from nothing.

    write a task of our own making
    in context     episodes against plain multi-task training on the same tokens     (compare)
    fine-tuning    a model of the episodes, four examples of each answer of a new task, against the
                   same from random weights, and against the model before            (fewshot)

Both parts are comparisons like any other, in FOLDER/episodes and FOLDER/few; the same command goes
on where it was stopped.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ds_train.compare.arms import plan_comparison
from ds_train.compare.kinds import KindsFiles, write_kinds
from ds_train.compare.kshot import fewshot_command
from ds_train.compare.results import is_trained
from ds_train.compare.run import run_comparison
from ds_train.errors import ConfigError, RunFailed, quoted
from ds_train.plan.presets import ds_configs_dir
from ds_train.units import format_seconds

Say = Callable[[str], object]
SHOTS = 4
"""Examples of each answer that the second part learns from."""


def fewshot_demo(
    folder: Path,
    given: Sequence[str | None],
    *,
    episodes: Sequence[str] = (),
    few: Sequence[str] = (),
    say: Say = print,
) -> int:
    """Run both parts below `folder` and tell what they gained; returns the exit code.

    Args:
        given: the user's own overrides: of the section compare only, for both parts.
        episodes, few: further overrides of the first and the second part.

    Raises:
        ConfigError: an override of something else; the folder can't be written to.
        RunFailed: a model could not be exported.
    """
    began = time.monotonic()
    own = _own_overrides(given)
    try:
        files = write_kinds(folder / "files")
    except OSError as error:
        raise ConfigError(f"--demo {folder}: can't be written to: {error.strerror}.") from None
    say("In context: rows of eight demonstrations and a query, or plain rows of the same tasks")
    recipe, overrides = episodes_recipe(folder, files)
    comparison = plan_comparison(recipe, [*overrides, *own, *episodes])
    code = run_comparison(comparison, say)
    if code or not all(map(is_trained, comparison.runs)):
        return code  # stopped: the same command goes on
    seed = comparison.compare.seeds[0]
    export_model(folder / "episodes" / "episodes" / f"seed-{seed}", folder / "base", say)
    say(f"\nFine-tuning: {SHOTS} examples of each answer of a task that no model has seen")
    recipe, overrides = few_recipe(folder, files)
    code = fewshot_command(recipe, [*overrides, *own, *few], shots=[SHOTS], seeds=None, say=say)
    if not (folder / "few" / "fewshot.json").is_file():
        return code
    say(f"\n{summary(folder)}")
    say(f"everything lies in {folder} ({format_seconds(time.monotonic() - began)} in all)")
    return code


def _own_overrides(given: Sequence[str | None]) -> list[str]:
    own = [text for text in given if text is not None]
    for text in own:
        if not text.startswith("compare.") or "=" not in text:
            raise ConfigError(
                f"--demo brings its own recipes, of which only compare.* can be set; remove "
                f"{quoted(text)}."
            )
    return own


def episodes_recipe(folder: Path, files: KindsFiles) -> tuple[Path, list[str]]:
    """The bundled recipe of the first part, and what makes it read these files."""
    sources = [
        f"data.train.{place}.path={path}" for place, path in enumerate([*files.tasks, *files.new])
    ]
    settings = [f"output_dir={folder / 'episodes'}", f"model.name_or_path={files.architecture}"]
    return _bundled("episodes_kinds"), [*settings, *sources]


def few_recipe(folder: Path, files: KindsFiles) -> tuple[Path, list[str]]:
    """The bundled recipe of the second part, and what makes it read these files."""
    return _bundled("fewshot_kinds"), [
        f"output_dir={folder / 'few'}",
        f"model.name_or_path={folder / 'base'}",
        f"data.train.0.path={files.few}",
        f"data.validation.sources.0.path={files.few_test}",
    ]


def _bundled(name: str) -> Path:
    return ds_configs_dir() / "recipes" / f"{name}.yaml"


def export_model(run: Path, output: Path, say: Say) -> None:
    """`ds-train export` of a run, unless its model is there already."""
    if (output / "config.json").is_file():
        return
    arguments = ["export", str(run), "--output", str(output)]
    say(f"\n$ {shlex.join(['ds-train', *arguments])}")
    command = [sys.executable, "-m", "ds_train", *arguments]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise RunFailed(f"--demo: ds-train export ended with exit code {code}.")


def summary(folder: Path) -> str:
    """Both gains for people: the share of right answers, mean over the seeds and each of them."""
    arms = {one["arm"]: one for one in _read(folder / "episodes" / "compare.json")["arms"]}
    few = _read(folder / "few" / "fewshot.json")
    rungs = {one["arm"]: one for one in few["rungs"]}
    lines = ["six new tasks, none of their items ever trained on    right answers    seed by seed"]
    for arm, name in (("multitask", "plain training"), ("episodes", "episodes")):
        for shots in (0, 8):
            title = f"{name}, {shots} demonstrations"
            lines.append(_line(title, _values(arms.get(arm), f"shots.{shots}.exact_match")))
    lines.append(f"one new task, fine-tuned on {SHOTS} examples of each of its four answers")
    before = few["before"].get("rank_accuracy")
    lines.append(_line("trained in episodes, before", [] if before is None else [before]))
    for arm, name in (("random_weights", "random weights"), ("trained", "trained in episodes")):
        lines.append(_line(f"{name}, after", _values(rungs.get(arm), "rank_accuracy")))
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return numbers


def _values(arm: dict[str, Any] | None, metric: str) -> list[float]:
    """A metric of an arm, seed by seed; nothing where its runs failed."""
    found = [] if arm is None else [one for one in arm["metrics"] if one["metric"] == metric]
    return [float(value) for one in found for value in one["values"].values()]


def _line(title: str, values: Sequence[float]) -> str:
    if not values:
        return f"  {title:<48} not measured"
    each = "  ".join(f"{value:.1%}" for value in values) if len(values) > 1 else ""
    return f"  {title:<48} {fmean(values):>12.1%}     {each}".rstrip()
