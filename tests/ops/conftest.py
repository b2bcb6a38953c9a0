"""Every test of the fused loss runs on each implementation that this machine has.

`subject` names them: reference, chunked, the C++ one at each instruction set, and both GPU ones.
What isn't here is skipped with its reason; how many tests waited for a GPU in vain is said at the
end of the session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from implementations import NO_GPU, why_not
from loss_cases import Subject

from ds_train.ops import implementations as chosen

# what cuBLAS asks for to be deterministic; read when CUDA starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

SUBJECTS = [
    Subject("reference"),
    Subject("chunked"),
    *(Subject("cpu", isa=isa) for isa in ("baseline", "avx2", "avx512", "avx512_bf16", "amx")),
    Subject("chunked", "cuda"),
    Subject("cuda", "cuda"),
]


@pytest.fixture(scope="module", params=SUBJECTS, ids=str)
def any_subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each implementation, the reference included."""
    yield from _prepared(request.param)


@pytest.fixture(scope="module", params=SUBJECTS[1:], ids=str)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each implementation that is not the reference."""
    yield from _prepared(request.param)


@pytest.fixture(
    scope="module",
    params=[
        Subject("chunked"),
        Subject("cpu"),
        Subject("chunked", "cuda"),
        Subject("cuda", "cuda"),
    ],
    ids=str,
)
def best_subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each implementation once, for what does not depend on the instruction set."""
    yield from _prepared(request.param)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa_subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The CPU's kernels at each instruction set that this processor has."""
    monkeypatch.setenv("DS_TRAIN_CPU_ISA", request.param)
    subject = Subject("cpu", isa=request.param)
    if (reason := why_not(subject)) is not None:
        pytest.skip(reason)
    return subject


@pytest.fixture
def columns_of_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """Lists the last argument of each call of a loop of `ops/implementations.py`, by its name."""

    def listed(name: str) -> list[int]:
        columns: list[int] = []
        compute = getattr(chosen, name)

        def call(*arguments: Any) -> Any:
            columns.append(arguments[-1])
            return compute(*arguments)

        monkeypatch.setattr(chosen, name, call)
        return columns

    return listed


def _prepared(subject: Subject) -> Iterator[Subject]:
    with pytest.MonkeyPatch.context() as patch:
        if subject.isa is not None:
            # read at every call, so one process can test every level
            patch.setenv("DS_TRAIN_CPU_ISA", subject.isa)
        if (reason := why_not(subject)) is not None:
            pytest.skip(reason)
        yield subject


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What is read before it was written shows, as torch fills new tensors with NaN here."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that a machine with a GPU would have run."""
    skipped = terminalreporter.stats.get("skipped", [])
    waiting = sum(NO_GPU in str(report.longrepr) for report in skipped)
    if waiting:
        terminalreporter.write_line(f"{waiting} GPU tests skipped: no CUDA device here")
