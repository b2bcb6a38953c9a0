"""From a recipe file and overrides to a frozen `RunConfig`, with every fault reported at once.

Reading has no effect beyond opening the file: no folder, process, device, download or logger.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ds_train.config.base import Section
from ds_train.config.faults import describe_faults
from ds_train.config.names import section_of
from ds_train.config.overrides import apply_override, parse_override
from ds_train.config.run import RunConfig
from ds_train.config.yaml_strict import KeyPath, dotted, dump_yaml, parse_yaml
from ds_train.errors import ConfigError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and lay `section.key=value` overrides over it.

    Raises ConfigError with every fault of the file and of the overrides.
    """
    path = Path(path)
    document = parse_yaml(_read_text(path), str(path))
    if document.value is None and document.faults:
        raise ConfigError(document.faults)
    raw = document.value if document.value is not None else {}
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a recipe is made of sections (`model:`, `data:`, `train:`, ...), "
            f"not of a {'list' if isinstance(raw, list) else 'single value'}."
        )
    if not raw and not overrides:
        raise ConfigError(f"{path}: is empty; `ds-train recipes` lists recipes to start from.")
    origins, faults = _apply_overrides(raw, overrides)

    def origin(place: KeyPath) -> str:
        """Where a setting comes from, for the end of a message."""
        line = document.lines.get(place)
        for given in origins:
            if place[: len(given)] == given or (line is None and given[: len(place)] == place):
                return " (on the command line)"
        return f" ({path.name}, line {line})" if line is not None else ""

    config, schema_faults = _build(raw, origin)
    faults = document.faults + faults + schema_faults
    if faults or config is None:
        raise ConfigError(faults, rest=config or _without_faults(raw))
    return config


def dump_recipe(config: RunConfig) -> str:
    """The complete recipe as YAML; it loads back to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def config_from_dict(raw: dict[str, Any]) -> RunConfig:
    """A config from sections as a dict, for programs and tests; ConfigError as for a file."""
    config, faults = _build(copy.deepcopy(raw), lambda place: "")
    if config is None:
        raise ConfigError(faults)
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the recipe file inside it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8 text; a recipe is a YAML file."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}.") from None


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    names = [entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml")]
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" Did you mean {folder / near[0]}?" if near else ""


def _apply_overrides(
    raw: dict[str, Any], overrides: Sequence[str]
) -> tuple[list[KeyPath], list[str]]:
    """Lay the overrides over `raw`; returns their places and the faults among them."""
    places, faults = [], []
    for text in overrides:
        try:
            path, value = parse_override(text)
            apply_override(raw, path, value)
            places.append(path)
        except ValueError as error:
            faults.append(f"override {text}: {error}.")
    return places, faults


def _build(raw: dict[str, Any], origin: Any) -> tuple[RunConfig | None, list[str]]:
    """Validate; on faults, once more without the faulty entries, for rules about whole sections."""
    _fill_empty_sections(raw, RunConfig)
    faults = {
        path: f"{dotted(path)} = {value!r}: is not a finite number{origin(path)}."
        for path, value in _not_finite(raw, ())
    }
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        found = describe_faults(error, origin)
        found |= _faults_of_the_rest(raw, found, origin)
        return None, list((found | faults).values())
    return (None if faults else config), list(faults.values())


def _faults_of_the_rest(
    raw: dict[str, Any], found: dict[KeyPath, str], origin: Any
) -> dict[KeyPath, str]:
    """Rules about several keys of a section, which pydantic tries only on faultless sections."""
    rest = copy.deepcopy(raw)
    removed = {str(part) for path in found for part in path[-1:] if _remove(rest, path)}
    if not removed:
        return {}
    # what was meant by an unknown key is not missing
    for message in found.values():
        removed |= set(re.findall(r"(?:Did you mean|here it is) (?:\S*\.)?(\w+)", message))
    try:
        RunConfig.model_validate(rest)
    except ValidationError as error:
        again = describe_faults(error, origin)
        return {
            path: message
            for path, message in again.items()
            if path not in found
            and "missing" not in message.split(":")[0]
            and not any(key in message for key in removed)
        }
    return {}


def _without_faults(raw: dict[str, Any]) -> RunConfig | None:
    """The recipe without its faulty entries; None where something that is needed is missing."""
    rest = copy.deepcopy(raw)
    for _ in range(2):  # rules about whole sections show themselves in the second round
        try:
            return RunConfig.model_validate(rest)
        except ValidationError as error:
            for path in describe_faults(error, lambda place: ""):
                _remove(rest, path)
    return None


def _remove(raw: Any, path: KeyPath) -> bool:
    """Take one entry out; False when it was not there (a missing key is its own fault)."""
    here = raw
    for part in path[:-1]:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(here, dict) and path[-1] in here:
        del here[path[-1]]
        return True
    return False


def _fill_empty_sections(raw: dict[str, Any], section: type[Section]) -> None:
    """An empty section (`train:` with nothing under it) has all its defaults."""
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None or name not in raw:
            continue
        if raw[name] is None and isinstance(info.annotation, type):
            raw[name] = {}
        if isinstance(raw[name], dict):
            _fill_empty_sections(raw[name], inner)


def _not_finite(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, float]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _not_finite(item, (*path, key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value
