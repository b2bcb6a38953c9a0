"""A stored PEFT adapter, as far as its file's header tells."""

from __future__ import annotations

from pathlib import Path

from ds_train.errors import ModelError, quoted
from ds_train.plan.headers import read_header
from ds_train.plan.shapes import Shape

_WEIGHTS = "adapter_model.safetensors"


def stored_adapter(path: str) -> dict[str, Shape]:
    """Name (without PEFT's prefix) and shape of its tensors; all of them train.

    Raises ModelError when the folder or file is not there or not whole.
    """
    file = Path(path).expanduser() / _WEIGHTS
    if not file.is_file():
        raise ModelError(
            f"adapter.path = {quoted(path)}: {_WEIGHTS} is not there; name the folder of an "
            "adapter, or leave path out and describe it in the recipe."
        )
    return {
        name.removeprefix("base_model.model."): tuple(entry["shape"])
        for name, entry in read_header(file).items()
    }
