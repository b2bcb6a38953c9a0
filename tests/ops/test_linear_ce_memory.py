"""Peak memory of the loss on a CPU: a frozen head takes nothing of the size of its weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from implementations import why_not
from loss_cases import Subject
from loss_memory_worker import CHUNK_BYTES, CLEAR, DTYPES, HEADS, WORKER, D, N, V

from ds_train.ops import native

IMPLEMENTATIONS = ("reference", "chunked", "cpu")
MIB = 2**20
# code pages, threads' stacks, packed blocks of a GEMM; the weight in bf16 is 12 MiB
SLACK = 3 * MIB


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Peak bytes of every case, in one process for all."""
    if not os.access(CLEAR, os.W_OK):
        pytest.skip("the peak of resident memory can't be reset here: no /proc/self/clear_refs")
    here = [name for name in IMPLEMENTATIONS if why_not(Subject(name)) is None]
    done = subprocess.run(
        [sys.executable, str(WORKER), *here],
        capture_output=True, text=True, timeout=300, check=False,
        # large blocks go back to the system at once, whatever was freed before
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def allowed(dtype: str, head: str, *, whole_op: bool) -> int:
    """Bytes: a chunk of logits, the gradients, and the supervised rows once more."""
    size = DTYPES[dtype].itemsize
    hidden, weight = N * D * size, V * D * size
    limit = CHUNK_BYTES + SLACK + hidden
    if head != "evaluation":
        limit += 3 * hidden  # compact, of all rows, scaled by the upstream gradient
    if head == "full":
        # scaled in its place, block by block in fp32
        backward = weight + min(V * D, 2**18) * (8 if size == 2 else 4)
        forward = weight
        if size == 2 and not whole_op:  # summed up over chunks in fp32, block by block
            forward = V * D * 4 + min(V * D, 2**24) * (4 + size)
        limit += max(forward, backward)
    return limit


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_peak(measured: dict[str, int], implementation: str, dtype: str, head: str) -> None:
    if (reason := why_not(Subject(implementation))) is not None:
        pytest.skip(reason)
    whole_op = implementation == "cpu" and native.cpu_gemms(DTYPES[dtype])
    limit = allowed(dtype, head, whole_op=whole_op)
    if head != "full":
        assert limit < 0.6 * V * D * DTYPES[dtype].itemsize  # so that a weight would be noticed
    found = measured[f"{implementation}-{dtype}-{head}"]
    assert found <= limit, f"{found / MIB:.1f} MiB, and {limit / MIB:.1f} are allowed"


@pytest.mark.parametrize("head", ["frozen", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_measurement_sees_whole_logits(measured: dict[str, int], dtype: str, head: str) -> None:
    """What the reference takes is many times what is allowed."""
    found = measured[f"reference-{dtype}-{head}"]
    assert found > 1.5 * allowed(dtype, head, whole_op=False)
    assert found > 4 * (N * 3 // 4) * V  # the logits of supervised rows in fp32
