"""The model of a recipe, described without torch, network or weights.

config.json comes from the model's folder or from the hub's cache on this machine. Where the
architecture is not in the table, the headers of the weight files there say every tensor's shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_train.config.model import ModelConfig
from ds_train.errors import ModelError, quoted
from ds_train.plan.architectures import ARCHITECTURES
from ds_train.plan.count import shape_of
from ds_train.plan.headers import INDEX, SINGLE, read_header
from ds_train.plan.shapes import ModelShape, Module, layer_number


def describe_model(model: ModelConfig) -> ModelShape:
    """Its modules; raises ModelError when neither config.json nor weight files say them."""
    config = {**read_config(model), **model.config_overrides}
    if config.get("model_type") in ARCHITECTURES:
        return shape_of(config)
    files = local_weights(model.name_or_path, model.revision)
    if not files or model.init == "random":
        return shape_of(config)  # its message
    return shape_of_headers(files, config)


def read_config(model: ModelConfig) -> dict[str, Any]:
    """config.json. Raises ModelError when it is not on this machine, or no JSON object."""
    path = local_file(model.name_or_path, "config.json", model.revision)
    if path is None:
        raise ModelError(
            f"model.name_or_path = {quoted(model.name_or_path)}: its config.json is not on this "
            f"machine, and plan uses no network; run hf download {model.name_or_path} config.json, "
            "or name a folder that has one."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: is not valid JSON ({error}); copy it again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold one JSON object {{...}}; copy it again.")
    return config


def local_file(name_or_path: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model folder or of the hub's cache; None where it is not here."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        path = folder / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache  # no torch; 0.1 s, for hub names only
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name_or_path, file, revision=revision)
    except HFValidationError:
        return None  # a path that does not exist
    return Path(found) if isinstance(found, str) else None


def local_weights(name_or_path: str, revision: str | None = None) -> list[Path]:
    """The safetensors files that are here; [] when one of them is missing."""
    single = local_file(name_or_path, SINGLE, revision)
    if single is not None:
        return [single]
    index = local_file(name_or_path, INDEX, revision)
    if index is None:
        return []
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    paths = [local_file(name_or_path, name, revision) for name in names]
    return [path for path in paths if path is not None] if None not in paths else []


def shape_of_headers(files: list[Path], config: Mapping[str, Any]) -> ModelShape:
    """Modules by the names and shapes of stored tensors; sizes from config.json where it has them.

    Raises ModelError without embeddings or layers: then this is no decoder that we understand.
    """
    tensors = {
        name: tuple(entry["shape"]) for path in files for name, entry in read_header(path).items()
    }
    modules = _modules(tensors)
    embeddings = [module for module in modules if module.kind == "embedding"]
    layers = {module.layer for module in modules} - {None}
    if not embeddings or not layers:
        raise ModelError(
            f'model_type = "{config.get("model_type")}": the headers of its weight files show no '
            "token embeddings or no numbered layers; measure with ds-train plan --measure."
        )
    text = config.get("text_config") or config
    embeddings.sort(key=lambda one: ("pos" in one.name or "wpe" in one.name, one.name))
    vocab, hidden = embeddings[0].shape  # those of tokens; positions come after them
    heads = int(text.get("num_attention_heads") or text.get("n_head") or max(1, hidden // 64))
    output = [module for module in modules if module.name.endswith("lm_head")]
    if not output:
        output = [Module("lm_head", "linear", (vocab, hidden))]
    ordered = [module for module in modules if module not in output and module not in embeddings]
    experts = text.get("num_experts") or text.get("num_local_experts") or 0
    return ModelShape(
        model_type=str(config.get("model_type")),
        modules=(*embeddings, *ordered, *output),
        tied="lm_head.weight" not in tensors,
        hidden=hidden,
        vocab=vocab,
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        feedforward=int(text.get("intermediate_size") or 4 * hidden),
        num_experts=int(experts),
        experts_per_token=int(text.get("num_experts_per_tok") or 0),
        max_positions=text.get("max_position_embeddings"),
        remark="counted from the headers of its weight files; layers are told by their names",
    )


def _modules(tensors: Mapping[str, tuple[int, ...]]) -> list[Module]:
    """Each weight with its bias; two dimensions make a linear layer, or embeddings by the name."""
    modules = []
    for name, shape in tensors.items():
        owner = name.removesuffix(".weight")
        if name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in tensors:
            continue
        kind = "linear" if len(shape) == 2 and name.endswith(".weight") else "other"
        if kind == "linear" and any(part in owner for part in ("embed", "wte", "wpe")):
            kind = "embedding"
        elif name.endswith(".weight") and len(shape) == 1:
            kind = "norm"
        bias = math.prod(tensors.get(f"{owner}.bias", (0,)))
        modules.append(Module(owner, kind, shape or (1,), bias, layer_number(owner)))
    return modules
