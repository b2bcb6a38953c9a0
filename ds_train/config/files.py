"""Which files a recipe names, and which of them are not there.

Relative paths start at the current directory, as in Hugging Face tools. A name that can't be a
local path (`org/dataset`) is left to the hub.
"""

from __future__ import annotations

import glob
import json
import os
from difflib import get_close_matches
from pathlib import Path

from ds_train.config.data import SourceConfig
from ds_train.config.run import RunConfig

DATA_SUFFIXES = (
    ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".text", ".md", ".arrow",
    ".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4",
)  # fmt: skip
_MODEL_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin")


def looks_like_path(text: str) -> bool:
    """Whether a name can only be a local path, never `name` or `org/name` of the hub."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or text.endswith("/")
        or text.count("/") > 1
        or has_glob(text)
        or text.lower().endswith(DATA_SUFFIXES)
    )


def has_glob(text: str) -> bool:
    """Whether the text has wildcards."""
    return any(character in text for character in "*?[")


def check_files(config: RunConfig) -> list[str]:
    """Every path of `check_paths`, and rows longer than the model's config.json allows."""
    return check_paths(config) + _check_positions(config)


def check_paths(config: RunConfig) -> list[str]:
    """Every file or folder that the recipe names and that is missing or of the wrong kind."""
    faults = _check_model(config) + _check_output(config.output_dir)
    sources = [(f"data.train[{i}]", source) for i, source in enumerate(config.data.train)]
    for i, source in enumerate(config.data.validation.sources):
        sources.append((f"data.validation.sources[{i}]", source))
    for i, source in enumerate(config.data.dev.sources if config.data.dev is not None else []):
        sources.append((f"data.dev.sources[{i}]", source))
    for name, source in sources:
        faults += _check_source(name, source)
    for name, value in (
        ("engine.config", config.engine.config),
        ("cluster.hostfile", config.cluster.hostfile),
        ("data.chat_template", _template_file(config.data.chat_template)),
    ):
        if value is not None and not _expand(value).is_file():
            faults.append(missing(name, value, "file"))
    tasks = config.evaluate.task_path
    if tasks is not None and not _expand(tasks).is_dir():
        faults.append(missing("evaluate.task_path", tasks, "folder"))
    measuring = config.curriculum.metric_model if config.curriculum is not None else None
    if measuring is not None and looks_like_path(measuring) and not _expand(measuring).is_dir():
        faults.append(missing("curriculum.metric_model", measuring, "folder"))
    return faults


def missing(name: str, value: str, kind: str) -> str:
    """Message about a path that is not there, with the nearest name in its folder."""
    path = _expand(value)
    if kind == "file" and path.is_dir():
        return f'{name} = "{value}": is a folder; name a file in it.'
    start = "" if path.is_absolute() else f" in {Path.cwd()}"
    message = f'{name} = "{value}": no such {kind}{start}.'
    folder = path.parent
    if not folder.is_dir():
        return f"{message[:-1]}; there is no folder {folder} either."
    near = get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
    return f"{message} Did you mean {folder / near[0]}?" if near else message


def _expand(text: str) -> Path:
    return Path(text).expanduser()


def _template_file(template: str | None) -> str | None:
    """The template when it names a file; Jinja text has braces or several lines."""
    if template is None or "{" in template or "\n" in template:
        return None
    named = template.endswith((".jinja", ".j2", ".txt")) or looks_like_path(template)
    return template if named else None


def _check_model(config: RunConfig) -> list[str]:
    model, adapter = config.model, config.adapter
    faults = _check_folder("model.name_or_path", model.name_or_path, "config.json")
    if not faults and model.init == "pretrained" and _expand(model.name_or_path).is_dir():
        folder = _expand(model.name_or_path)
        if not any(True for pattern in _MODEL_WEIGHTS for _ in folder.glob(pattern)):
            faults.append(
                f'model.name_or_path = "{model.name_or_path}": the folder has a config.json but no '
                f"weights (*.safetensors); set model.init: random to train from scratch."
            )
    if model.tokenizer_name_or_path is not None:
        name = "model.tokenizer_name_or_path"
        faults += _check_folder(name, model.tokenizer_name_or_path, "tokenizer_config.json")
    if adapter.path is not None:
        faults += _check_folder("adapter.path", adapter.path, "adapter_config.json")
        faults += _check_adapter_kind(adapter.path)
    return faults


def _check_adapter_kind(path: str) -> list[str]:
    """PEFT can't go on with a learned prompt or prefix: it loads those for inference only."""
    try:
        facts = json.loads((_expand(path) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of the hub, or a fault that loading the adapter reports
        return []
    kind = facts.get("peft_type") if isinstance(facts, dict) else None
    if kind not in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"):
        return []
    return [
        f'adapter.path = "{path}": is of kind {kind}, and only LoRA and IA3 adapters can be '
        "continued; remove adapter.path and set adapter.method to train a new one."
    ]


def model_positions(config: RunConfig) -> int | None:
    """Most tokens that a local model reads, as its config.json says; None where nothing says it."""
    path = _expand(config.model.name_or_path) / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a hub name, or a fault that loading the model reports
        return None
    if not isinstance(facts, dict):
        return None
    facts = {**facts, **(facts.get("text_config") or {}), **config.model.config_overrides}
    found = facts.get("max_position_embeddings", facts.get("n_positions"))
    return found if isinstance(found, int) else None


def _check_positions(config: RunConfig) -> list[str]:
    limit, positions = config.data.max_length, model_positions(config)
    adapter = config.adapter
    virtual = adapter.num_virtual_tokens if adapter.method.endswith("_tuning") else 0
    if positions is None or limit + virtual <= positions:
        return []
    before = f" with adapter.num_virtual_tokens = {virtual:,}" if virtual else ""
    return [
        f'data.max_length = {limit:,}{before}: the model "{config.model.name_or_path}" reads at '
        f"most {positions:,} positions; set data.max_length to {positions - virtual:,} or less."
    ]


def _check_folder(name: str, value: str, needed: str) -> list[str]:
    """A model, tokenizer or adapter folder; a value that is no path belongs to the hub."""
    path = _expand(value)
    if path.is_dir():
        if (path / needed).is_file():
            return []
        return [
            f'{name} = "{value}": the folder has no {needed}; it is not of Hugging Face format.'
        ]
    if path.exists():
        return [f'{name} = "{value}": is a file; name the folder that holds {needed}.']
    return [missing(name, value, "folder")] if looks_like_path(value) else []


def _check_source(name: str, source: SourceConfig) -> list[str]:
    paths = source.path if isinstance(source.path, list) else [source.path]
    if not paths:
        return [f"{name}.path = []: is empty; name at least one file."]
    several = isinstance(source.path, list)
    faults = []
    for index, value in enumerate(paths):
        place = f"{name}.path[{index}]" if several else f"{name}.path"
        if not value.strip():
            faults.append(f'{place} = "{value}": is empty; name a file, a glob or a dataset.')
        elif not _expand(value).exists() and has_glob(value):
            # Path.glob takes no absolute pattern
            if not glob.glob(str(_expand(value)), recursive=True):  # noqa: PTH207
                start = "" if _expand(value).is_absolute() else f" in {Path.cwd()}"
                faults.append(f'{place} = "{value}": no file matches{start}.')
        elif not _expand(value).exists() and looks_like_path(value):
            faults.append(missing(place, value, "file or folder"))
        elif _expand(value).is_file() and _expand(value).stat().st_size == 0:
            faults.append(f'{place} = "{value}": the file is empty.')
    return faults


def _check_output(output_dir: str) -> list[str]:
    """The run folder must be one that can be made and written to."""
    path = _expand(output_dir)
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f'output_dir = "{output_dir}": {existing} is a file; name a folder.']
    if not os.access(existing, os.W_OK):
        return [f'output_dir = "{output_dir}": {existing} is not writable; name another folder.']
    return []
