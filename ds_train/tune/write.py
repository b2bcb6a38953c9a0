"""Writes settings back into a recipe file; its comments, order and layout stay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from ds_train.errors import ConfigError
from ds_train.paths import replace_text


def changed_recipe(text: str, changes: Mapping[str, Any], remark: str) -> str:
    """A recipe's text with dotted keys set; `remark` becomes its first line, as a comment."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # lines are not broken anew
    document = yaml.load(text)
    for key, value in changes.items():
        *sections, name = key.split(".")
        here = document
        for section in sections:
            if not isinstance(here.get(section), CommentedMap):
                here[section] = CommentedMap()
            here = here[section]
        here[name] = value
    stream = io.StringIO()
    yaml.dump(document, stream)
    return f"# {remark}\n{stream.getvalue()}"


def write_recipe(path: Path, text: str) -> None:
    """Replace the file in one move. Raises ConfigError where that can't be done."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f'--output = "{path}": can\'t be written: {error.strerror}.') from None
