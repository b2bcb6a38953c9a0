"""Episodes on real tasks: does in-context training help stories260K on tasks it has not seen?

Sixteen tasks of Instruction Induction are trained on, five others are measured, with 0 and with 4
demonstrations, before and after: rows of four demonstrations and a query against plain multi-task
training on the same number of tokens, by `ds-train compare`. Prints the tables as Markdown; with a
second argument, writes them there. The comparison goes on where it was stopped.

usage: python benchmarks/episodes.py FOLDER [RESULT.md]  (needs shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
TASKS = SHARED / "data" / "instruction_induction" / "data" / "raw"
RECIPE = REPO / "benchmarks" / "episodes_instruction_induction.yaml"
MOST = 1000
"""Examples of a training task, at most, so that no task is most of the data."""


def write_tasks(
    folder: Path, sources: Iterable[dict[str, Any]], part: str, held_out: set[str]
) -> set[str]:
    """Examples of Instruction Induction's `part` (induce or execute) as prompt and completion, but
    those that are held out; gives all of them as text."""
    written: set[str] = set()
    for source in sources:
        examples = json.loads((TASKS / part / f"{source['name']}.json").read_text())["examples"]
        rows = [
            {"prompt": f"In: {one['input']}\nOut:", "completion": f" {one['output']}"}
            for one in list(examples.values())[:MOST]
        ]
        lines = [line for row in rows if (line := json.dumps(row)) not in held_out]
        written.update(lines)
        path = folder / Path(source["path"]).parent.name / f"{source['name']}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        source["path"] = str(path)
    return written


def write_recipe(folder: Path) -> Path:
    """The recipe with its data, in `folder`; the first so many examples of each task."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["output_dir"] = str(folder / "compare")
    recipe["model"]["name_or_path"] = str(SHARED / "models" / "stories260K" / "hf")
    new = recipe["data"]["validation"]["sources"]
    # some words translate alike into two languages, of which one is held out
    held_out = write_tasks(folder / "data", new, "execute", set())
    write_tasks(folder / "data", recipe["data"]["train"], "induce", held_out)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def ds_train(*arguments: str) -> None:
    """Run one command of ds-train."""
    subprocess.run([sys.executable, "-m", "ds_train", *arguments], check=True)


def before(folder: Path) -> str:
    """The untrained model on the held-out tasks, as a table."""
    path = folder / "before.json"
    if not path.is_file():
        run = next((folder / "compare").glob("*/seed-0"))
        ds_train("evaluate", str(run), "--base", "--output", str(path))
    shots = json.loads(path.read_text())["shots"]
    lines = [
        "| before training | loss | token accuracy | exact match |",
        "| --- | --- | --- | --- |",
    ]
    for number, facts in shots.items():
        values = [facts[name] for name in ("loss", "token_accuracy", "exact_match")]
        lines.append(f"| {number}-shot | " + " | ".join(f"{one:.4f}" for one in values) + " |")
    return "\n".join(lines)


def main() -> None:
    """Everything, in order."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ds_train("compare", str(write_recipe(folder)))
    text = f"{before(folder)}\n\n{(folder / 'compare' / 'compare.md').read_text()}"
    print(text)
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
