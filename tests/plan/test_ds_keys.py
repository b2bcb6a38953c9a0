"""The table of DeepSpeed's keys against the installed DeepSpeed."""

from __future__ import annotations

import enum
import inspect
import typing
from typing import Any

import pytest

from ds_train.plan import ds_keys

# DeepSpeed is imported by these tests only; they hold our table against its models.
pytest.importorskip("deepspeed")
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import DeepSpeedMonitorConfig
from deepspeed.runtime import config as ds_config_module
from deepspeed.runtime import constants
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

KINDS = {bool: ds_keys.BOOL, int: ds_keys.COUNT, float: ds_keys.NUMBER, str: ds_keys.TEXT}


def table_of(model: type[DeepSpeedConfigModel]) -> dict[str, Any]:
    """Our notation for one of DeepSpeed's pydantic models."""
    table: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if (info.json_schema_extra or {}).get("deprecated"):
            continue
        kinds = [k for k in typing.get_args(info.annotation) if k is not type(None)]
        kind = (
            kinds[0]
            if kinds and typing.get_origin(info.annotation) is not list
            else (info.annotation)
        )
        if inspect.isclass(kind) and issubclass(kind, DeepSpeedConfigModel):
            table[info.alias or name] = table_of(kind)
        elif inspect.isclass(kind) and issubclass(kind, enum.Enum):
            table[info.alias or name] = tuple(dict.fromkeys(item.value for item in kind))
        elif kind is list or typing.get_origin(kind) is list:
            table[info.alias or name] = ds_keys.LIST
        else:
            table[info.alias or name] = KINDS.get(kind, ds_keys.TEXT)
    return table


def test_zero_optimization() -> None:
    installed = table_of(DeepSpeedZeroConfig) | {"zenflow": ds_keys.ANY}
    assert installed == ds_keys.ZERO


def test_deprecated_zero_keys_are_refused() -> None:
    for name, info in DeepSpeedZeroConfig.model_fields.items():
        if (info.json_schema_extra or {}).get("deprecated"):
            assert f"zero_optimization.{name}" in ds_keys.REMOVED


def test_precision() -> None:
    assert table_of(DeepSpeedBF16Config) == ds_keys.BF16
    assert table_of(DeepSpeedFP16Config) == ds_keys.FP16


def test_monitors_and_loggers() -> None:
    assert table_of(DeepSpeedMonitorConfig) == ds_keys.MONITORS
    assert table_of(CommsLoggerConfig) == ds_keys.COMMS_LOGGER
    throughput = ds_keys.KNOWN["timers"]["throughput"]
    assert table_of(DeepSpeedThroughputTimerConfig) == throughput
    assert set(AIO_DEFAULT_DICT) == set(ds_keys.KNOWN["aio"])


def test_removed_keys() -> None:
    removed = set(ds_config_module._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    removed |= {f"zero_optimization.{k}" for k in ds_config_module._REMOVED_ZERO_CONFIG_KEYS}
    assert removed <= set(ds_keys.REMOVED)


def test_every_known_top_level_key_is_read_by_deepspeed() -> None:
    source = inspect.getsource(ds_config_module)
    read = {value for value in vars(constants).values() if isinstance(value, str)}
    monitors = set(ds_keys.MONITORS)
    elsewhere = {"zero_optimization", "aio", "flops_profiler", "comms_logger", "timers"}
    for key in ds_keys.KNOWN:
        assert key in read | monitors | elsewhere or f'"{key}"' in source, key
