"""What has ended the launches of a run: restarts.jsonl and failures.jsonl, a line each time.

Nothing cuts these files: what befell a run stays known when it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records


def write_ending(path: Path, kind: str, cause: str, reached_step: int, **more: Any) -> str | None:
    """Append a line; returns why that was not possible."""
    line: Mapping[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "cause": cause,
        "reached_step": reached_step,
        **more,
    }
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        return f"{path} could not be written: {error.strerror}"
    return None


def read_endings(path: Path) -> list[dict[str, Any]]:
    """The lines, whose last one may have been cut short. Raises CheckpointError."""
    if not path.is_file():
        return []
    lines: Iterable[str] = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise CheckpointError(
            f"{quoted(path)} can't be read ({error}); remove the line, or the file."
        ) from None


def reached_step(paths: RunPaths) -> int:
    """The last step that the record has."""
    steps = [r.step for r in read_records(paths.metrics) if isinstance(r, StepRecord)]
    return max(steps, default=0)
