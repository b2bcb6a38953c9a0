"""Layer-wise rates, gradual unfreezing and L2-SP: the same update at every ZeRO stage, resumed too.

The truth is a plain torch loop of one process: frozen parameters are not given to its optimizer,
the penalty is added to the gradients by hand. Six steps, two layers, one more from every second
step on, so that the embeddings join at the fifth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.config.run import RunConfig
from ds_train.data.order import StepPlan
from ds_train.data.prepare import prepare_data
from ds_train.data.row_plan import RowPlan
from ds_train.train.schedule import Schedule

pytestmark = pytest.mark.distributed

FULL = {"adapter.method": "full", "train.max_steps": 6}
UNFREEZE = {"train.unfreeze": {"every": "2 steps", "layers": 1}}
KINDS: dict[str, dict[str, Any]] = {
    "l2sp": {**FULL, "train.l2_sp": 0.5},
    "rates": {**FULL, "train.layer_lr_decay": 0.5},
    "unfreeze": {**FULL, **UNFREEZE},
    "all": {
        **FULL,
        **UNFREEZE,
        "train.l2_sp": 0.5,
        "train.layer_lr_decay": 0.5,
        "train.weight_decay": 0.1,
    },
}
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def two(inputs: Path) -> Results:
    """Two ranks: every kind at every stage; the last kind also cut after three steps."""
    plan = []
    for kind, changes in KINDS.items():
        for stage in STAGES:
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": 2}
            plan.append(scenarios.scenario(inputs, f"{kind}-t{stage}", {**changes, **layout}))
    for stage in (0, 2, 3):
        changes = {**KINDS["all"], "engine.preset": f"zero{stage}"}
        plan.append(scenarios.scenario(inputs, f"cut-t{stage}", changes, stop_after=3))
        again = scenarios.scenario(inputs, f"cut-t{stage}-on", changes, run=f"cut-t{stage}")
        plan += [again, scenarios.scenario(inputs, f"moved-t{stage}", changes, stop_after=3)]
    for stage in (0, 1, 3):
        low = {**KINDS["all"], "model.dtype": "bf16", "engine.preset": f"zero{stage}"}
        plan.append(scenarios.scenario(inputs, f"bf16-t{stage}", low))
    lora = {"train.layer_lr_decay": 0.5, "engine.preset": "zero3"}
    plan.append(scenarios.scenario(inputs, "lora-t3", lora))
    return launch(inputs, "transfer-two", plan, num_ranks=2)


@pytest.fixture(scope="module")
def one(inputs: Path, two: Results) -> Results:
    """One rank: what two ranks began goes on at another stage."""
    plan = []
    for stage, other in ((2, 3), (3, 0)):
        changes = {**KINDS["all"], "engine.preset": f"zero{other}"}
        plan.append(
            scenarios.scenario(inputs, f"moved-t{stage}-on", changes, run=f"moved-t{stage}")
        )
    return launch(inputs, "transfer-one", plan, num_ranks=1)


@pytest.fixture(scope="module")
def truth(inputs: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Kind -> losses and gradient norms of each step."""
    return {
        kind: plain_run(RunConfig.model_validate(scenarios.recipe(inputs, f"plain-{kind}", one)))
        for kind, one in KINDS.items()
    }


def depth(name: str) -> int:
    """Of a Llama of two layers."""
    if ".layers." in name:
        return int(name.split(".layers.")[1][0]) + 1
    return 0 if "embed" in name else 3


def plain_run(config: RunConfig) -> tuple[list[float], list[float]]:
    """What the recipe means, written down once more in the plainest way."""
    train = config.train
    data = prepare_data(config, say=lambda text: None)
    rows = RowPlan.uniform(data.train, config.data, train.seed, data.source_weights)
    plan = StepPlan(rows, 8)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    schedule = Schedule(train, total_steps=6, warmup=1)
    groups = {
        name: {
            "params": [p],
            "weight_decay": train.weight_decay if p.ndim > 1 else 0.0,
            "factor": (train.layer_lr_decay or 1.0) ** (3 - depth(name)),
        }
        for name, p in model.named_parameters()
    }
    optimizer = torch.optim.AdamW(groups.values(), lr=0.0)
    losses, norms = [], []
    for step in range(6):
        loss = mean_loss(model, data.train, [int(s) for row in plan.rows(step) for s in row])
        optimizer.zero_grad()
        loss.backward()
        if train.unfreeze is not None:
            # layer 2 and what follows, then layer 1, then the embeddings
            lowest = 2 - step // 2
            for name, parameter in model.named_parameters():
                if depth(name) < lowest:
                    parameter.grad = None
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and train.l2_sp is not None:
                parameter.grad += train.l2_sp * (parameter.detach() - start[name])
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step) * group["factor"]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms


def mean_loss(model: Any, store: Any, samples: list[int]) -> torch.Tensor:
    """Mean over the supervised tokens, each document forwarded alone."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        ids = torch.tensor(store.tokens(sample).astype("int64"))[None]
        mask = torch.tensor(store.mask(sample).astype("bool"))[None]
        log_probs = F.log_softmax(model(input_ids=ids).logits[:, :-1].float(), dim=-1)
        total = total - log_probs.gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]].sum()
        count += int(mask[:, 1:].sum())
    return total / count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_equal_to_the_plain_loop(two: Results, truth: Any, kind: str, stage: int) -> None:
    losses, norms = truth[kind]
    assert two[f"{kind}-t{stage}"]["losses"] == pytest.approx(losses, rel=2e-5)
    assert two[f"{kind}-t{stage}"]["grad_norms"] == pytest.approx(norms, rel=1e-3)


def test_each_option_changes_the_run(truth: Any) -> None:
    finals = [losses[-1] for losses, _ in truth.values()]
    for number, final in enumerate(finals):
        assert all(abs(final - other) > 1e-3 * final for other in finals[number + 1 :])


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resumed_equals_uninterrupted(two: Results, stage: int) -> None:
    """The cut lies between two stages of unfreezing: the counts of updates differ by group."""
    whole = two[f"all-t{stage}"]["losses"]
    assert two[f"cut-t{stage}-on"]["losses"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_goes_on_at_another_stage_and_number_of_ranks(
    two: Results, one: Results, stage: int
) -> None:
    whole = two[f"all-t{stage}"]["losses"]
    assert one[f"moved-t{stage}-on"]["losses"] == pytest.approx(whole, rel=2e-5)


def test_bf16_is_equal_at_every_stage(two: Results) -> None:
    zero, first, third = (two[f"bf16-t{stage}"]["losses"] for stage in (0, 1, 3))
    assert first == pytest.approx(third, rel=2e-3) and zero == pytest.approx(third, rel=2e-3)
    assert first == pytest.approx(two["all-t1"]["losses"], rel=2e-2)


def test_the_run_says_what_joins_when(two: Results) -> None:
    said = two["unfreeze-t2"]["said"]
    assert "unfreezing: stage 1 trains from step 3 on" in said
    assert "unfreezing: stage 2 trains from step 5 on" in said
    assert sum(line.startswith("unfreezing: stage") for line in said) == 2


def test_lora_learns_at_the_rate_of_its_layer(two: Results) -> None:
    assert two["lora-t3"]["losses"][-1] < two["lora-t3"]["losses"][0]
