"""The numbers of one finished run, as `ds-train evaluate` gives them, in RUN/evaluation.json.

    {loss, ..., sources: {...}, step, total_tokens, every_checkpoint, earlier: [the same, ...]}

It is the best checkpoint of a run with early stopping, the last one of any other. With --dev its
numbers on the dev set stand under `dev`.

Run as its own process: python -m ds_train.compare.measure RUN [--every-checkpoint] [--dev]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_train.checkpoint.folder import complete_checkpoints, find_checkpoint, read_facts
from ds_train.errors import DsTrainError
from ds_train.evaluate.loss import evaluate_command
from ds_train.paths import RunPaths, replace_text

EVALUATION = "evaluation.json"
"""Of a run folder: what its last checkpoint, and perhaps earlier ones, reach."""


def measure_run(run: Path, *, every_checkpoint: bool, dev: bool = False) -> dict[str, Any]:
    """Evaluate a run's checkpoints on its validation data and write evaluation.json.

    Raises CheckpointError, DataError or ModelError where that can't be done.
    """
    chosen = find_checkpoint(run)
    folders = [one for one in complete_checkpoints(RunPaths(run)) if one.name < chosen.name]
    earlier = [_measure(run, folder) for folder in folders] if every_checkpoint else []
    final = _measure(run, chosen)
    numbers = {**final, "every_checkpoint": every_checkpoint, "earlier": earlier}
    if dev:
        numbers["dev"] = _measure(run, chosen, split="dev")
    replace_text(run / EVALUATION, json.dumps(numbers, indent=1) + "\n")
    return numbers


def _measure(run: Path, checkpoint: Path, split: str = "validation") -> dict[str, Any]:
    facts = read_facts(checkpoint)
    numbers = evaluate_command(str(run), checkpoint=checkpoint.name, split=split)
    return {**numbers, "step": facts.step, "total_tokens": facts.total_tokens}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the run that is named; the exit code is that of the command line."""
    parser = argparse.ArgumentParser(description="Measure one run of a comparison.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--every-checkpoint", action="store_true")
    parser.add_argument("--dev", action="store_true")
    args = parser.parse_args(arguments)
    try:
        measure_run(args.run, every_checkpoint=args.every_checkpoint, dev=args.dev)
    except DsTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
