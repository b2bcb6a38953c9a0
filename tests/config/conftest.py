"""A recipe that is valid, for tests that break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError

SMALL = """\
output_dir: runs/first
model: {name_or_path: path-or-hub-name, dtype: bf16}
adapter: {method: lora, r: 8, alpha: 16, dropout: 0.0, target_modules: all-linear}
data:
  train: [{path: train.jsonl, format: prompt_completion, weight: 1.0}]
  validation: {fraction: 0.05}
  max_length: 512
  packing: true
train: {global_batch_size: 32, per_device_train_batch_size: 4, max_steps: 200,
        learning_rate: 1.0e-3, lr_scheduler_type: cosine, warmup_steps: 10, max_grad_norm: 1.0,
        seed: 0}
engine: {preset: zero2}
checkpoint: {every: 50 steps, keep: 2}
cluster: {processes_per_node: 2}
"""
"""The recipe of the project's contract."""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    """Load a recipe's text with overrides."""

    def load_text(text: str = SMALL, *overrides: str) -> RunConfig:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return load_text


@pytest.fixture
def faults(load: Callable[..., RunConfig]) -> Callable[..., list[str]]:
    """Faults of a recipe's text with overrides."""

    def faults_of(text: str = SMALL, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.faults

    return faults_of


@pytest.fixture
def small() -> str:
    return SMALL
