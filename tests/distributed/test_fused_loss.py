"""The head's gradient at every ZeRO stage and accumulation is the single process's in float64.

Ratio 1, for the head and for the rest of the model apart: DeepSpeed's own tiled loss gives a head
whose gradient is `accumulation` times too large, beside a body that is right.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from distributed import fused_loss_cases as cases
from distributed.conftest import Results, launch
from ds_train.config.run import RunConfig
from ds_train.model.adapter import choose_trainable

pytestmark = pytest.mark.distributed
LOSS_WORKER = Path(__file__).with_name("loss_worker.py")
LOSSES: dict[tuple[str, str], float] = {}
"""Exact loss by kind of training and mask."""

every_case = pytest.mark.parametrize("case", cases.CASES, ids=lambda case: cases.name_of(*case))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One launch of two ranks for all."""
    folder = tmp_path_factory.mktemp("fused_loss")
    for kind, masked in {(kind, masked) for kind, *_, masked in cases.CASES}:
        LOSSES[kind, masked], gradients = exact(folder, kind, masked)
        torch.save(gradients, folder / f"truth-{kind}-{masked}.pt")
    return launch(folder, "two", cases.plan(folder), num_ranks=2, worker=LOSS_WORKER)


def exact(folder: Path, kind: str, masked: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss and its gradients by torch alone, over whole logits, in one process."""
    item = cases.item(folder, kind, "auto", 0, 4, masked)
    config = RunConfig.model_validate(item["recipe"])
    model = choose_trainable(cases.model_of(kind), config.adapter, base="x", seed=0).double()
    ids, labels = cases.rows(masked)
    logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float64
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=cases.IGNORE)
    loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }  # fmt: skip
    return loss.item(), gradients


@every_case
def test_gradient_of_the_head_and_of_the_rest(
    results: Results, case: tuple[str, str, int, int, str]
) -> None:
    kind, *_, masked = case
    result = results[cases.name_of(*case)]
    assert result["loss"] == pytest.approx(LOSSES[kind, masked], rel=1e-5)
    parts = ("body",) if kind == "lora" else ("head", "body")
    assert ("head" in result) == ("head" in parts)  # LoRA's is frozen
    for part in parts:
        assert result[part]["ratio"] == pytest.approx(1.0, abs=1e-5), part
        assert result[part]["error"] < 2e-5, part


@every_case
def test_evaluation(results: Results, case: tuple[str, str, int, int, str]) -> None:
    """Before the step, on the same rows: under ZeRO-3 the weight is gathered for it as well."""
    kind, *_, masked = case
    evaluated = results[cases.name_of(*case)]["evaluation"]
    assert evaluated == pytest.approx(LOSSES[kind, masked], rel=1e-5)
