"""From rendered text to token ids with their loss mask: one pass over the whole text.

The text is tokenised once, with the character span of every token; a token is learned from when
its span overlaps a learned span. Tokenisers without spans (slow ones) take it piece by piece.

    text     <user>Hi<end><assistant>Hello!<end>
    learned                          ^^^^^^^^^^^
    ids      1 345 9  2 7            88 12 2
    mask     0 0   0  0 0            1  1  1      (BOS once, before; EOS once, at the end)
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.config.model import ModelConfig
from ds_train.data.types import Rendered, TokenRow
from ds_train.errors import ModelError, reason


def open_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer; ModelError when it can't be opened. Takes a few seconds."""
    # At call time: transformers takes 2 s to import, and brings torch.
    from transformers import AutoTokenizer

    name = config.tokenizer_name_or_path or config.name_or_path
    revision = None if config.tokenizer_name_or_path else config.revision
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        field = "tokenizer_name_or_path" if config.tokenizer_name_or_path else "name_or_path"
        # what transformers says of a folder without its files is about conversion and classes
        why = "" if Path(name).is_dir() else f" ({reason(error)})"
        raise ModelError(
            f'model.{field} = "{name}": no tokenizer could be read there{why}; put its files '
            "(tokenizer.json, tokenizer_config.json) beside the model, or set "
            "model.tokenizer_name_or_path."
        ) from error


def check_eos(tokenizer: Any) -> None:
    """ModelError when the tokenizer has no end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f'model: the tokenizer of "{tokenizer.name_or_path}" has no end-of-sequence token '
            '(eos_token), so no answer could ever end; set "eos_token" in its '
            "tokenizer_config.json."
        )


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A tokenizer with what it puts around a text. Workers get it pickled, and need no torch."""

    backend: Any
    """`tokenizers.Tokenizer`, or None for a slow tokenizer."""
    slow: Any
    """The tokenizer of transformers where there is no backend, else None."""
    bos_id: int | None
    """None when the tokenizer itself puts no BOS before a text."""
    eos_id: int
    unk_id: int | None
    vocab_size: int
    """Ids are below this."""

    @classmethod
    def of(cls, tokenizer: Any) -> TextEncoder:
        """Encoder of a tokenizer; ModelError when it has no end-of-sequence token."""
        check_eos(tokenizer)
        around = tokenizer("").input_ids  # what is put around an empty text
        bos = tokenizer.bos_token_id
        return cls(
            _bare_backend(tokenizer) if tokenizer.is_fast else None,
            None if tokenizer.is_fast else tokenizer,
            bos if bos is not None and around[:1] == [bos] else None,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
            max(tokenizer.get_vocab().values()) + 1,
        )

    def encode(self, samples: Sequence[Rendered]) -> list[TokenRow]:
        """One row per sample; no length limit."""
        if self.backend is None:
            pairs = [self._encode_slow(sample) for sample in samples]
            boundary = [0] * len(samples)
        else:
            pairs, boundary = self._encode_fast(samples)
        return [
            self._close(sample, *parts, straddling)
            for sample, parts, straddling in zip(samples, pairs, boundary, strict=True)
        ]

    def _encode_fast(
        self, samples: Sequence[Rendered]
    ) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], list[int]]:
        texts = [sample.text for sample in samples]
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
        offsets = [np.array(one.offsets, np.int64).reshape(-1, 2) for one in encodings]
        lengths = [len(text) for text in texts]
        masks, straddling = map_spans(offsets, lengths, [sample.spans for sample in samples])
        num_bytes = map(bytes_of_tokens, texts, offsets)
        return list(zip(ids, masks, num_bytes, strict=True)), straddling

    def _encode_slow(self, sample: Rendered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokenised in pieces that end where a learned span begins or ends.

        Which characters of a piece a token stands for is not known; its bytes are dealt evenly.
        """
        edges = sorted({0, len(sample.text), *(edge for span in sample.spans for edge in span)})
        ids: list[int] = []
        mask: list[bool] = []
        num_bytes = [np.zeros(0, np.int32)]
        for start, end in itertools.pairwise(edges):
            piece = self.slow.encode(sample.text[start:end], add_special_tokens=False)
            ids += piece
            mask += [any(a <= start < b for a, b in sample.spans)] * len(piece)
            size = len(sample.text[start:end].encode("utf-8", "surrogatepass"))
            shares = np.arange(len(piece) + 1) * size // max(len(piece), 1)
            num_bytes.append(np.diff(shares).astype(np.int32))
        return np.array(ids, np.int64), np.array(mask, bool), np.concatenate(num_bytes)

    def _close(
        self,
        sample: Rendered,
        ids: np.ndarray,
        mask: np.ndarray,
        num_bytes: np.ndarray,
        straddling: int,
    ) -> TokenRow:
        """Puts BOS before and EOS after, where they belong and are not there yet."""
        if self.bos_id is not None and (len(ids) == 0 or ids[0] != self.bos_id):
            ids, mask = np.append(self.bos_id, ids), np.append(False, mask)
            num_bytes = np.append(np.int32(0), num_bytes)
        if sample.append_eos and ids[-1:].tolist() != [self.eos_id]:
            learned = bool(sample.spans) and sample.spans[-1][1] == len(sample.text)
            ids, mask = np.append(ids, self.eos_id), np.append(mask, learned)
            num_bytes = np.append(num_bytes, np.int32(0))
        return TokenRow(ids, mask, straddling, num_bytes)


def _bare_backend(tokenizer: Any) -> Any:
    """A copy of the fast tokenizer that neither cuts, pads, nor reports trimmed spans.

    Byte-level post-processors trim the spaces off the spans they report (`trim_offsets`), so a
    token that begins with a space would seem to begin after it.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    return backend


def bytes_of_tokens(text: str, offsets: np.ndarray) -> np.ndarray:
    """int32 [num_tokens]: UTF-8 bytes of a text that each token is the first to reach.

    offsets: int64 [num_tokens, 2] characters [start, end). Several tokens that make up one
    character (byte-level tokenizers) share its bytes: the first of them has them all. What no token
    stands for (spaces that a tokenizer drops) counts for the token after it, at the end of the text
    for the last one, so that the sum over all tokens is always the size of the text.
    """
    if not len(offsets):
        return np.zeros(0, np.int32)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    reached = np.maximum.accumulate(bytes_before[offsets[:, 1]])
    reached[-1] = bytes_before[-1]
    return np.diff(reached, prepend=0).astype(np.int32)


def map_spans(
    offsets: Sequence[np.ndarray],
    lengths: Sequence[int],
    spans: Sequence[Sequence[tuple[int, int]]],
) -> tuple[list[np.ndarray], list[int]]:
    """Which tokens of each text are learned from, and how many of those begin before their span.

    offsets: int64 [num_tokens, 2] characters [start, end) of each token, per text; lengths: in
    characters; spans: sorted, without overlap. A token of no width stands for the character
    before its end. All texts are laid on one line, so that one search serves them all.
    """
    bases = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64) + 2)])[:-1] + 1
    counts = np.array([len(one) for one in offsets], np.int64)
    shift = np.repeat(bases, counts)
    flat = np.concatenate([np.zeros((0, 2), np.int64), *offsets])
    starts, ends = flat[:, 0] + shift, flat[:, 1] + shift
    starts = np.where(starts == ends, ends - 1, starts)
    placed = [
        (start + base, end + base)
        for base, own in zip(bases.tolist(), spans, strict=True)
        for start, end in own
    ]
    # A last span beyond everything spares the search a special case.
    line = np.array([*placed, (np.iinfo(np.int64).max,) * 2], np.int64)
    nearest = np.searchsorted(line[:, 1], starts, side="right")
    learned = line[nearest, 0] < ends
    straddling = learned & (starts < line[nearest, 0])
    borders = np.cumsum(counts)[:-1]
    return (
        np.split(learned, borders),
        [int(one.sum()) for one in np.split(straddling, borders)],
    )
