"""Writes the quickstart's input, all of our own making: stories, task items, a model folder.

FOLDER/stories.jsonl  train.jsonl  test.jsonl      text; prompt and completion
FOLDER/architecture/  config.json, tokenizer       a Llama of 3 layers, without weights
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ds_train.quickstart.language import Item, Lexicon, make_items, make_lexicon, make_stories

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
NUM_STORIES, NUM_TRAIN_ITEMS, NUM_TEST_ITEMS = 15_000, 6_000, 200


@dataclass(frozen=True)
class QuickstartFiles:
    """Where the quickstart's files lie."""

    folder: Path

    @property
    def stories(self) -> Path:
        """What the base model reads: `{"text": ...}`."""
        return self.folder / "stories.jsonl"

    @property
    def train(self) -> Path:
        """What the adapter learns from: `{"prompt": ..., "completion": ...}`."""
        return self.folder / "train.jsonl"

    @property
    def test(self) -> Path:
        """Items of verbs and nouns that train.jsonl never names."""
        return self.folder / "test.jsonl"

    @property
    def architecture(self) -> Path:
        """Model folder with config and tokenizer, without weights."""
        return self.folder / "architecture"


def write_files(folder: Path, seed: int = 0) -> QuickstartFiles:
    """Write everything; the same seed gives the same bytes."""
    paths = QuickstartFiles(folder)
    paths.architecture.mkdir(parents=True, exist_ok=True)
    lexicon = make_lexicon(seed)
    stories = make_stories(lexicon, NUM_STORIES, seed)
    write_jsonl(paths.stories, ({"text": story} for story in stories))
    write_jsonl(paths.train, map(_row, make_items(lexicon, NUM_TRAIN_ITEMS, seed, held_out=False)))
    write_jsonl(paths.test, map(_row, make_items(lexicon, NUM_TEST_ITEMS, seed, held_out=True)))
    write_architecture(paths.architecture, lexicon)
    return paths


def _row(item: Item) -> dict[str, str]:
    return {"prompt": item.prompt, "completion": item.completion}


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer(lexicon: Lexicon) -> Tokenizer:
    """Cuts a word into its stem and endings: longest match, and all stems are equally long."""
    vocabulary = {piece: place for place, piece in enumerate([*SPECIAL, *lexicon.pieces()])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return tokenizer


def write_architecture(folder: Path, lexicon: Lexicon) -> None:
    """A tiny Llama's config and the tokenizer, as Hugging Face reads them."""
    tokenizer = make_tokenizer(lexicon)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": 256,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write_json(folder / "config.json", _llama_config(tokenizer.get_vocab_size()))


def _llama_config(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 336,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        # Larger than Llama's 0.02, which is far too small for 128 dimensions: with 0.08 the model
        # begins to copy words after 100 steps instead of 400 (measured on this language).
        "initializer_range": 0.08,
        # Untied, so that the embeddings of the task's signs, which no story holds, stay distinct.
        "tie_word_embeddings": False,
        "pad_token_id": SPECIAL.index("<pad>"),
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
