"""Windows inside a document: attention does not look back beyond them, whatever the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_store import make_store

from ds_train.config.data import DataConfig
from ds_train.data.batch import IGNORE, collate
from ds_train.data.epochs import rows_of_samples
from ds_train.data.pieces import with_windows
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model

KINDS = [(family, attention) for family in ("llama", "qwen2") for attention in ("sdpa", "eager")]
IDS = [np.random.default_rng(i).integers(3, 250, size=n).tolist() for i, n in enumerate((11, 7))]
WIDTH = 4


def losses(model: LanguageModel, batch: Any) -> torch.Tensor:
    """Loss of every position [rows, length]."""
    found, _ = model(
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        num_supervised=batch.num_supervised,
        per_token=True,
    )
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_each_window_is_computed_as_if_it_stood_alone(
    family: str, attention: str, packing: bool
) -> None:
    model = LanguageModel(tiny_model(family, attn_implementation=attention))
    store = make_store(IDS)
    config = DataConfig.model_validate(
        {"train": [{"path": "x.jsonl"}], "packing": packing, "max_length": 32}
    )
    whole = rows_of_samples(store, np.arange(2), config)
    windows = with_windows(store, whole, WIDTH)
    rows = [windows.row(index) for index in range(windows.num_rows)]
    batch = collate(store, rows, pad_token_id=0)
    found = losses(model, batch)[batch.labels != IGNORE]
    expected = []
    for ids in IDS:
        for start in range(0, len(ids) - 1, WIDTH):
            # a document of its own: the window, which predicts the token that comes after it
            part = ids[start : start + WIDTH + 1]
            inputs, labels = torch.tensor([part[:-1]]), torch.tensor([part[1:]])
            with torch.no_grad():
                logits = model.model(input_ids=inputs).logits
            alone = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")
            expected.append(alone)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_without_windows_the_losses_are_others() -> None:
    """The comparison above can fail: later windows read what stands before them otherwise."""
    model = LanguageModel(tiny_model("llama"))
    store = make_store(IDS)
    config = DataConfig.model_validate({"train": [{"path": "x.jsonl"}], "packing": False})
    whole = rows_of_samples(store, np.arange(2), config)
    plain = collate(store, [whole.row(0)], pad_token_id=0)
    windows = collate(store, [with_windows(store, whole, WIDTH).row(0)], pad_token_id=0)
    difference = (losses(model, plain) - losses(model, windows)).detach().abs()[0]
    assert float(difference[:WIDTH].max()) < 1e-5
    assert float(difference[WIDTH : len(IDS[0]) - 1].max()) > 1e-3
