"""The CUDA kernel compiles without a GPU, a CUDA torch or a warning, and keeps to its registers."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ds_train.errors import BuildError
from ds_train.ops.build import Built, build
from ds_train.ops.native import check_device, open_library
from ds_train.ops.structs import LogitRows
from ds_train.ops.toolchain import find_nvcc

ARCHS = ["sm_80", "sm_90", "sm_100"]
NUM_KERNELS = 3 * 4  # dtypes, with and without each of two features
THREADS_PER_SM, REGISTERS_PER_SM = 2 * 512, 65536
_PROPERTIES = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Built | BuildError]:
    """A library for each architecture, or what went wrong; kept until a source changes."""
    if find_nvcc() is None:
        pytest.skip("no nvcc here; the CUDA kernel was not compiled")

    def one(arch: str) -> Built | BuildError:
        try:
            return build("cuda", arch, strict=True)
        except BuildError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return dict(zip(ARCHS, pool.map(one, ARCHS), strict=True))


def library(compiled: dict[str, Built | BuildError], arch: str) -> Built:
    found = compiled[arch]
    if isinstance(found, BuildError):
        pytest.fail(str(found))
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_no_warning_spill_or_local_memory(compiled, arch: str) -> None:
    log = library(compiled, arch).log.read_text()
    assert "warning" not in re.sub(r"-\S*warn\S*", "", log)
    kernels = _PROPERTIES.findall(log)
    assert len({name for name, *_ in kernels}) == len(kernels) == NUM_KERNELS
    for name, target, stack, stores, loads, registers in kernels:
        assert target == arch
        assert (name, stack, stores, loads) == (name, "0", "0", "0")
        assert int(registers) * THREADS_PER_SM <= REGISTERS_PER_SM, f"{name}: {registers} registers"


@pytest.mark.parametrize("arch", ARCHS)
def test_the_library_loads_and_reports_errors(compiled, arch: str) -> None:
    kernels = open_library("cuda", library(compiled, arch).path)
    assert kernels.ds_train_cuda_error(0) == b"cudaSuccess"
    assert kernels.ds_train_cuda_error(1) == b"cudaErrorInvalidValue"
    assert kernels.ds_train_rows_cuda(ctypes.byref(LogitRows()), 0, None) == 0  # no rows
    code = kernels.ds_train_rows_cuda(ctypes.byref(LogitRows(rows=1, vocab=0)), 0, None)
    assert kernels.ds_train_cuda_error(code) == b"cudaErrorInvalidValue"


def test_a_driver_that_can_not_run_it_is_a_reason(compiled, monkeypatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver that can")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(BuildError, match=r"^cuda kernels: .* driver says cudaError\w+$"):
        check_device(open_library("cuda", library(compiled, "sm_90").path))
