"""What the processes of `loss_memory.py` have imported when they are forked."""

from __future__ import annotations

import contextlib

import loss_memory  # noqa: F401

for _name in ("deepspeed.runtime.sequence_parallel.ulysses_sp", "trl.kernels", "ds_train.ops"):
    with contextlib.suppress(Exception):
        __import__(_name)
