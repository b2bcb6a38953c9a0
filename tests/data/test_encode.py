"""Character spans become token masks, also for tokens without width and slow tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from toy_tokenizers import FAMILIES, toy_tokenizer
from transformers import ByT5Tokenizer

from ds_train.config.model import ModelConfig
from ds_train.data.encode import TextEncoder, bytes_of_tokens, map_spans, open_tokenizer
from ds_train.data.types import Rendered
from ds_train.errors import ModelError

# "ab cd": tokens "ab", " ", "cd"; a tokenizer that trims reports the space as (3, 3).
EXACT = np.array([[0, 2], [2, 3], [3, 5]])
TRIMMED = np.array([[0, 2], [3, 3], [3, 5]])


@pytest.mark.parametrize("offsets", [EXACT, TRIMMED])
@pytest.mark.parametrize(
    ("spans", "learned", "straddling"),
    [
        ([(0, 5)], [1, 1, 1], 0),
        ([(3, 5)], [0, 0, 1], 0),
        ([(2, 5)], [0, 1, 1], 0),
        ([(0, 2)], [1, 0, 0], 0),
        ([(0, 3)], [1, 1, 0], 0),
        ([(1, 3)], [1, 1, 0], 1),
        ([(0, 2), (3, 5)], [1, 0, 1], 0),
        ([], [0, 0, 0], 0),
    ],
)
def test_spans_on_two_characters_and_a_space(
    offsets: np.ndarray, spans: list[tuple[int, int]], learned: list[int], straddling: int
) -> None:
    masks, counts = map_spans([offsets], [5], [spans])
    assert masks[0].tolist() == [bool(one) for one in learned] and counts == [straddling]


def test_texts_do_not_touch_one_another() -> None:
    empty = np.zeros((0, 2), np.int64)
    first_without_width = np.array([[0, 0], [0, 2]])
    masks, counts = map_spans(
        [EXACT, empty, first_without_width, EXACT], [5, 0, 2, 5], [[(3, 5)], [], [], [(0, 2)]]
    )
    assert [mask.tolist() for mask in masks] == [
        [False, False, True],
        [],
        [False, False],
        [True, False, False],
    ]
    assert counts == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "offsets", "num_bytes"),
    [
        ("ab cd", EXACT, [2, 1, 2]),
        ("ab cd", TRIMMED, [2, 1, 2]),
        ("ab cd", [[0, 2], [3, 5]], [2, 3]),  # the space is nobody's: it counts for what follows
        ("ab cd ", [[0, 2], [2, 5]], [2, 4]),  # at the end, for the last token
        ("é🙂", [[0, 1], [0, 1], [1, 2], [1, 2], [1, 2], [1, 2]], [2, 0, 4, 0, 0, 0]),
        ("日本", [[0, 2]], [6]),
        ("", np.zeros((0, 2), np.int64), []),
    ],
)
def test_bytes_of_tokens(text: str, offsets: list[list[int]], num_bytes: list[int]) -> None:
    assert bytes_of_tokens(text, np.array(offsets)).tolist() == num_bytes
    assert sum(num_bytes) == len(text.encode())


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_all_tokens_are_those_of_the_text(family: str) -> None:
    text = "Grüße aus Köln, 日本語  naïve 🙂 and 12 + 30 = 42"
    start = text.index("日")
    encoder = TextEncoder.of(toy_tokenizer(family))
    row = encoder.encode([Rendered(text, ((start, len(text)),), append_eos=True)])[0]
    assert row.num_bytes.sum() == len(text.encode()) and len(row.num_bytes) == len(row.ids)
    assert row.num_bytes[0] == row.num_bytes[-1] == 0  # BOS and EOS
    assert row.num_bytes[row.mask].sum() >= len(text[start:].encode())


def test_a_slow_tokenizer_is_taken_piece_by_piece() -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoder = TextEncoder.of(tokenizer)
    row = encoder.encode([Rendered("Qä: é!", ((4, 6),), append_eos=True)])[0]
    assert tokenizer.decode(row.ids) == "Qä: é!</s>"
    assert tokenizer.decode(row.ids[row.mask]) == "é!</s>"
    assert row.ids.tolist().count(tokenizer.eos_token_id) == 1 and row.boundary_tokens == 0
    assert row.num_bytes[row.mask].sum() == len("é!".encode())
    assert row.num_bytes.sum() == len("Qä: é!".encode())


def test_settings_stored_in_the_tokenizer_do_not_cut_or_pad() -> None:
    tokenizer = toy_tokenizer("bytes", bos=False)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    try:
        encoder = TextEncoder.of(tokenizer)
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    row = encoder.encode([Rendered("hello world how are you", ((0, 23),), append_eos=True)])[0]
    assert tokenizer.decode(row.ids) == "hello world how are you</s>"


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        TextEncoder.of(tokenizer)


def test_a_model_without_tokenizer_is_named() -> None:
    with pytest.raises(ModelError, match='name_or_path = "/nowhere": no tokenizer could be read'):
        open_tokenizer(ModelConfig(name_or_path="/nowhere"))
