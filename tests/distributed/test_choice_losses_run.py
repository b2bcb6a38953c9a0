"""T-Few's losses at every layout: the same loss, gradient norm and update, resumed too.

The truth is a plain torch loop of one process: each candidate is forwarded alone, and the losses
of the paper are written down once more. Twenty examples with five answers and two templates, of
which three wrong ones are scored; steps of eight examples, the last one of six, so that some
micro-batches hold examples and padding, or nothing but padding.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.data.prepare import prepare_data
from ds_train.data.store import TokenStore
from ds_train.model.adapter import choose_trainable
from ds_train.paths import RunPaths
from ds_train.report.record import EvaluationRecord, StepRecord, read_records
from ds_train.train.schedule import Schedule

pytestmark = pytest.mark.distributed

STEPS = 4
LOSSES: dict[str, dict[str, Any]] = {
    "example": {"max_negatives": 3},
    "token": {"max_negatives": 3, "lm_mean": "token", "unlikelihood": 0.5},
    "gold": {"unlikelihood": 0.0, "length_normalised": 0.0, "lm_mean": "token"},
}
METHODS: dict[str, dict[str, Any]] = {
    "ia3": {"adapter.method": "ia3"},
    "full": {"adapter.method": "full"},
}
LAYOUTS = [(0, 4), (1, 1), (2, 2), (3, 1), (3, 4)]
"""ZeRO stage and examples of a micro-batch, of two ranks."""


def write_rows(folder: Path) -> Path:
    """Twenty rows of text and label."""
    file = folder / "labelled.jsonl"
    if not file.exists():
        draw = random.Random(1)
        words = ["red", "green", "blue", "one", "two", "three", "stone", "river"]
        rows = [
            {"text": " ".join(draw.choices(words, k=draw.randint(1, 6))), "label": number % 5}
            for number in range(20)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def changes(folder: Path, method: str, losses: str, **more: Any) -> dict[str, Any]:
    """What makes the common recipe one of these losses."""
    names = ["bad", "not so bad", "fine", "rather good indeed", "best"]
    source = {
        "path": str(write_rows(folder)),
        "format": "classification",
        "labels": {str(number): name for number, name in enumerate(names)},
        "template": ["{text}\nIt was", "Review: {text}\nSentiment:"],
    }
    return {
        **METHODS[method],
        "data.train": [source],
        "data.validation": {"sources": [source]},
        "data.packing": False,
        "fewshot.losses": LOSSES[losses],
        "evaluate.rank_classification": True,
        "train.max_steps": None,
        "train.num_train_epochs": 1.5,
        **more,
    }


@pytest.fixture(scope="module")
def two(inputs: Path) -> Results:
    """Two ranks: every layout; runs that are cut after two steps; one in bf16."""
    plan = []

    def add(name: str, method: str, losses: str, run: str | None = None, **rest: Any) -> None:
        stop = {"stop_after": rest.pop("stop_after")} if "stop_after" in rest else {}
        every = changes(inputs, method, losses, **rest)
        plan.append(scenarios.scenario(inputs, name, every, run=run, **stop))

    for method in METHODS:
        for stage, micro in LAYOUTS:
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
            add(f"few-{method}-z{stage}-m{micro}", method, "example", **layout)
    for losses in ("token", "gold"):
        for stage in (1, 3):
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": 2}
            add(f"few-{losses}-z{stage}", "ia3", losses, **layout)
    for stage in (2, 3):
        cut = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": 2}
        add(f"few-cut-z{stage}", "ia3", "example", stop_after=2, **cut)
        add(f"few-cut-z{stage}-on", "ia3", "example", run=f"few-cut-z{stage}", **cut)
        add(f"few-moved-z{stage}", "ia3", "example", stop_after=2, **cut)
    add("few-bf16", "ia3", "example", **{"model.dtype": "bf16"})
    for stage in (1, 3):
        prompt = {"adapter.method": "prompt_tuning", "engine.preset": f"zero{stage}"}
        add(f"few-prompt-z{stage}", "ia3", "example", **prompt)
    return launch(inputs, "few-two", plan, num_ranks=2)


@pytest.fixture(scope="module")
def one(inputs: Path, two: Results) -> Results:
    """One rank: other micro-batches, and what two ranks began."""
    plan = []
    for stage, micro in ((0, 8), (2, 1), (3, 2)):
        layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
        every = changes(inputs, "ia3", "example", **layout)
        plan.append(scenarios.scenario(inputs, f"few-one-z{stage}", every))
    for stage, other in ((2, 3), (3, 0)):
        every = changes(inputs, "ia3", "example", **{"engine.preset": f"zero{other}"})
        run = f"few-moved-z{stage}"
        plan.append(scenarios.scenario(inputs, f"{run}-on", every, run=run))
    other_losses = changes(inputs, "ia3", "token")
    plan.append(scenarios.scenario(inputs, "few-other", other_losses, run="few-ia3-z2-m2"))
    return launch(inputs, "few-one", plan, num_ranks=1)


@pytest.fixture(scope="module")
def truth(inputs: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Losses and gradient norms of each step."""
    kinds = [("ia3", "example"), ("full", "example"), ("ia3", "token"), ("ia3", "gold")]
    return {
        f"{method}-{losses}": plain(
            RunConfig.model_validate(
                scenarios.recipe(inputs, "truth", changes(inputs, method, losses))
            )
        )
        for method, losses in kinds
    }


def plain(config: RunConfig) -> tuple[list[float], list[float]]:
    """What the recipe means, written down once more in the plainest way."""
    assert config.fewshot is not None and config.fewshot.losses is not None
    losses = config.fewshot.losses
    data = prepare_data(config, say=lambda text: None)
    plan = build_step_plan(config, data, None, 8)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    model = choose_trainable(model, config.adapter, base="x", seed=config.train.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    schedule = Schedule(config.train, total_steps=STEPS, warmup=1)
    examples = data.train.examples
    assert examples is not None
    found, norms = [], []
    for step in range(STEPS):
        rows = [row for row in plan.rows(step) if len(row)]
        gold_sum, gold_tokens, total = torch.zeros(()), 0, torch.zeros(())
        for row in rows:
            tokens = [answer_logprobs(model, data.train, int(sample)) for sample in row]
            (right,) = [one for one, s in zip(tokens, row, strict=True) if examples.gold[s]]
            wrong = [one for one, s in zip(tokens, row, strict=True) if not examples.gold[s]]
            assert len(wrong) == (3 if losses.unlikelihood else 0)
            gold_sum, gold_tokens = gold_sum - right.sum(), gold_tokens + len(right)
            if losses.lm_mean == "example":
                total = total - right.mean()
            if wrong:
                unlikely = torch.cat([-torch.log(1 - one.exp()) for one in wrong])
                betas = torch.stack([one.mean() for one in (right, *wrong)])
                total = total + losses.unlikelihood * unlikely.mean()
                total = total + losses.length_normalised * (betas.logsumexp(0) - betas[0])
        loss = total / len(rows)
        if losses.lm_mean == "token":
            loss = loss + gold_sum / gold_tokens
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.step()
        found.append(float(loss.detach()))
    return found, norms


def answer_logprobs(model: Any, store: TokenStore, sample: int) -> torch.Tensor:
    """Log-probability of each token of an answer."""
    ids = torch.tensor(store.tokens(sample).astype("int64"))
    mask = torch.tensor(store.mask(sample).copy())
    logprobs = F.log_softmax(model(input_ids=ids[None]).logits[0, :-1].float(), dim=-1)
    return logprobs.gather(-1, ids[1:, None])[:, 0][mask[1:]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "micro"), LAYOUTS)
def test_two_ranks_equal_the_plain_loop(
    two: Results, truth: Any, method: str, stage: int, micro: int
) -> None:
    result, (losses, norms) = two[f"few-{method}-z{stage}-m{micro}"], truth[f"{method}-example"]
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert result["grad_norms"] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("losses", ["token", "gold"])
@pytest.mark.parametrize("stage", [1, 3])
def test_weights_and_the_mean_by_token(two: Results, truth: Any, losses: str, stage: int) -> None:
    result, (expected, norms) = two[f"few-{losses}-z{stage}"], truth[f"ia3-{losses}"]
    assert result["losses"] == pytest.approx(expected, rel=1e-5)
    assert result["grad_norms"] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_rank_equals_the_plain_loop(one: Results, truth: Any, stage: int) -> None:
    result, (losses, norms) = one[f"few-one-z{stage}"], truth["ia3-example"]
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert result["grad_norms"] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_resumed_equals_uninterrupted(two: Results, one: Results, stage: int) -> None:
    whole = two["few-ia3-z2-m2"] if stage == 2 else two["few-ia3-z3-m4"]
    exact = 0 if stage == 2 else 1e-5  # the other one has another micro-batch
    assert two[f"few-cut-z{stage}-on"]["losses"] == pytest.approx(whole["losses"], rel=exact)
    assert one[f"few-moved-z{stage}-on"]["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_other_losses_are_refused(one: Results) -> None:
    assert one["few-other"]["kind"] == "CheckpointError"
    assert 'fewshot.losses.lm_mean: "example" -> "token"' in one["few-other"]["error"]


def test_bf16_is_near(two: Results, truth: Any) -> None:
    losses, norms = truth["ia3-example"]
    assert two["few-bf16"]["losses"] == pytest.approx(losses, rel=2e-2)
    assert two["few-bf16"]["grad_norms"] == pytest.approx(norms, rel=5e-2)


def test_virtual_tokens_stand_before_each_candidate(two: Results) -> None:
    assert two["few-prompt-z1"]["losses"] == pytest.approx(two["few-prompt-z3"]["losses"], rel=1e-5)
    assert len(set(two["few-prompt-z1"]["losses"])) == STEPS


def test_the_record_says_what_the_loss_is_made_of(two: Results, inputs: Path) -> None:
    records = read_records(RunPaths(inputs / "runs" / "few-ia3-z2-m2").metrics)
    steps = [one for one in records if isinstance(one, StepRecord)]
    for one in steps:
        assert one.language_modelling and one.unlikelihood and one.length_normalised
        parts = one.language_modelling + one.unlikelihood + one.length_normalised
        assert one.loss == pytest.approx(parts, rel=1e-6)
        assert one.rank_accuracy in [count / 8 for count in range(9)] or one is steps[-1]
    gold = read_records(RunPaths(inputs / "runs" / "few-gold-z1").metrics)[0]
    assert isinstance(gold, StepRecord) and gold.unlikelihood is None
    assert gold.loss == gold.language_modelling


def test_ranks_evaluate_alike(two: Results, one: Results, inputs: Path) -> None:
    """The last evaluation, by two ranks and by one: loss and shares of the same weights."""
    found = []
    for run in ("few-ia3-z2-m2", "few-ia3-z3-m4", "few-one-z0", "few-one-z3"):
        records = read_records(RunPaths(inputs / "runs" / run).metrics)
        found.append([one for one in records if isinstance(one, EvaluationRecord)][-1])
    first = found[0]
    assert first.rank_chance == pytest.approx(0.2)
    for other in found[1:]:
        assert other.loss == pytest.approx(first.loss, rel=1e-4)
        assert other.rank_accuracy == first.rank_accuracy
        assert other.tokens == first.tokens
