"""`ds-train export-curriculum`: a curriculum as files and settings for DeepSpeed's own sampler.

For training scripts of your own that use `deepspeed.initialize(training_data=...)`; `ds-train
train` orders rows itself and needs none of this. Into one folder::

    data_efficiency.json              the block for a ds_config.json
    difficulty_index_to_sample.*      row i: the samples of level i       .bin values, .idx index
    difficulty_index_to_metric.*      row i: the level's number
    samples.csv                       sample number -> source and row, 1 for a source's first

A level is a hundredth of the pool's growth, or more where that would be less than one global batch:
a step whose draws exceed twice a level's samples is dropped by DeepSpeed without a word. So both
ways to normalise, every order, strata and several metrics come out as what DeepSpeed calls a
difficulty of type value. The pacing becomes its fixed_discrete schedule, step for step: its root is
not Platanios' one, and it has no other of ours. A level's samples may be drawn from the step on in
which our own pool holds all of them.

The format is Megatron's index (deepspeed/runtime/data_pipeline/data_sampling/indexed_dataset.py),
little-endian: "MMIDIDX\\0\\0", version u64 = 1, code of the dtype u8, number of rows u64, number of
documents u64, sizes i32, byte offsets i64, document borders i64.
"""

from __future__ import annotations

import csv
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.run import RunConfig
from ds_train.curriculum.blocks import DrawnBlocks
from ds_train.curriculum.pacing import competence
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.data.divide import PreparedData
from ds_train.data.order import StepPlan
from ds_train.data.prepare import prepare_data
from ds_train.errors import ConfigError, DataError
from ds_train.launch.world import find_world
from ds_train.plan.batch import batch_arithmetic

Say = Callable[[str], object]
NAME = "difficulty"
NUM_LEVELS = 100
_DTYPES = {np.dtype(np.int32): 4, np.dtype(np.int64): 5}
"""numpy dtype -> its code in the index."""


def export_curriculum(config: RunConfig, output: str | Path, say: Say = print) -> Path:
    """Write the folder; returns it.

    Raises ConfigError where DeepSpeed's sampler can't do what the recipe says, DataError where the
    folder can't be written.
    """
    folder = Path(output)
    curriculum = _expressible(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"--output {folder}: already there and not empty; choose another folder.")
    prepared = prepare_data(config, say=say)
    if prepared.of_examples.train is not prepared.train:
        raise DataError(
            "export-curriculum: the training data has examples with several renderings (templates "
            "or answers), and DeepSpeed's sampler draws samples; give each source one template."
        )
    batch = batch_arithmetic(config, find_world(config.cluster).world_size)
    scores = find_scores(config, prepared, say)
    plan = build_step_plan(config, prepared, scores, batch.global_batch_size, say)
    borders, schedule = _levels(config, curriculum, plan)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_levels(partial, plan, borders)
        settings = _settings(config, plan, schedule, folder.resolve())
        (partial / "data_efficiency.json").write_text(json.dumps(settings, indent=2) + "\n")
        _write_samples(partial / "samples.csv", prepared)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"--output {folder}: can't be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(
        f"export-curriculum: {len(borders)} levels of {prepared.train.num_samples:,} samples, "
        f"{len(schedule['difficulty'])} steps of difficulty, in {folder}; DeepSpeed 0.19's sampler "
        "does not find its place again after a resume, so start such runs from their beginning"
    )
    return folder


def _expressible(config: RunConfig) -> CurriculumConfig:
    curriculum, faults = config.curriculum, []
    if curriculum is None or curriculum.order == "uniform":
        raise ConfigError(
            "export-curriculum: the recipe has no order by difficulty; give section curriculum "
            "with an order other than uniform."
        )
    for field, is_given, why in (
        ("data.mixture", config.data.mixture is not None, "it knows no shares of sources"),
        ("curriculum.cover", curriculum.cover, "it draws newer levels by their size only"),
        ("curriculum.refresh_at", bool(curriculum.refresh_at), "its difficulties are made before"),
        ("curriculum.window", curriculum.window is not None, "it knows growing pools only"),
        (
            "curriculum.seq_len",
            curriculum.seq_len is not None,
            "it leaves lengths to a function of your own (engine.set_data_post_process_func)",
        ),
    ):
        if is_given:
            faults.append(f"{field}: DeepSpeed's sampler can't do it: {why}; remove it to export.")
    pacing = curriculum.pacing
    levels = pacing.levels or [pacing.start, pacing.end]
    if levels != sorted(levels):
        faults.append(
            "curriculum.pacing: the pool shrinks, and DeepSpeed's scheduler stays at the highest "
            "difficulty that it has reached; give one that grows."
        )
    if faults:
        raise ConfigError(faults)
    return curriculum


def _levels(
    config: RunConfig, curriculum: CurriculumConfig, plan: StepPlan
) -> tuple[list[int], dict[str, list[int]]]:
    """(samples up to each level, DeepSpeed's fixed_discrete schedule)."""
    blocks, total = plan.row_plan.blocks, plan.total_steps(config.train)
    assert isinstance(blocks, DrawnBlocks)
    (pool,), length = blocks.pools, blocks.length
    number = max(1, min(NUM_LEVELS, pool.num_samples // plan.global_batch_size))

    def level(step: int) -> int:
        share = competence(curriculum, length, plan.row_plan.before(plan.first_row(step)))
        return max(1, int(share * number + 1e-9))

    difficulty, max_step, step = [level(0)], [], 0
    while difficulty[-1] < level(total - 1):
        low, high = step, total - 1  # the first step of another level is in (low, high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if level(middle) == difficulty[-1] else (low, middle)
        max_step.append(high)  # DeepSpeed counts steps from 1
        difficulty.append(level(high))
        step = high
    if not max_step:
        raise ConfigError(
            "curriculum.pacing: the pool never grows by a hundredth (or by one global batch), so "
            "there is nothing for DeepSpeed's scheduler to do; lower pacing.start, or make the "
            "run longer."
        )
    borders = [pool.size(one / number) for one in range(1, number + 1)]
    return borders, {"difficulty": difficulty, "max_step": max_step}


def _write_levels(folder: Path, plan: StepPlan, borders: Sequence[int]) -> None:
    """Each level's samples, in order of their number."""
    blocks = plan.row_plan.blocks
    assert isinstance(blocks, DrawnBlocks)
    (pool,) = blocks.pools
    rows, numbers, start = [], [], 0
    for number, stop in whole_levels(borders, plan.global_batch_size):
        rows.append(np.sort(pool.ids(np.arange(start, stop))).astype(np.int32))
        numbers.append(np.array([number], dtype=np.int32))
        start = stop
    write_index(folder / f"{NAME}_index_to_sample", rows)
    write_index(folder / f"{NAME}_index_to_metric", numbers)


def whole_levels(borders: Sequence[int], least: int) -> list[tuple[int, int]]:
    """(level, samples up to it) of the levels that bring at least so many new samples.

    The samples of a smaller level wait for the next; those of the last one may have none, and
    take the level before along.
    """
    levels: list[tuple[int, int]] = []
    for number, stop in enumerate(borders, start=1):
        if stop - (levels[-1][1] if levels else 0) >= least:
            levels.append((number, stop))
    if not levels or levels[-1][1] < borders[-1]:
        levels[-1:] = [(len(borders), borders[-1])]
    return levels


def write_index(path: Path, rows: Sequence[NDArray[np.integer]]) -> None:
    """Rows of one integer dtype as `path`.bin and `path`.idx."""
    dtype = rows[0].dtype
    sizes = np.array([len(row) for row in rows], dtype="<i4")
    offsets = (np.cumsum(sizes, dtype=np.int64) - sizes) * dtype.itemsize
    with path.with_suffix(".bin").open("wb") as file:
        for row in rows:
            file.write(row.astype(dtype.newbyteorder("<")).tobytes())
    documents = np.array([0, len(rows)], dtype="<i8")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, _DTYPES[dtype], len(rows), len(documents))
    body = sizes.tobytes() + offsets.astype("<i8").tobytes() + documents.tobytes()
    path.with_suffix(".idx").write_bytes(head + body)


def _settings(
    config: RunConfig, plan: StepPlan, schedule: dict[str, list[int]], folder: Path
) -> dict[str, Any]:
    """The block for a ds_config.json; its paths are absolute."""
    blocks = plan.row_plan.blocks
    assert isinstance(blocks, DrawnBlocks)
    num_drawn = plan.total_steps(config.train) * plan.global_batch_size
    metric = {
        "index_to_sample_path": str(folder / f"{NAME}_index_to_sample"),
        "index_to_metric_path": str(folder / f"{NAME}_index_to_metric"),
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": schedule["difficulty"][0],
        "max_difficulty": schedule["difficulty"][-1],
        "schedule_type": "fixed_discrete",
        "schedule_config": schedule,
    }
    return {
        "data_efficiency": {
            "enabled": True,
            "seed": config.train.seed,
            "data_sampling": {
                "enabled": True,
                "num_epochs": ceil(num_drawn / blocks.pools[0].num_samples) + 1,
                "num_workers": 0,
                "curriculum_learning": {
                    "enabled": True,
                    "data_cluster_path": str(folder / "clusters"),
                    "curriculum_metrics": {NAME: metric},
                },
            },
        }
    }


def _write_samples(path: Path, prepared: PreparedData) -> None:
    """Which row of which source a sample is, in the order of the samples."""
    store, names = prepared.train, prepared.source_names
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "source", "row"])
        columns = zip(store.sources.tolist(), store.ordinals.tolist(), strict=True)
        writer.writerows(
            (number, names[source], row + 1) for number, (source, row) in enumerate(columns)
        )
