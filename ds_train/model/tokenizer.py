"""Loads the tokenizer and checks it against the model before anything else depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ds_train.config.model import ModelConfig
from ds_train.errors import ModelError


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the recipe.

    Raises:
        ModelError: there is none where the recipe says, or it has no end-of-sequence token.
    """
    name = config.tokenizer_name_or_path or config.name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.name_or_path = {name!r}: no tokenizer could be read there "
            f"({str(error).splitlines()[0]}). Put its files beside the model, or set "
            "model.tokenizer_name_or_path."
        ) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name!r} has no eos_token, so a model could never learn to stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    return tokenizer


def pad_token_id(tokenizer: PreTrainedTokenizerBase, say: Callable[[str], Any] = print) -> int:
    """The id that fills rows up: pad_token, or eos_token where there is none (said once).

    Filling is never attended to and never learned from, so that any id would do.
    """
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    say("tokenizer: no pad_token; rows are filled with eos_token, which the mask hides")
    return int(tokenizer.eos_token_id)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, model: str) -> None:
    """Refuse a tokenizer that can produce ids that the embedding does not have.

    Raises:
        ModelError: the tokenizer's highest id does not fit into the model's vocabulary.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise ModelError(
            f"the tokenizer of {model!r} has ids up to {highest:,}, but the model's embedding has "
            f"{vocab_size:,} rows. Use the tokenizer that belongs to the model."
        )
