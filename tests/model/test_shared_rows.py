"""Rows whose positions several ranks share, against the same rows in one piece.

The ranks are threads of this process that exchange through a list: the same arithmetic, no
launcher. `tests/distributed/test_shared_rows_run.py` has the real ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ds_train.data.batch import Batch
from ds_train.data.slice import slice_batch
from ds_train.errors import ConfigError
from ds_train.model.head import LanguageModel
from ds_train.model.shared_rows import share_rows
from ds_train.ops.reference import IGNORE

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 0,
    "num_key_value_heads": 12,
}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": DEEPSEEK,
    "gpt2": {"n_embd": 96, "n_head": 12, "n_layer": 2, "n_positions": 64},
}


class Meeting:
    """All-to-all between threads."""

    def __init__(self, size: int) -> None:
        self._sent: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def exchange(self, rank: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
        """The collective of one thread."""

        def all_to_all(output: torch.Tensor, sent: torch.Tensor) -> None:
            self._sent[rank] = sent.detach()
            self._barrier.wait()
            output.copy_(torch.stack([one[rank] for one in self._sent]))
            self._barrier.wait()

        return all_to_all


def model_of(model_type: str, attention: str = "sdpa", **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {} if model_type == "gpt2" else SIZES
    config = AutoConfig.for_model(
        model_type, **{**sizes, "vocab_size": 61, **OWN.get(model_type, {}), **changes}
    )
    inner: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in inner.parameters():  # sharp attention, so that a wrong mask shows
        parameter.data.mul_(3)
    return LanguageModel(inner.eval())


def packed(lengths: list[list[int]], width: int) -> Batch:
    """Rows of documents of these lengths, padded to `width`; a third of the tokens is learned."""
    draw = np.random.default_rng(1)
    ids = draw.integers(3, 61, (len(lengths), width))
    labels, positions = np.full_like(ids, IGNORE), np.empty_like(ids)
    for row, documents in enumerate(lengths):
        start = 0
        for length in documents:
            learned = np.arange(start, start + length - 1)[draw.random(length - 1) < 0.7]
            labels[row, learned] = ids[row, learned + 1]
            positions[row, start : start + length] = np.arange(length)
            start += length
        positions[row, start:] = np.arange(width - start)
    samples = np.arange(5)
    return Batch(
        *(torch.from_numpy(one) for one in (ids, labels, positions)),
        sample_ids=samples,
        sample_tokens=samples,
        num_rows=len(lengths),
        num_supervised=int((labels != IGNORE).sum()),
    )


def losses(model: LanguageModel, batch: Batch) -> torch.Tensor:
    return model(batch.input_ids, batch.labels, batch.position_ids, batch.num_supervised)[0]


def shared_run(make: Callable[[], LanguageModel], batch: Batch, size: int) -> tuple[Any, Any]:
    """Loss sum and gradients, both added up over the ranks."""
    meeting = Meeting(size)

    def rank_run(rank: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = make()
        shared = share_rows(model.model, size, meeting.exchange(rank))
        own = slice_batch(batch, rank, size)
        shared.rows = own.whole
        loss = losses(model, own)
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    models = [make() for _ in range(size)]  # one after the other: they draw from one generator
    taken = iter(models)
    make = lambda: next(taken)  # noqa: E731
    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(rank_run, range(size)))
    total = sum(loss for loss, _ in results)
    return total, {name: sum(g[name] for _, g in results) for name in results[0][1]}


ROWS = [[9, 5, 6], [20], [3, 3, 3, 3, 3]]
CASES = [
    *(("llama", size, {}) for size in (2, 3, 4, 12)),
    ("llama", 4, {"num_key_value_heads": 1}),
    ("llama", 4, {"num_key_value_heads": 12}),
    ("qwen3", 2, {}),
    ("mistral", 2, {}),
    ("gemma3_text", 3, {}),
    ("deepseek_v3", 2, {}),
    ("gpt2", 3, {}),
    ("mixtral", 2, {}),
]


@pytest.mark.parametrize(("model_type", "size", "changes"), CASES)
def test_losses_and_gradients_are_those_of_whole_rows(
    model_type: str, size: int, changes: dict[str, Any]
) -> None:
    def make() -> LanguageModel:
        return model_of(model_type, **changes)

    batch = packed(ROWS, 22)  # 22 divides into 2 parts only
    whole = make()
    expected = losses(whole, batch)
    expected.backward()
    loss, gradients = shared_run(make, batch, size)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in whole.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[name], parameter.grad, rtol=2e-4, atol=2e-4 * float(parameter.grad.norm())
            )


def test_rows_laid_end_to_end_for_a_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a kernel that takes no mask: it must be given one document at a time."""
    windows = []

    def kernel(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        assert mask is None
        assert "position_ids" not in given
        windows.append(given.pop("sliding_window", None))
        return sdpa_attention_forward(module, query, key, value, None, **given)

    def make() -> LanguageModel:
        model = model_of("mistral", sliding_window=64)
        model.model.config._attn_implementation_internal = "toy_flash"
        return model

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "toy_flash", kernel)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "toy_flash", kernel)
    no_mask = lambda *args, **kwargs: None  # noqa: E731
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "toy_flash", no_mask)
    batch = packed([[9, 5, 20, 3]], 37)
    expected = float(losses(model_of("mistral", sliding_window=64), batch).detach())
    loss, _ = shared_run(make, batch, 2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert set(windows) == {64}  # such a kernel keeps the window itself


def test_rows_of_one_document_make_one_call_of_the_kernel() -> None:
    batch = packed([[20], [12]], 22)
    assert slice_batch(batch, 0, 2).whole.starts == ((0,), (0,))  # type: ignore[union-attr]


def test_a_slice_has_its_labels_and_positions() -> None:
    batch = packed([[5, 4]], 10)
    parts = [slice_batch(batch, part, 4) for part in range(4)]
    assert [tuple(part.input_ids.shape) for part in parts] == [(1, 3)] * 4
    labels = torch.cat([part.labels for part in parts], dim=1)
    assert labels[:, :10].tolist() == batch.labels.tolist()
    assert labels[0, 10:].tolist() == [IGNORE, IGNORE]
    assert sum(part.num_supervised for part in parts) == batch.num_supervised
    assert [len(part.sample_ids) for part in parts] == [5, 0, 0, 0]
    assert [part.num_rows for part in parts] == [1, 0, 0, 0]


def test_a_second_model_of_the_process_is_left_alone() -> None:
    batch = packed(ROWS, 22)
    other = model_of("llama")
    before = losses(other, batch)
    shared_run(lambda: model_of("llama"), batch, 2)
    assert torch.equal(losses(other, batch), before)


@pytest.mark.parametrize(
    ("model_type", "size", "attention", "changes", "said"),
    [
        ("llama", 5, "sdpa", {}, "12 attention heads.*sizes that do: 1, 2, 3, 4, 6, 12"),
        ("llama", 2, "eager", {}, "'eager' needs a mask of all positions"),
        (
            "llama", 2, "sdpa",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "type dynamic follow the longest",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(
    model_type: str, size: int, attention: str, changes: dict[str, Any], said: str
) -> None:
    model = model_of(model_type, attention, **changes)
    with pytest.raises(ConfigError, match=said):
        share_rows(model.model, size, lambda output, sent: None)
