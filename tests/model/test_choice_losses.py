"""The losses of T-Few against a few lines of NumPy, and against the numbers of the golden file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from ds_train.model.choice_losses import Candidates, ChoiceLosses, choice_losses, log1mexp
from ds_train.model.head import LanguageModel
from ds_train.ops.reference import IGNORE

Floats = NDArray[np.float64]


def reference(right: Floats, wrong: list[Floats]) -> tuple[float, float, float]:
    """(language modelling, unlikelihood, length normalised) of one example, as the paper has it."""
    language_modelling = -right.mean()
    unlikely = sum(np.log(1 - np.exp(tokens)).sum() for tokens in wrong)
    unlikelihood = -unlikely / sum(len(tokens) for tokens in wrong)
    beta = np.exp([tokens.mean() for tokens in [right, *wrong]])
    length_normalised = -np.log(beta[0] / beta.sum())
    return float(language_modelling), float(unlikelihood), float(length_normalised)


def in_lines(examples: list[list[Floats]], gold: list[int], pad: int = 3, left: int = 2) -> Any:
    """(log-probabilities [c, t], supervised, candidates) with junk where nothing is supervised."""
    lines = [tokens for example in examples for tokens in example]
    width = left + max(map(len, lines)) + pad
    generator = torch.Generator().manual_seed(0)
    logprobs = -5 * torch.rand(len(lines), width, dtype=torch.float64, generator=generator)
    supervised = torch.zeros(len(lines), width, dtype=torch.bool)
    for line, tokens in enumerate(lines):
        logprobs[line, left : left + len(tokens)] = torch.from_numpy(tokens)
        supervised[line, left : left + len(tokens)] = True
    example = [number for number, one in enumerate(examples) for _ in one]
    is_gold = [place == gold[n] for n, one in enumerate(examples) for place in range(len(one))]
    candidates = Candidates(torch.tensor(example), torch.tensor(is_gold), len(examples))
    return logprobs, supervised, candidates


def draw(seed: int, lengths: list[list[int]]) -> list[list[Floats]]:
    generator = np.random.default_rng(seed)
    return [[-3 * generator.random(n) - 1e-3 for n in one] for one in lengths]


EXAMPLES, GOLD = draw(0, [[3, 1, 4], [2, 2], [1, 6, 2, 2]]), [1, 0, 3]


def test_equals_the_reference() -> None:
    found = choice_losses(*in_lines(EXAMPLES, GOLD))
    for number, (example, gold) in enumerate(zip(EXAMPLES, GOLD, strict=True)):
        wrong = [tokens for place, tokens in enumerate(example) if place != gold]
        expected = reference(example[gold], wrong)
        got = (
            found.language_modelling[number].item(),
            found.unlikelihood[number].item(),
            found.length_normalised[number].item(),
        )
        assert got == pytest.approx(expected, rel=1e-12)
        assert found.language_modelling_sum[number].item() == pytest.approx(-example[gold].sum())
        means = [tokens.mean() for tokens in example]
        assert bool(found.right[number]) == (int(np.argmax(means)) == gold)


def test_masked_positions_contribute_nothing() -> None:
    logprobs, supervised, candidates = in_lines(EXAMPLES, GOLD)
    logprobs.requires_grad_()
    one = choice_losses(logprobs, supervised, candidates)
    other = choice_losses(torch.where(supervised, logprobs.detach(), -1e9), supervised, candidates)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
    total(one).backward()
    assert not logprobs.grad[~supervised].any()
    assert logprobs.grad[supervised].all()


def total(losses: ChoiceLosses) -> torch.Tensor:
    return (losses.language_modelling + losses.unlikelihood + losses.length_normalised).sum()


def test_gradients_are_those_of_finite_differences() -> None:
    logprobs, supervised, candidates = in_lines(EXAMPLES, GOLD)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one: total(choice_losses(one, supervised, candidates)), (logprobs,)
    )


def test_examples_of_a_micro_batch_do_not_touch_each_other() -> None:
    together = choice_losses(*in_lines(EXAMPLES, GOLD))
    for number, (example, gold) in enumerate(zip(EXAMPLES, GOLD, strict=True)):
        alone = choice_losses(*in_lines([example], [gold]))
        for mine, theirs in zip(together, alone, strict=True):
            assert mine[number].item() == pytest.approx(theirs[0].item(), rel=1e-14)


def test_nothing_but_padding_is_zero_with_a_gradient_of_zeros() -> None:
    logprobs = torch.zeros(1, 8, requires_grad=True)
    nothing = torch.zeros(1, 8, dtype=torch.bool)
    none = Candidates(torch.tensor([-1]), torch.tensor([False]), 0)
    losses = choice_losses(logprobs, nothing, none)
    assert all(one.shape == (0,) for one in losses)
    total(losses).backward()
    assert logprobs.grad is not None and not logprobs.grad.any()


def test_a_line_of_padding_beside_examples_changes_nothing() -> None:
    logprobs, supervised, candidates = in_lines(EXAMPLES, GOLD)
    more = Candidates(
        torch.cat([candidates.example, torch.tensor([-1])]),
        torch.cat([candidates.gold, torch.tensor([False])]),
        candidates.num_examples,
    )
    padded = choice_losses(
        torch.cat([logprobs, logprobs[:1]]), torch.cat([supervised, supervised[:1] & False]), more
    )
    for mine, theirs in zip(choice_losses(logprobs, supervised, candidates), padded, strict=True):
        assert torch.equal(mine, theirs)


def test_an_example_without_a_wrong_answer_has_the_first_loss_only() -> None:
    losses = choice_losses(*in_lines(draw(1, [[3]]), [0]))
    assert losses.unlikelihood.item() == 0
    assert losses.length_normalised.item() == 0
    assert losses.language_modelling.item() > 0


def test_the_first_of_equal_candidates_is_taken() -> None:
    tokens = np.array([-1.0, -2.0])
    assert choice_losses(*in_lines([[tokens, tokens]], [0])).right.item()
    assert not choice_losses(*in_lines([[tokens, tokens]], [1])).right.item()


@pytest.mark.parametrize("exponent", [-9, -6, -4, -2, -1, 0, 1, 2])
def test_log1mexp_keeps_its_digits(exponent: int) -> None:
    logprob = -(10.0**exponent)
    exact = math.log1p(-math.exp(logprob)) if logprob < -1 else math.log(-math.expm1(logprob))
    found = log1mexp(torch.tensor([logprob], dtype=torch.float64)).item()
    assert found == pytest.approx(exact, rel=1e-14, abs=1e-300)
    if exponent >= -6:
        single = log1mexp(torch.tensor([logprob])).item()
        assert single == pytest.approx(exact, rel=3e-7, abs=1e-37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logprob", [0.0, 1e-7, -1e-8, -1e-7, -9e-7, -1e-3, -50.0, -1e4, -math.inf])
def test_log1mexp_is_finite_with_its_gradient(logprob: float, dtype: torch.dtype) -> None:
    values = torch.tensor([logprob], dtype=dtype, requires_grad=True)
    found = log1mexp(values)
    found.backward()
    assert torch.isfinite(found).all()
    assert values.grad is not None and torch.isfinite(values.grad).all()


def test_log1mexp_falls_all_the_way() -> None:
    values = torch.linspace(-3e-6, 1e-6, 400)
    falls = log1mexp(values).diff()
    assert (falls <= 0).all()
    assert falls[-1] < 0


def test_a_certain_wrong_token_is_pushed_down() -> None:
    """Through logits: where p rounds to 1, the label's logit gets about p, and nothing is NaN."""
    for margin in (5.0, 12.0, 17.0, 30.0):
        logits = torch.tensor([margin, 0.0, 0.0], requires_grad=True)
        (-log1mexp(logits.log_softmax(0)[:1])).sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()
        if margin < 17:
            expected = torch.softmax(logits.detach().double(), 0)[0].item()
            assert logits.grad[0].item() == pytest.approx(expected, rel=0.07)


def golden(shared_dir: Path) -> list[dict[str, Any]]:
    file = shared_dir / "golden" / "tfew_losses_golden.json"
    if not file.is_file():
        pytest.skip(f"no golden numbers at {file}")
    examples: list[dict[str, Any]] = json.loads(file.read_text())["examples"]
    return examples


def check_golden(example: dict[str, Any], losses: ChoiceLosses, number: int, rel: float) -> None:
    assert losses.language_modelling[number].item() == pytest.approx(example["L_LM"], rel=rel)
    assert losses.unlikelihood[number].item() == pytest.approx(example["L_UL"], rel=rel)
    assert losses.length_normalised[number].item() == pytest.approx(example["L_LN"], rel=rel)
    summed = sum(one[number].item() for one in (losses[0], losses[2], losses[3]))
    assert summed == pytest.approx(example["total"], rel=rel)


def test_golden_numbers_from_log_probabilities(shared_dir: Path) -> None:
    examples = golden(shared_dir)
    tokens = [[np.array(one) for one in example["token_logprobs"]] for example in examples]
    losses = choice_losses(*in_lines(tokens, [example["gold"] for example in examples]))
    for number, example in enumerate(examples):
        check_golden(example, losses, number, rel=1e-9)


def test_golden_numbers_from_the_model(shared_dir: Path, stories260k: Path) -> None:
    examples = golden(shared_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    wrapped = LanguageModel(model.eval())
    for example in examples:
        context, choices = example["context_ids"], example["choice_ids"]
        width = len(context) + max(map(len, choices))
        ids = torch.zeros(len(choices), width, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORE)
        for line, choice in enumerate(choices):
            stop = len(context) + len(choice)
            ids[line, :stop] = torch.tensor(context + choice)
            labels[line, len(context) - 1 : stop - 1] = torch.tensor(choice)
        logprobs, _ = wrapped(ids, labels, logprobs=True)
        gold = torch.arange(len(choices)) == example["gold"]
        candidates = Candidates(torch.zeros(len(choices), dtype=torch.int64), gold, 1)
        losses = choice_losses(logprobs, labels != IGNORE, candidates)
        check_golden(example, losses, 0, rel=2e-5)
        total(losses).backward()
        gradients = [p.grad for p in wrapped.parameters() if p.grad is not None]
        assert gradients and all(torch.isfinite(one).all() for one in gradients)
