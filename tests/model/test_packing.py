"""Packed and unpacked rows give the same loss and the same gradients, document by document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ds_train.data.batch import collate
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model

FAMILIES = ["llama", "qwen2", "mistral", "gpt2", "phi"]
KINDS = [(family, attention) for family in FAMILIES for attention in ("sdpa", "eager")]
KINDS.append(("gemma2", "eager"))  # its soft-capped attention has no sdpa path


class Documents:
    """Five documents of different lengths, in place of a TokenStore."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._ids = [generator.integers(3, 250, size=n) for n in (7, 3, 12, 2, 9)]
        self._masks = [np.arange(len(ids)) % 3 != 0 for ids in self._ids]
        self.lengths = np.array([len(ids) for ids in self._ids], dtype=np.int32)

    def tokens(self, index: int) -> Any:
        return self._ids[index]

    def mask(self, index: int) -> Any:
        return self._masks[index]


@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_packed_equals_unpacked(family: str, attention: str) -> None:
    packed = [np.array([0, 1, 3]), np.array([2, 4])]
    alone = [np.array([index]) for index in range(5)]
    results = [loss_and_gradients(family, attention, rows) for rows in (packed, alone)]
    (loss, gradients), (expected, wanted) = results
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


def loss_and_gradients(
    family: str, attention: str, rows: list[Any]
) -> tuple[float, dict[str, torch.Tensor]]:
    wrapped = LanguageModel(tiny_model(family, attn_implementation=attention))
    batch = collate(Documents(), rows, pad_token_id=0)
    loss_sum, _ = wrapped(batch.input_ids, batch.labels, batch.position_ids)
    loss_sum.backward()
    gradients = {n: p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
    return loss_sum.item(), gradients


def test_attention_across_documents_would_be_seen() -> None:
    """The comparison above can fail: with one run of positions the documents mix."""
    wrapped = LanguageModel(tiny_model("llama"))
    batch = collate(Documents(), [np.array([0, 1, 3])], pad_token_id=0)
    right, _ = wrapped(batch.input_ids, batch.labels, batch.position_ids)
    mixed = torch.arange(batch.input_ids.shape[1])[None]
    wrong, _ = wrapped(batch.input_ids, batch.labels, mixed)
    assert abs(right.item() - wrong.item()) > 1e-3
