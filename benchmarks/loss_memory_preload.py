"""What the processes of `loss_memory.py` have imported when they are forked."""

from __future__ import annotations

import contextlib
import gc

import loss_memory  # noqa: F401

_PACKAGES = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.tensor",
    "deepspeed.runtime.sequence_parallel.ulysses_sp",
    "trl.kernels",
    "ds_train.ops",
)
for _name in _PACKAGES:
    with contextlib.suppress(Exception):
        __import__(_name)
gc.freeze()  # what is imported stays; a child need not look through it
