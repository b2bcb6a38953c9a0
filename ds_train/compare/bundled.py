"""Writes what bundled tasks are made of: rows, and the folder of a tiny Llama without weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ds_train.paths import replace_text

SPECIAL = ("<pad>", "<unk>", "</s>")
"""The first tokens of their vocabularies."""


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_architecture(folder: Path, tokenizer: Tokenizer, max_length: int, **more: Any) -> None:
    """config.json and the tokenizer of a Llama of 2 layers; `more`: of the config."""
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "eos_token": "</s>",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": max_length,
            **more,
            "tie_word_embeddings": False,
            "pad_token_id": SPECIAL.index("<pad>"),
            "eos_token_id": SPECIAL.index("</s>"),
            "bos_token_id": None,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")
