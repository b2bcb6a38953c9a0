"""The golden numbers of lm_eval 0.4.13 on stories260K, and how ours are held against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SUM_TOLERANCE = 1e-3
"""Nats; accuracies have to be equal."""


def golden_folder(shared_dir: Path) -> Path:
    """Folder of the golden file, its tasks and their data; the test is skipped without it."""
    folder = shared_dir / "golden" / "lm_eval"
    if not (folder / "golden.json").is_file():
        pytest.skip(f"no golden numbers at {folder}")
    return folder


def compare(golden: Path, output: Path, names: list[str]) -> None:
    """Every result key and every summed log-likelihood of the golden file, by `task@Nshot`."""
    expected = json.loads((golden / "golden.json").read_text())["tasks"]
    found: dict[str, Any] = {
        f"{one['task']}@{one['shots']}shot": one
        for one in json.loads(output.read_text())["evaluations"]
    }
    for name in names:
        ours, theirs = found[name], expected[name]
        assert {key: ours["results"][key] for key in theirs["results"]} == theirs["results"]
        assert len(ours["samples"]) == len(theirs["samples"])
        for mine, other in zip(ours["samples"], theirs["samples"], strict=True):
            assert mine["doc_id"] == other["doc_id"]
            assert mine["arguments"] == other["arguments"]
            sums = [response[0][0] for response in mine["resps"]]
            assert sums == pytest.approx(_sums(other["resps"]), abs=SUM_TOLERANCE)
            for metric in ("acc", "acc_norm", "acc_bytes"):
                assert mine.get(metric) == other.get(metric)


def _sums(responses: Any) -> list[float]:
    """The golden file keeps [sum, is_greedy] of each request, in a list of repeats or not."""
    return [one[0] if isinstance(one[0], float) else one[0][0] for one in responses]
