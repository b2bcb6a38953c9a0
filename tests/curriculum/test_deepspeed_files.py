"""DeepSpeed itself reads what is exported, and its sampler draws from our pools, step by step."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_train.config.load import config_from_dict
from ds_train.config.run import RunConfig
from ds_train.curriculum.blocks import DrawnBlocks
from ds_train.curriculum.deepspeed_files import export_curriculum, whole_levels, write_index
from ds_train.curriculum.pacing import competence
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.data.prepare import prepare_data
from ds_train.errors import ConfigError, DataError
from ds_train.model.tiny import save_tiny

NUM_SAMPLES, BATCH, STEPS = 230, 8, 60

READER = """
import json, sys
from types import SimpleNamespace
from deepspeed.runtime.data_pipeline.config import get_data_efficiency_config
from deepspeed.runtime.data_pipeline.data_sampling import data_sampler
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset as Read

# one process: nobody to wait for and nobody to tell
data_sampler.dist = SimpleNamespace(
    barrier=lambda group=None: None, broadcast=lambda tensor, source, group=None: None
)
group, found = SimpleNamespace(size=lambda: 1), {}
for folder, num_samples, batch, steps in json.loads(sys.argv[1]):
    config = get_data_efficiency_config(json.load(open(f"{folder}/data_efficiency.json")))
    sampler = data_sampler.DeepSpeedDataSampler(config, num_samples, batch, 0, 1, group, 1, 0)
    drawn, difficulty, batches = [], [], iter(sampler)
    for _ in range(steps):
        drawn.append([int(one) for one in next(batches)])
        difficulty.append(int(sampler.current_difficulties["difficulty"]))
    name = f"{folder}/difficulty_index_to_"
    samples, metric = (Read(name + kind, skip_warmup=True) for kind in ("sample", "metric"))
    levels = {int(metric[i][0]): samples[i].tolist() for i in range(len(samples))}
    found[folder] = {"drawn": drawn, "difficulty": difficulty, "levels": levels}
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A working folder with texts of 1 to 23 words, a model, and a recipe over them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    save_tiny(Path("model"))
    rng = np.random.default_rng(0)
    lines = [{"text": "word " * int(n)} for n in rng.integers(1, 24, NUM_SAMPLES)]
    Path("train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "output_dir": "run",
        "model": {"name_or_path": "./model", "dtype": "fp32"},
        "data": {
            "train": [{"path": "train.jsonl", "format": "text", "name": "words"}],
            "max_length": 128,
            "packing": False,
            "cache_dir": "cache",
        },
        "train": {"global_batch_size": BATCH, "max_steps": STEPS},
        "cluster": {"processes_per_node": 1},
    }


def quiet(text: str) -> None:
    pass


def with_curriculum(recipe: dict[str, Any], **curriculum: Any) -> RunConfig:
    return config_from_dict(recipe | {"curriculum": {"metric": "length", **curriculum}})


def read_by_deepspeed(sizes: dict[str, int]) -> dict[str, Any]:
    """What DeepSpeed's own classes make of folders, in a process of their own.

    `sizes`: folder -> samples of its data.
    """
    jobs = [[folder, num_samples, BATCH, STEPS] for folder, num_samples in sizes.items()]
    out = Path("read.json").resolve()
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(jobs), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


CASES = [
    {"pacing": {"type": "linear", "start": 0.1, "end_at": 0.5}},
    {"pacing": {"type": "root", "p": 2, "start": 0.05, "end_at": 0.8}, "normalise": "value"},
    {"order": "hard_to_easy", "pacing": {"type": "exp", "start": 0.1, "end_at": "30 steps"}},
    {
        "order": "random_pool",
        "pacing": {"type": "discrete", "levels": [0.2, 0.6, 1.0], "at": [0.25, 0.5]},
    },
    {"metric": ["length", "compression"], "pacing": {"start": 0.3, "end": 0.6}, "then": "continue"},
]


def test_the_sampler_draws_from_our_pools(recipe: dict[str, Any]) -> None:
    """DeepSpeed is imported once, as that takes longer than all the rest."""
    configs = {f"out{i}": with_curriculum(recipe, **case) for i, case in enumerate(CASES)}
    for folder, config in configs.items():
        export_curriculum(config, folder, quiet)
    few = recipe["data"] | {"train": [recipe["data"]["train"][0] | {"max_samples": 40}]}
    # DeepSpeed's percentiles fail on fewer than 100 samples; our levels are fewer then
    export_curriculum(with_curriculum(recipe | {"data": few}, **CASES[0]), "few", quiet)
    found = read_by_deepspeed(dict.fromkeys(configs, NUM_SAMPLES) | {"few": 40})
    for folder, config in configs.items():
        compare(config, found[folder], NUM_SAMPLES, num_levels=28)  # of 8 samples at least
    compare(with_curriculum(recipe | {"data": few}, **CASES[0]), found["few"], 40, num_levels=5)


def compare(config: RunConfig, found: dict[str, Any], num_samples: int, num_levels: int) -> None:
    """What DeepSpeed drew, step by step, against our own pools."""
    prepared = prepare_data(config, say=quiet)
    plan = build_step_plan(config, prepared, find_scores(config, prepared), BATCH)
    blocks = plan.row_plan.blocks
    assert isinstance(blocks, DrawnBlocks) and config.curriculum is not None
    (pool,) = blocks.pools
    everything = [sample for level in found["levels"].values() for sample in level]
    assert sorted(everything) == list(range(num_samples))
    for step in range(STEPS):
        at = plan.row_plan.before(plan.first_row(step))
        share = competence(config.curriculum, blocks.length, at)
        level = found["difficulty"][step]
        assert level == max(1, int(share * num_levels + 1e-9)), step
        ours = set(pool.ids(np.arange(pool.size(share))).tolist())
        assert len(found["drawn"][step]) == BATCH and set(found["drawn"][step]) <= ours, step
        theirs = {
            sample
            for number, samples in found["levels"].items()
            if int(number) <= level
            for sample in samples
        }
        # a level that is too small waits for the next one
        assert theirs <= ours and len(theirs) > pool.size(level / num_levels) - BATCH


def test_settings_and_sample_numbers(recipe: dict[str, Any]) -> None:
    config = with_curriculum(recipe, **CASES[0])
    said: list[str] = []
    folder = export_curriculum(config, "out", said.append)
    settings = json.loads((folder / "data_efficiency.json").read_text())["data_efficiency"]
    metric = settings["data_sampling"]["curriculum_learning"]["curriculum_metrics"]["difficulty"]
    assert metric["index_to_sample_path"] == str(Path("out/difficulty_index_to_sample").resolve())
    assert metric["schedule_config"]["difficulty"][:4] == [2, 3, 4, 5]  # of 28
    # 0.1 + 0.03 a step: 2.8, 3.64, 4.48, 5.32, 6.16 of 28
    assert metric["schedule_config"]["max_step"][:3] == [1, 2, 3]
    assert (metric["min_difficulty"], metric["max_difficulty"]) == (2, 28)
    assert settings["data_sampling"]["num_epochs"] == 4  # 480 samples are drawn of 230
    with (folder / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    store = prepare_data(config, say=quiet).train
    assert [int(row["sample"]) for row in rows] == list(range(NUM_SAMPLES))
    assert [int(row["row"]) - 1 for row in rows] == store.ordinals.tolist()
    assert {row["source"] for row in rows} == {"words"}
    assert "does not find its place again after a resume" in said[-1]


def test_a_level_that_is_too_small_waits() -> None:
    assert whole_levels([8, 8, 10, 18, 30], 8) == [(1, 8), (4, 18), (5, 30)]
    assert whole_levels([8, 16, 20], 8) == [(1, 8), (3, 20)]  # the last takes the second along
    assert whole_levels([3, 5], 8) == [(2, 5)]


def test_the_bytes_of_an_index(tmp_path: Path) -> None:
    write_index(tmp_path / "x", [np.array([7, 8], np.int32), np.array([9], np.int32)])
    assert (tmp_path / "x.bin").read_bytes() == np.array([7, 8, 9], "<i4").tobytes()
    expected = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + b"\x04"
    expected += (2).to_bytes(8, "little") * 2
    expected += np.array([2, 1], "<i4").tobytes() + np.array([0, 8, 0, 2], "<i8").tobytes()
    assert (tmp_path / "x.idx").read_bytes() == expected


def faults(recipe: dict[str, Any], curriculum: dict[str, Any] | None, **sections: Any) -> list[str]:
    raw = recipe | sections | ({} if curriculum is None else {"curriculum": curriculum})
    with pytest.raises(ConfigError) as caught:
        export_curriculum(config_from_dict(raw), "out", quiet)
    assert not Path("out").exists()
    return caught.value.faults


def test_what_deepspeed_s_sampler_cannot_do_is_refused(recipe: dict[str, Any]) -> None:
    none = [
        "export-curriculum: the recipe has no order by difficulty; give section curriculum with an "
        "order other than uniform."
    ]
    assert faults(recipe, None) == none
    assert faults(recipe, {"order": "uniform"}) == none
    assert faults(recipe, {"cover": True, "seq_len": {"start": 8}}) == [
        "curriculum.cover: DeepSpeed's sampler can't do it: it draws newer levels by their size "
        "only; remove it to export.",
        "curriculum.seq_len: DeepSpeed's sampler can't do it: it leaves lengths to a function of "
        "your own (engine.set_data_post_process_func); remove it to export.",
    ]
    assert faults(recipe, {"window": 8})[0].startswith("curriculum.window: DeepSpeed's")
    mixture = recipe["data"] | {"mixture": {"temperature": 2.0}}
    assert faults(recipe, {}, data=mixture)[0].startswith("data.mixture: DeepSpeed's sampler")
    assert faults(recipe, {"pacing": {"start": 1.0, "end": 0.5}}) == [
        "curriculum.pacing: the pool shrinks, and DeepSpeed's scheduler stays at the highest "
        "difficulty that it has reached; give one that grows."
    ]
    assert faults(recipe, {"pacing": {"start": 1.0, "end": 1.0}}) == [
        "curriculum.pacing: the pool never grows by a hundredth (or by one global batch), so there "
        "is nothing for DeepSpeed's scheduler to do; lower pacing.start, or make the run longer."
    ]


def test_nothing_is_overwritten(recipe: dict[str, Any]) -> None:
    Path("out").mkdir()
    (Path("out") / "mine").write_text("x")
    with pytest.raises(DataError, match="already there and not empty; choose another folder"):
        export_curriculum(with_curriculum(recipe), "out", quiet)
    assert [path.name for path in Path("out").iterdir()] == ["mine"]
