"""Which implementations of the fused loss this machine can run, and why not the others."""

from __future__ import annotations

import ctypes

import torch
from loss_cases import Subject

from ds_train.ops import native

NO_GPU = "needs a CUDA device"


def why_not(subject: Subject) -> str | None:
    """None if the implementation can run here."""
    if subject.device == "cuda" and not torch.cuda.is_available():
        return NO_GPU
    if subject.implementation not in ("cpu", "cuda"):
        return None
    if (missing := native.available(subject.implementation)) is not None:  # type: ignore[arg-type]
        return missing
    if subject.isa is not None and (here := cpu_isa()) != subject.isa:
        return f"this processor has {here} at most"
    return None


def cpu_isa() -> str:
    """The instruction set that the C++ kernels use now."""
    function = native.load("cpu").ds_train_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())
