"""A tokenizer of letters only, for tests in which a token's text is to be seen."""

from __future__ import annotations

from pathlib import Path


def save_letters(folder: Path) -> Path:
    """Write the tokenizer of ASCII and line ends, whose EOS is `</s>`, into a model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["</s>", *letters])}, "</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    return folder
