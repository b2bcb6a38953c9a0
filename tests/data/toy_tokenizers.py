"""Small tokenizers of each family, built on the spot, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIALS = [
    *("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|eot_id|>"),
    *("<|header|>", "<|/header|>", "<start_of_turn>", "<end_of_turn>"),
]
_CORPUS = [
    "user assistant system model hello world how are you today 1234567890 abcdefg .,:;?!",
    "User: what is it?\n\nAssistant: it is fine.\n\n[INST] tell me [/INST] yes  indeed\n",
    "Grüße aus Köln, 日本語 naïve 🙂 and 12 + 30 = 42\n- one\n- two\n\n\nend ",
] * 3
FAMILIES = ("bytes", "bytes_trimmed", "metaspace", "prepend", "words")


@cache
def toy_tokenizer(family: str, *, bos: bool = True) -> Any:
    """A fast tokenizer with SPECIALS; `bos` puts <s> before a text, as Llama does."""
    if family == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        characters = sorted({c for text in _CORPUS for c in text})
        tokenizer.train_from_iterator(
            characters, trainers.WordLevelTrainer(special_tokens=SPECIALS)
        )
        tokenizer.decoder = decoders.Fuse()
    elif family.startswith("bytes"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=False))
        tail = [decoders.ByteFallback(), decoders.Fuse()]
        if family == "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
            tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *tail])
        else:
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
            tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *tail])
        _train(tokenizer, [], extra=[f"<0x{byte:02X}>" for byte in range(256)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    elif family == "bytes_trimmed":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens(
        {"additional_special_tokens": [AddedToken(one, special=True) for one in SPECIALS[3:]]}
    )
    return fast


def _train(tokenizer: Tokenizer, alphabet: list[str], extra: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIALS, *(extra or [])], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
