"""One process that trains a shrunken model for a few steps and writes what that took.

    python -m ds_train.train.measure RECIPE.yaml LAYERS RESULT.json

Weights are random, the batch is made up: neither changes memory or time. On a CPU memory is the
highest resident size less that before the model; Linux lets a process forget its high-water mark.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.data.batch import Batch
from ds_train.engine.build import build_engine
from ds_train.engine.engine import Engine
from ds_train.engine.process_group import start_process_group, stop_process_group
from ds_train.engine.ranks import Ranks
from ds_train.errors import DsTrainError
from ds_train.launch.guard import die_with_parent
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config, use_coalesced_reduction
from ds_train.train.build import build_model
from ds_train.train.objective import TokenObjective
from ds_train.train.step import train_step
from ds_train.train.unfreeze import optimizer_groups

STEPS = 3
"""The optimizer's state is made in the first; caches are warm in the third, which counts."""


def measure(config: RunConfig, ranks: Ranks) -> dict[str, float]:
    """Peak bytes and seconds of the last step."""
    before = _resident(ranks.device)
    engine, vocab = _engine(config, ranks)
    batch = batch_arithmetic(config, 1)
    batches = [_batch(config, vocab) for _ in range(batch.accumulation_steps)]
    objective = TokenObjective(sum(one.num_supervised for one in batches))
    peak, seconds = 0, 0.0
    for _ in range(STEPS):
        _forget_peak(ranks.device)
        start = time.perf_counter()
        train_step(engine, batches, objective=objective, learning_rate=1e-4, stop=False)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        peak, seconds = _peak(ranks.device), time.perf_counter() - start
    return {"peak_bytes": peak - before, "seconds": seconds}


def _warm_up(config: RunConfig) -> RunConfig:
    """One layer and short rows: what libraries load and compile is then there, and not counted."""
    layers = {
        key: value[:1] if isinstance(value, list) else 1
        for key, value in config.model.config_overrides.items()
        if isinstance(value, list) or key in ("num_hidden_layers", "n_layer")
    }
    overrides = {**config.model.config_overrides, **layers}
    model = config.model.model_copy(update={"config_overrides": overrides})
    data = config.data.model_copy(update={"max_length": min(16, config.data.max_length)})
    return config.model_copy(update={"model": model, "data": data})


def _engine(config: RunConfig, ranks: Ranks) -> tuple[Engine, int]:
    ds_config = resolve_ds_config(config, batch_arithmetic(config, 1))
    model, _, _ = build_model(config, ds_config, ranks, None, _silent)
    vocab = model.model.config.get_text_config().vocab_size
    engine = build_engine(
        model.to(ranks.device),
        optimizer_groups(model, config, _silent),
        train=config.train,
        ds_config=ds_config,
        coalesce=use_coalesced_reduction(config, ds_config),
        ranks=ranks,
    )
    engine.train_mode(True)
    return engine, vocab


def _batch(config: RunConfig, vocab: int) -> Batch:
    """Full rows; with packing of two documents each, so that there is a mask."""
    rows, length = config.train.per_device_train_batch_size, config.data.max_length
    ids = torch.randint(0, vocab, (rows, length))
    document = length // 2 if config.data.packing and length > 1 else length
    positions = (torch.arange(length) % document).expand(rows, -1).contiguous()
    virtual = config.adapter.method in ("prompt_tuning", "prefix_tuning")
    return Batch(
        input_ids=ids,
        labels=torch.randint(0, vocab, (rows, length)),
        position_ids=None if virtual else positions,
        sample_ids=_NOBODY,
        sample_tokens=_NOBODY,
        num_rows=rows,
        num_supervised=rows * length,
    )


_NOBODY: Any = torch.zeros(0, dtype=torch.int64).numpy()


def _silent(text: str) -> None:
    pass


def _resident(device: torch.device) -> int:
    gc.collect()
    return 0 if device.type == "cuda" else _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def main() -> int:
    """Measure; what goes wrong is one line on stderr."""
    die_with_parent()
    recipe, result = sys.argv[1:3]
    ranks = Ranks.from_environment()
    try:
        config = load_recipe(recipe)
        start_process_group(ranks)
        if ranks.device.type == "cpu":
            measure(_warm_up(config), ranks)
        measured = measure(config, ranks)
    except DsTrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    Path(result).write_text(json.dumps(measured))
    stop_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
