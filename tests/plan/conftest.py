"""Configs for the tests of plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ds_train.config.load import config_from_dict
from ds_train.config.run import RunConfig


@pytest.fixture
def make() -> Callable[..., RunConfig]:
    """A config from sections given as keyword arguments, over a small valid one."""

    def build(**sections: dict[str, Any]) -> RunConfig:
        raw: dict[str, Any] = {
            "output_dir": "runs/x",
            "model": {"name_or_path": "org/model"},
            "data": {"train": [{"path": "org/data"}], "validation": {"fraction": 0.1}},
            "train": {"max_steps": 100},
        }
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section}
        return config_from_dict(raw)

    return build
