"""What names a model in the fingerprint of a difficulty, found without torch.

Of a folder: its weight files (sizes, headers, samples of their bytes) and its configuration; of a
run also its checkpoints, so that scores are made anew when it has gone on. Of a hub model: the
commit that lies in the cache of Hugging Face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.data.fingerprint import fingerprint_files
from ds_train.paths import RunPaths

_FILES = ("*.safetensors", "config.json", "adapter_config.json", "recipe.yaml")


def metric_model_facts(name: str) -> Any:
    """Facts of `curriculum.metric_model`."""
    return _facts(name, None)


def start_model_facts(config: RunConfig) -> Any:
    """Facts of the model that the run starts from, for `metric: loss`."""
    model, adapter = config.model, config.adapter.path
    facts = {
        "model": _facts(model.name_or_path, model.revision),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "adapter": None if adapter is None else _facts(adapter, None),
    }
    if model.init == "random":
        facts |= {"seed": config.train.seed, "changes": model.config_overrides}
    return facts


def _facts(name: str, revision: str | None) -> Any:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return [name, _cached_commit(name, revision)]
    files = {file for pattern in _FILES for file in folder.glob(pattern)}
    files |= set(RunPaths(folder).checkpoints.rglob("*.safetensors"))
    return fingerprint_files(sorted(file for file in files if file.is_file()))


def _cached_commit(name: str, revision: str | None) -> str | None:
    """Commit of a hub model in the cache; None where it was never loaded."""
    from huggingface_hub import try_to_load_from_cache  # 0.3 s, and only hub models need it
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # a path that is not there: the message comes when it is opened
        return None
    return Path(found).parent.name if isinstance(found, str) else None
