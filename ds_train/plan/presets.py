"""The presets of ds_configs/, found in a checkout and in an installed package alike."""

from __future__ import annotations

import json
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from ds_train.config.files import missing
from ds_train.errors import ConfigError

DEFAULT_PRESET = "zero2"


def ds_configs_dir() -> Path:
    """Folder of presets and recipes: a link to ../ds_configs in a checkout, real in a wheel."""
    return Path(str(files("ds_train"))) / "ds_configs"


def preset_names() -> list[str]:
    """Names that engine.preset may have."""
    return sorted(path.stem for path in ds_configs_dir().glob("*.json"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset as a dict. Raises ConfigError with the nearest name."""
    names = preset_names()
    if name not in names:
        near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f'engine.preset = "{name}": no such preset; there are {", ".join(names)}.{hint}'
        )
    return read_ds_config(ds_configs_dir() / f"{name}.json", "engine.preset")


def read_ds_config(path: Path, field: str) -> dict[str, Any]:
    """A ds_config.json as a dict. Raises ConfigError with line and column."""
    try:
        raw = json.loads(
            path.expanduser().read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates
        )
    except FileNotFoundError:
        raise ConfigError(missing(field, str(path), "file")) from None
    except OSError as error:
        raise ConfigError(f'{field} = "{path}": can\'t be read: {error.strerror}.') from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f'{field} = "{path}": line {error.lineno}, column {error.colno}: not valid JSON: '
            f"{error.msg}."
        ) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f'{field} = "{path}": {error}.') from None
    if not isinstance(raw, dict):
        raise ConfigError(f'{field} = "{path}": must hold one JSON object {{...}}.')
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is written twice; remove one of them")
    return dict(pairs)
