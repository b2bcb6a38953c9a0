"""The loss head against the model's own logits, for every thing that architectures do to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model
from ds_train.ops import linear_cross_entropy
from ds_train.ops.reference import IGNORE

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": False}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("mistral", {}),
    ("gemma2", {"final_logit_softcapping": 2.0}),
    ("gpt2", {}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 4.0}),
    ("phi", {}),
]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and shifted labels [2, 12], about half of them masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (2, 12), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    keep = torch.rand((2, 11), generator=generator) < 0.5
    labels[:, :-1] = torch.where(keep, ids[:, 1:], IGNORE)
    return ids, labels


def truth(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(
        logits.flatten(0, 1).double(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )


@pytest.mark.parametrize(("family", "settings"), FAMILIES)
def test_loss_gradient_and_logits_equal_the_models_own(
    family: str, settings: dict[str, Any]
) -> None:
    ids, labels = batch()
    plain = tiny_model(family, **settings)
    expected = truth(plain, ids, labels)
    expected.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    logits = plain(input_ids=ids).logits.detach()

    wrapped = LanguageModel(tiny_model(family, **settings))
    loss_sum, _ = wrapped(ids, labels)
    loss_sum.backward()
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    logprobs, none = wrapped(ids, labels, logprobs=True)
    again = torch.autograd.grad(-logprobs.sum(), list(wrapped.parameters()), allow_unused=True)
    for (name, parameter), gradient in zip(wrapped.named_parameters(), again, strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=2e-4, atol=1e-5, msg=name)
    losses, correct = wrapped(ids, labels, per_token=True)
    assert none is None
    torch.testing.assert_close(logprobs, -losses, rtol=1e-5, atol=1e-6)
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(correct, (logits.argmax(-1) == labels) & (labels != IGNORE))
    for name, parameter in wrapped.model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(wrapped.model(input_ids=ids).logits, logits)


def test_nothing_supervised_has_a_gradient_of_zeros() -> None:
    ids, labels = batch()
    wrapped = LanguageModel(tiny_model("llama"))
    loss_sum, _ = wrapped(ids, torch.full_like(labels, IGNORE))
    loss_sum.backward()
    assert loss_sum.item() == 0.0
    assert all(not p.grad.any() for p in wrapped.parameters() if p.grad is not None)


def test_modules_to_save_trains_its_copy_of_the_head() -> None:
    ids, labels = batch()
    base = tiny_model("llama", tie_word_embeddings=False)
    model = get_peft_model(
        base, LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])
    )
    expected = truth(model, ids, labels)
    wrapped = LanguageModel(model)
    loss_sum, _ = wrapped(ids, labels)
    loss_sum.backward()
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    head = base.lm_head
    assert head.modules_to_save["default"].weight.grad.abs().sum() > 0
    assert head.original_module.weight.grad is None


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.5}, {"use_dora": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_on_the_head(settings: dict[str, Any], dtype: torch.dtype) -> None:
    ids, labels = batch()
    base = tiny_model("llama", tie_word_embeddings=False).to(dtype)
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head", "q_proj"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        made = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, made, strict=True))

    if "lora_dropout" in settings:
        model.eval()  # masks of dropout are drawn for all rows here, for supervised ones there
    expected = truth(model, ids, labels)
    expected_gradients = gradients(expected)
    wrapped = LanguageModel(model)
    assert ("plain LoRA" in wrapped.head.describe()) == ("use_dora" in settings)
    loss_sum, _ = wrapped(ids, labels)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert loss_sum.item() == pytest.approx(expected.item(), rel=tolerance)
    for name, gradient in gradients(loss_sum).items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.05), name


def test_names_of_parameters_are_untouched() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    before = list(model.state_dict())
    LanguageModel(model)
    assert list(model.state_dict()) == before


def test_reference_in_fp64_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(11, 8, dtype=torch.float64, generator=generator)
    bias = torch.randn(11, dtype=torch.float64, generator=generator)
    labels = torch.tensor([3, IGNORE, 0, 10, IGNORE])
    got = linear_cross_entropy(
        hidden, weight, labels, bias=bias, softcap=3.0, logit_scale=0.5, implementation="reference"
    )
    total = 0.0
    for row, label in zip(hidden, labels.tolist(), strict=True):
        if label == IGNORE:
            continue
        logits = 3.0 * torch.tanh(0.5 * (weight @ row + bias) / 3.0)
        total += (torch.logsumexp(logits, 0) - logits[label]).item()
    assert got.item() == pytest.approx(total, rel=1e-12)
