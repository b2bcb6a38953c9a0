"""What tuning tries, in which order, what it believes, and how it writes a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main
from ds_train.config.load import config_from_dict, load_recipe
from ds_train.config.run import RunConfig
from ds_train.plan.batch import BatchPlan, batch_arithmetic
from ds_train.plan.cluster import Cluster
from ds_train.plan.count import shape_of
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.tune.choice import Choice, apply, changes, current, micro_batch_sizes
from ds_train.tune.search import Search, Trial
from ds_train.tune.shortlist import Shortlist
from ds_train.tune.trial import Failed, _failure
from ds_train.tune.write import changed_recipe

MODEL = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def recipe(**sections: dict[str, Any]) -> RunConfig:
    """LoRA, 64 rows of 1,024 tokens a step, 4 at once."""
    raw: dict[str, Any] = {
        "output_dir": "run",
        "model": {"name_or_path": "org/model", "dtype": "bf16"},
        "data": {"train": [{"path": "org/data"}], "max_length": 1024},
        "train": {"max_steps": 10, "global_batch_size": 64, "per_device_train_batch_size": 4},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return config_from_dict(raw)


def batch_of(config: RunConfig, world_size: int = 8) -> BatchPlan:
    return batch_arithmetic(config, world_size)


def shortlist(config: RunConfig, gpu_memory: int | None, gpus: int = 8) -> Shortlist:
    cluster = Cluster("test", 1, gpus, gpu_memory=gpu_memory)
    return Shortlist(config, shape_of(MODEL), cluster, batch_of(config, gpus))


def test_no_choice_changes_the_rows_of_a_step() -> None:
    config = recipe()
    batch = batch_of(config)
    assert micro_batch_sizes(batch) == [1, 2, 4, 8]
    for size in micro_batch_sizes(batch):
        changed = apply(config, Choice("zero3", size, True), batch)
        assert batch_of(changed).global_batch_size == 64
    accumulating = {"global_batch_size": None, "gradient_accumulation_steps": 2}
    config = recipe(train={**accumulating, "max_steps": 10})
    changed = apply(config, Choice("zero2", 8, False), batch_of(config))
    assert changed.train.gradient_accumulation_steps == 1
    assert batch_of(changed).global_batch_size == 64


def test_the_recipes_own_choice_changes_nothing() -> None:
    for config in (recipe(), recipe(engine={"preset": "zero3"})):
        now = current(config)
        assert changes(config, now, batch_of(config)) == {}
        assert apply(config, now, batch_of(config)) == config


def test_another_preset_drops_the_old_ones_sizes_and_keeps_the_rest() -> None:
    own = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    config = recipe(engine={"preset": "zero2", "overrides": own})
    choice = Choice("zero3", 4, False).with_bucket("stage3_prefetch_bucket_size", 7)
    changed = apply(config, choice, batch_of(config))
    resolved = resolve_ds_config(changed, batch_of(config))
    assert resolved["zero_optimization"]["stage3_prefetch_bucket_size"] == 7
    assert resolved["zero_optimization"]["reduce_bucket_size"] != 1000
    assert resolved["wall_clock_breakdown"] is True


def test_the_shortlist_holds_the_largest_micro_batch_that_fits() -> None:
    roomy = shortlist(recipe(), 80 << 30).candidates()
    assert {one.choice.micro_batch_size for one in roomy} == {8}
    assert {one.choice.preset for one in roomy} == {"zero1", "zero2", "zero3"}
    assert not any(one.choice.recompute for one in roomy)  # nothing to gain by it
    tight = shortlist(recipe(), 14 << 30).candidates()
    assert any(one.choice.recompute for one in tight)
    for one in tight:
        assert one.plan is not None and one.plan.fits


def test_offloading_is_tried_only_where_nothing_else_fits() -> None:
    config = recipe(adapter={"method": "full"})
    assert all(
        "offload" not in str(c.choice.preset) for c in shortlist(config, 40 << 30).candidates()
    )
    presets = {one.choice.preset for one in shortlist(config, 5 << 30, gpus=2).candidates()}
    assert presets and all("offload" in str(preset) for preset in presets)


def test_on_one_device_stages_are_not_compared() -> None:
    presets = {one.choice.preset for one in shortlist(recipe(), 80 << 30, gpus=1).candidates()}
    assert len(presets) == 1


def test_an_own_deepspeed_config_keeps_its_engine_section(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
    config = recipe(engine={"config": str(tmp_path / "mine.json")})
    found = shortlist(config, 80 << 30).candidates()
    assert {one.choice.preset for one in found} == {None}


class Machine:
    """Times of a machine that is quickest with zero1, 8 rows and small buckets."""

    def __init__(self, most_rows: int = 8) -> None:
        self.asked: list[Choice] = []
        self._most_rows = most_rows

    def __call__(self, choice: Choice) -> Trial:
        self.asked.append(choice)
        if choice.micro_batch_size > self._most_rows:
            return Trial(choice, None, fault="out of memory", out_of_memory=True)
        seconds = {"zero1": 1.0, "zero2": 1.2, "zero3": 2.0}[str(choice.preset)]
        seconds += 1.0 / choice.micro_batch_size + 0.3 * choice.recompute
        seconds -= 0.01 * sum(size < 1e8 for _, size in choice.buckets)
        return Trial(choice, seconds, 1.0, 1)


def test_the_climb_begins_with_the_recipe_and_ends_at_the_quickest() -> None:
    config, machine = recipe(), Machine()
    search = Search(shortlist(config, 80 << 30), machine, num_trials=30)
    best = search.climb(current(config))
    assert machine.asked[0] == current(config)
    assert best is not None and (best.preset, best.micro_batch_size) == ("zero1", 8)
    assert best.buckets and best.buckets[0][0] == "allgather_bucket_size"
    assert len(set(machine.asked)) == len(machine.asked)  # nothing is tried twice


def test_after_out_of_memory_smaller_micro_batches_are_tried() -> None:
    config, machine = recipe(), Machine(most_rows=2)
    search = Search(shortlist(config, 80 << 30), machine, num_trials=30)
    best = search.climb(current(config))
    assert best is not None and best.micro_batch_size == 2
    verdict = search.compare(current(config), best, 3)
    assert verdict.is_quicker and verdict.speedup is None  # the recipe itself does not run


def test_no_more_trials_than_asked_for() -> None:
    config, machine = recipe(), Machine()
    search = Search(shortlist(config, 80 << 30), machine, num_trials=3)
    assert search.climb(current(config)) is not None
    assert len(machine.asked) == 3


def test_what_is_not_quicker_every_time_is_not_recommended() -> None:
    config = recipe()
    now, best = current(config), Choice("zero1", 8, False)
    times = {now: iter([2.0, 1.0, 2.0]), best: iter([1.0, 1.1, 1.0])}
    search = Search(
        shortlist(config, None), lambda choice: Trial(choice, next(times[choice])), num_trials=9
    )
    search.trials = {now: Trial(now, 2.0), best: Trial(best, 1.0)}
    verdict = search.compare(now, best, 3)
    assert verdict.speedup == 2.0 and not verdict.is_quicker


def test_a_best_that_fails_the_second_time_is_not_recommended() -> None:
    config = recipe()
    now, best = current(config), Choice("zero1", 8, False)
    search = Search(
        shortlist(config, None),
        lambda choice: replace(Trial(choice, 1.0), seconds=None if choice == best else 1.0),
        num_trials=9,
    )
    search.trials = {now: Trial(now, 2.0), best: Trial(best, 1.0)}
    assert not search.compare(now, best, 2).is_quicker


TEXT = """\
# what this is for
output_dir: run
model: {name_or_path: org/model}  # the base
data:
  train:
  - path: org/data   # rows

train:
  max_steps: 10
  per_device_train_batch_size: 1  # one at once
"""


def test_a_recipe_keeps_its_comments(tmp_path: Path) -> None:
    found = changed_recipe(
        TEXT,
        {
            "train.per_device_train_batch_size": 8,
            "engine.overrides.zero_optimization.reduce_bucket_size": 5,
            "model.gradient_checkpointing": True,
        },
        "tuned",
    )
    lines = found.splitlines()
    assert lines[:3] == ["# tuned", "# what this is for", "output_dir: run"]
    assert "  per_device_train_batch_size: 8  # one at once" in lines
    assert "  - path: org/data   # rows" in lines
    (tmp_path / "r.yaml").write_text(found)
    config = load_recipe(tmp_path / "r.yaml")
    assert config.model.gradient_checkpointing
    assert config.engine.overrides == {"zero_optimization": {"reduce_bucket_size": 5}}


@pytest.mark.parametrize(
    ("text", "code", "fault", "memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", 1, "out of memory", True),
        ("a training process was killed by SIGKILL", 1, "out of memory", True),
        ("$ x\nerror: data.train: nothing there", 2, "data.train: nothing there", False),
        ("step 1", 143, "too few steps within 60 s", False),
    ],
)
def test_why_a_trial_failed(tmp_path: Path, text: str, code: int, fault: str, memory: bool) -> None:
    (tmp_path / "log.txt").write_text(text)
    assert _failure(tmp_path / "log.txt", code, 60) == Failed(fault, memory)


def test_a_faulty_recipe_is_refused_before_any_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("output_dir: run\n")
    assert main(["tune", str(tmp_path / "my.yaml")]) == 2
    assert "model is missing" in capsys.readouterr().err
