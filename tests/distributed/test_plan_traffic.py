"""The plan's bytes of every collective against those that DeepSpeed counts in real steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distributed.conftest import launch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

pytestmark = pytest.mark.distributed
NAMES = (
    *("full-zero1-bf16", "full-zero2-fp32", "full-zero3-fp32"),
    *("lora-zero2-bf16", "lora-zero3-no-reuse-recompute"),
    *("full-zero2-shared", "lora-zero3-shared-recompute"),
)


def test_traffic(tmp_path: Path) -> None:
    import plan_accuracy
    import plan_cases

    plan_cases.write_inputs(tmp_path)
    cases = [one for one in plan_cases.traffic_cases(tmp_path) if one["name"] in NAMES]
    assert len(cases) == len(NAMES)
    found = launch(tmp_path, "traffic", cases, 2, worker=BENCHMARKS / "plan_worker.py")
    for case in cases:
        rows = list(plan_accuracy.compare_traffic(case, found[case["name"]]["steps"][-1]))
        assert rows
        for row in rows:
            assert row.planned_bytes == pytest.approx(row.logged_bytes, rel=0.02), row
