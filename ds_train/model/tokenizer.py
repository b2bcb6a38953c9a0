"""Checks the tokenizer against the model, and chooses what fills rows up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from ds_train.errors import ModelError, quoted


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
            f"model.name_or_path = {quoted(model)}: its tokenizer has ids up to {highest:,}, but "
            f"its embedding has {vocab_size:,} rows; use the tokenizer that belongs to the model."
        )
