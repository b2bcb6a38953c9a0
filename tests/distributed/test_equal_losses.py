"""The same loss and update whatever the ranks, accumulation and ZeRO stage: idea 2.

The truth is a plain torch loop of one process below: no DeepSpeed, no engine, no loss head.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from distributed import scenarios
from distributed.conftest import Results
from ds_train.config.run import RunConfig
from ds_train.data.order import StepPlan
from ds_train.data.prepare import prepare_data
from ds_train.data.row_plan import RowPlan
from ds_train.model.adapter import choose_trainable

pytestmark = pytest.mark.distributed
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def truth(inputs: Path) -> dict[str, list[float]]:
    """Step losses of both families, each document forwarded alone."""
    return {
        family: plain_losses(
            RunConfig.model_validate(scenarios.recipe(inputs, f"truth-{family}", changes))
        )
        for family, changes in scenarios.FAMILIES.items()
    }


def plain_losses(config: RunConfig) -> list[float]:
    """What the recipe means, written down once more in the plainest way."""
    data = prepare_data(config, say=lambda text: None)
    rows = RowPlan.uniform(data.train, config.data, config.train.seed, data.source_weights)
    plan = StepPlan(rows, config.train.global_batch_size or 1)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    model = choose_trainable(model, config.adapter, base="x", seed=config.train.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    losses = []
    for step in range(scenarios.STEPS):
        samples = [int(sample) for row in plan.rows(step) for sample in row]
        num_supervised = sum(int(data.train.mask(sample).sum()) for sample in samples)
        total = torch.zeros(())
        for sample in samples:
            ids = torch.tensor(data.train.tokens(sample).astype("int64"))[None]
            mask = torch.tensor(data.train.mask(sample).astype("bool"))[None]
            log_probs = F.log_softmax(model(input_ids=ids).logits[:, :-1].float(), dim=-1)
            chosen = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
            total = total - chosen[mask[:, 1:]].sum()
        loss = total / num_supervised
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)
        # cosine after one step of warm-up, over four steps
        progress = max(step - 1, 0) / (scenarios.STEPS - 1)
        cosine = (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        optimizer.param_groups[0]["lr"] = config.train.learning_rate * cosine
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", scenarios.FAMILIES)
@pytest.mark.parametrize(("stage", "micro"), scenarios.LAYOUTS)
def test_two_ranks_equal_the_plain_loop(
    two_ranks: Results, truth: dict[str, list[float]], family: str, stage: int, micro: int
) -> None:
    result = two_ranks[f"{family}-z{stage}-m{micro}"]
    assert result["losses"] == pytest.approx(truth[family], rel=RELATIVE)


@pytest.mark.parametrize("family", scenarios.FAMILIES)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_equals_the_plain_loop(
    one_rank: Results, truth: dict[str, list[float]], family: str, stage: int
) -> None:
    result = one_rank[f"{family}-one-z{stage}"]
    assert result["losses"] == pytest.approx(truth[family], rel=RELATIVE)


@pytest.mark.parametrize("family", scenarios.FAMILIES)
def test_gradient_norm_is_known_and_equal_at_every_stage(two_ranks: Results, family: str) -> None:
    norms = [two_ranks[f"{family}-z{stage}-m4"]["grad_norms"] for stage in (0, 1, 2, 3)]
    assert min(norms[0]) > 0
    for other in norms[1:]:
        assert other == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_gradients_add_up_in_fp32(two_ranks: Results, stage: int) -> None:
    """Four micro-batches of one row or one of four: a lost or twice counted one would show."""
    small, large = two_ranks[f"bf16-small-z{stage}"], two_ranks["bf16-z1"]
    exact = two_ranks["lora-z1-m4"]
    assert small["grad_norms"][0] == pytest.approx(large["grad_norms"][0], rel=5e-3)
    assert small["grad_norms"][0] == pytest.approx(exact["grad_norms"][0], rel=2e-2)
    assert small["losses"] == pytest.approx(exact["losses"], rel=1e-2)


def test_losses_fall(two_ranks: Results) -> None:
    losses = two_ranks["full-z2-m4"]["losses"]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("kind", [k for k in scenarios.KINDS if k != "dropout"])
def test_every_kind_of_training_is_equal_at_stages_1_and_3(two_ranks: Results, kind: str) -> None:
    one, three = two_ranks[f"{kind}-z1"], two_ranks[f"{kind}-z3"]
    tolerance = 2e-3 if "16" in kind else 2e-5
    assert one["losses"] == pytest.approx(three["losses"], rel=tolerance)
    assert one["losses"][-1] != one["losses"][0]
    assert len(one["evaluations"]) == 1


def test_packed_and_unpacked_rows_hold_the_same_documents_over_an_epoch(two_ranks: Results) -> None:
    """Gradients of both are compared in tests/model; here only that both train."""
    assert two_ranks["unpacked-z1"]["losses"][0] != two_ranks["lora-z1-m4"]["losses"][0]


def test_lora_plus_trains_b_faster(two_ranks: Results) -> None:
    assert two_ranks["rslora-plus-z1"]["losses"][-1] < two_ranks["lora-z1-m4"]["losses"][-1]


def test_fp16_has_the_losses_of_other_stages_at_stage_0(two_ranks: Results) -> None:
    """There DeepSpeed divides by a loss scale that it has not multiplied by."""
    zero, one = two_ranks["fp16-calm-z0"], two_ranks["fp16-calm-z1"]
    for key in ("losses", "grad_norms"):
        assert zero[key] == pytest.approx(one[key], rel=1e-3)
        resumed, whole = two_ranks["cut-fp16-z0-on"][key], two_ranks["fp16-z0"][key]
        assert resumed == pytest.approx(whole, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_fp16_survives_its_first_overflows(two_ranks: Results, stage: int) -> None:
    result = two_ranks[f"fp16-z{stage}"]
    assert math.isnan(result["grad_norms"][0])  # recorded as null: no update was made
    assert result["losses"][-1] < result["losses"][0] - 0.1


def test_the_start_tells_what_was_chosen(two_ranks: Results) -> None:
    said = "\n".join(two_ranks["lora-z3-m4"]["said"])
    for words in (
        "ZeRO-3",
        "norms of 21 of 21 tensors",
        "do not see each other",
        "8 rows per step",
    ):
        assert words in said


def test_a_second_copy_of_the_weights_inside_a_node_changes_no_loss(two_ranks: Results) -> None:
    expected = two_ranks["lora-z3-m4"]["losses"]
    assert two_ranks["zeropp"]["losses"] == pytest.approx(expected, rel=1e-6)


def test_divergence_stops_every_rank_and_names_the_samples(
    two_ranks: Results, inputs: Path
) -> None:
    result = two_ranks["diverged"]
    assert result["kind"] == "TrainingDiverged"
    assert "not finite" in result["error"]
    (listing,) = (inputs / "runs" / "diverged").glob("diverged_step_*.json")
    assert '"row":' in listing.read_text()
