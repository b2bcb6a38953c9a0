"""Joining the other ranks, and what DeepSpeed and its friends are kept from printing."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta

import deepspeed
import torch
from transformers.utils import logging as transformers_logging

from ds_train.engine.ranks import Ranks
from ds_train.model.quiet import quieten_libraries


def start_process_group(ranks: Ranks, timeout_seconds: float = 1800.0) -> None:
    """Join the other ranks (NCCL on GPUs, gloo on the CPU); a collective may take so long."""
    _quieten(ranks)
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed would compile a shared-memory all-reduce at every start on a CPU (up to 100 s,
        # and 66 MiB of /dev/shm per rank that nobody frees). gloo does the work.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    if ranks.world_size == 1:
        defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        defaults |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        for key, value in defaults.items():
            os.environ.setdefault(key, value)
    timeout = timedelta(seconds=timeout_seconds)
    deepspeed.init_distributed(dist_backend=None, verbose=False, timeout=timeout)


def _quieten(ranks: Ranks) -> None:
    """Leave out what says nothing to a user: it hides the lines that do."""
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch renamed; torch says so at every first call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    quieten_libraries()
    # BF16_Optimizer prints memory tables whatever the log level.
    sys.modules["deepspeed.runtime.bf16_optimizer"].see_memory_usage = (  # type: ignore[attr-defined]
        lambda *args, **kwargs: None
    )
    if not ranks.is_main or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def stop_process_group() -> None:
    """Leave the others."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
