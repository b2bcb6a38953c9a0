"""A model that requests are put to: in this process, in several, or in parts on several.

With several processes a command starts itself through the deepspeed launcher; each process has
the whole model, or under ZeRO-3 its part of it, and computes its share of the requests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, InputError, quoted
from ds_train.evaluate.model import Target, load_for_inference
from ds_train.evaluate.scorer import Computes, RequestScorer, readable_tokens
from ds_train.launch.command import here_command, launcher_environment, master_port
from ds_train.launch.guard import stop_with_launcher
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World, visible_gpus
from ds_train.model.head import LanguageModel

Say = Callable[[str], Any]


@dataclass(frozen=True)
class ScoredTarget:
    """Which model is asked, and how it is held."""

    target: str
    checkpoint: str = "latest"
    base: bool = False
    dtype: str | None = None
    device: str | None = None
    zero: int = 0
    """3: every rank holds a part of the weights; 0: all of them"""
    batch_tokens: int | None = None
    """tokens of a batch, padding included; by the device when None"""


def here_or_in_processes(
    work: Callable[[Ranks], None],
    check: Callable[[], None],
    target: ScoredTarget,
    *,
    processes: int | None,
    arguments: Sequence[str],
    is_rank: bool,
) -> int:
    """Do the work in this process, or start several that do; returns the exit code.

    Args:
        check: finds the user's faults, so that they are told once, before anything starts.
    """
    if is_rank:
        stop_with_launcher()
        return _as_rank(work)
    if processes is None and target.zero == 0:
        work(Ranks(0, 0, 1))
        return 0
    check()
    world = world_here(processes or 1, target.device)
    command = here_command(world, arguments)
    return run_launcher(
        command, launcher_environment(world), port=master_port(command), say=say_on_stderr
    )


def world_here(processes: int, device: str | None) -> World:
    """So many processes of this machine, one for each GPU where there are GPUs."""
    gpus = [] if device == "cpu" else visible_gpus()
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: several processes take a device each; leave it out, or say cpu."
        )
    if gpus and processes > len(gpus):
        raise ConfigError(
            f"--processes {processes}: this machine shows {len(gpus)} GPUs; take at most one "
            "process for each, or --device cpu."
        )
    slots = {"localhost": gpus[:processes] if gpus else list(range(processes))}
    return World(slots, None, len(gpus), None)


def _as_rank(work: Callable[[Ranks], None]) -> int:
    # it takes seconds to import DeepSpeed, and only ranks need it
    from ds_train.engine.process_group import start_process_group, stop_process_group

    ranks = Ranks.from_environment()
    start_process_group(ranks)
    work(ranks)
    # not after an error: it would wait for ranks that are stuck, and hide the message
    stop_process_group()
    return 0


def open_scorer(
    found: Target, target: ScoredTarget, ranks: Ranks, say: Say
) -> tuple[RequestScorer, Any]:
    """(what scores requests with the model, its tokenizer); a collective call."""
    device = target.device or str(ranks.device)
    if target.zero == 3:
        from ds_train.engine.inference import shard_for_inference

        model, tokenizer = load_for_inference(found, dtype=target.dtype, device="cpu", say=say)
        dtype = target.dtype or found.model.dtype
        computes: Computes = shard_for_inference(LanguageModel(model), dtype, ranks)
        say(f"engine: ZeRO-3, {ranks.world_size} processes")
    else:
        model, tokenizer = load_for_inference(found, dtype=target.dtype, device=device, say=say)
        computes = LanguageModel(model)
    scorer = RequestScorer(
        computes,
        ranks,
        max_length=readable_tokens(model, tokenizer),
        batch_tokens=target.batch_tokens,
        say=say,
    )
    return scorer, tokenizer


def check_output(path: Path) -> None:
    """A file that can't be written is better known before the evaluation."""
    if path.is_dir():
        raise InputError(f"--output {quoted(path)}: is a folder; name a file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {quoted(path)}: there is no folder {path.absolute().parent}.")


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """The first rank speaks for all."""
