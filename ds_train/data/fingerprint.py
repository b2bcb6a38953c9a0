"""The name of tokenised data: a hash of all that it depends on, and of nothing else.

File contents (not their paths or times, so a copied tree has the same name), the settings of the
data section that change tokens, the tokenizer, the chat template, and the version of this code.
Hashing runs at about 1 GB/s; digests are remembered by (path, size, time of change).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_train.config.data import DataConfig
from ds_train.config.model import ModelConfig
from ds_train.data.encode import open_tokenizer
from ds_train.data.read_arrow import open_dataset
from ds_train.data.sources import Source, data_suffix
from ds_train.data.templates import BUILTIN

CODE_VERSION = 1
"""Raised whenever the same rows would become other tokens or another mask."""

_TOKENIZER_FILES = [
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*"),
    *("*.model", "*.tiktoken", "chat_template*", "*.py"),
]
_DIGESTS_NAME = "file_digests.json"


def hash_of(value: Any) -> str:
    """32 hexadecimal digits that name a value made of JSON types."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint_files(paths: Sequence[Path]) -> str:
    """Short hash of weight files: names, sizes, headers and 64 blocks of 64 KiB of each."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for block in range(64):
                file.seek(block * max(size // 64, 1))
                digest.update(file.read(65536))
    return digest.hexdigest()


def store_fingerprint(
    data: DataConfig,
    model: ModelConfig,
    sources: Sequence[Source],
    cache_dir: Path,
    all_choices: Sequence[bool] | None = None,
) -> str:
    """Name of the tokenised data of a recipe. Reads every file, unless its digest is known.

    all_choices: where the recipe asks for labelled examples, whether those of training and of
    validation are rendered with every answer.
    """
    with DigestMemory(cache_dir) as memory:
        facts = {
            "code": CODE_VERSION,
            "max_length": data.max_length,
            "over_length": data.over_length,
            "loss_on": data.loss_on,
            "chat_template": _template_facts(data.chat_template),
            "template_kwargs": data.template_kwargs,
            "tokenizer": _tokenizer_facts(model, memory),
            "sources": [_source_facts(source, memory) for source in sources],
        }
    if all_choices is not None:
        facts["all_choices"] = list(all_choices)
    return hash_of(facts)


def _template_facts(setting: str | None) -> str | None:
    if setting is None or setting in BUILTIN or "{" in setting:
        return BUILTIN.get(setting or "", setting)
    with contextlib.suppress(OSError):  # a missing file is reported when the template is read
        return hashlib.blake2b(Path(setting).expanduser().read_bytes()).hexdigest()
    return setting


def _tokenizer_facts(model: ModelConfig, memory: DigestMemory) -> Any:
    """Digests of a local tokenizer's files; the state of one from the hub."""
    folder = Path(model.tokenizer_name_or_path or model.name_or_path).expanduser()
    if folder.is_dir():
        files = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
        return {file.name: memory.digest(file) for file in sorted(files) if file.is_file()}
    tokenizer = open_tokenizer(model)
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    return hash_of([state, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)])


def _source_facts(source: Source, memory: DigestMemory) -> dict[str, Any]:
    config = source.config
    settings = ("format", "columns", "labels", "template", "loss_on", "max_samples")
    facts = {name: getattr(config, name) for name in settings}
    facts["validation"] = source.validation
    if source.kind == "files":
        return facts | {"files": [[data_suffix(f), memory.digest(f)] for f in source.files]}
    facts["split"] = config.split
    if source.kind == "saved":
        files = sorted(file for file in source.files[0].rglob("*") if file.is_file())
        names = [file.relative_to(source.files[0]).as_posix() for file in files]
        return facts | {"saved": dict(zip(names, map(memory.digest, files), strict=True))}
    return facts | {"hub": [config.path, config.subset, open_dataset(source)._fingerprint]}


class DigestMemory:
    """Digests of files, remembered in the cache folder so that every rank need not read them."""

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / _DIGESTS_NAME
        self._known: dict[str, list[Any]] = {}
        self._changed = False

    def __enter__(self) -> DigestMemory:
        with contextlib.suppress(OSError, ValueError):  # forgetting costs time only
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}
        return self

    def digest(self, file: Path) -> str:
        """blake2b of the contents."""
        stat = file.stat()
        key, facts = str(file.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:-1] == facts:
            return str(known[-1])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        # A file changed this very moment may change again within the clock's resolution.
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2 * 10**9:
            self._known[key] = [*facts, digest.hexdigest()]
            self._changed = True
        return digest.hexdigest()

    def __exit__(self, *exception: object) -> None:
        if not self._changed:
            return
        temporary = self._path.with_name(f".{_DIGESTS_NAME}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(OSError):  # a folder that can't be written is reported later
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)
