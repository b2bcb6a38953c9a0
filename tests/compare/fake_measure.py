"""Stands in for `ds_train.compare.measure`: the last evaluation of a fake run as evaluation.json.

Usage: fake_measure.py RUN. Its numbers on test data are those on dev data plus 0.25.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Write evaluation.json of the run that is named."""
    run = Path(sys.argv[1])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["type"] == "evaluation"][-1]
    steps = [record for record in records if record["type"] == "step"]
    tokens = {record["step"]: record["total_tokens"] for record in steps}
    dev = {"loss": last["loss"], "exact_match": last["token_accuracy"], "sources": {}}
    numbers = {**dev, "loss": last["loss"] + 0.25, "dev": dev, "step": last["step"]}
    numbers |= {"total_tokens": tokens[last["step"]], "every_checkpoint": False, "earlier": []}
    (run / "evaluation.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
