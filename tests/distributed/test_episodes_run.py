"""Episodes at every layout: the same loss, gradient norm and update, resumed too.

The truth is a plain torch loop of one process, which joins the samples of each episode once more
by hand and forwards every episode alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.data.prepare import prepare_data
from ds_train.data.store import TokenStore
from ds_train.model.adapter import choose_trainable
from ds_train.paths import RunPaths
from ds_train.report.record import EvaluationRecord, read_records
from ds_train.train.schedule import Schedule

pytestmark = pytest.mark.distributed

STEPS, BATCH = 4, 8
LAYOUTS = [(0, 4), (1, 1), (2, 2), (3, 4)]
"""ZeRO stage and rows of a micro-batch, of two ranks."""
SEPARATOR = " ;"


def write_tasks(folder: Path) -> list[dict[str, Any]]:
    """Three tasks of twelve rows, answers of one or two words; the last one is held out."""
    draw, sources = random.Random(2), []
    words = ["red", "green", "blue", "one", "two", "three", "stone", "river"]
    for name in ("first", "second", "new"):
        rows = [
            {
                "prompt": f"{number} " + " ".join(draw.choices(words, k=draw.randint(1, 5))),
                "completion": " " + " ".join(draw.choices(words, k=draw.randint(1, 2))),
            }
            for number in range(12)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"name": name, "path": str(path), "format": "prompt_completion"})
    return sources


def changes(folder: Path, **more: Any) -> dict[str, Any]:
    """What makes the common recipe one of episodes."""
    return {
        "data.train": write_tasks(folder),
        "data.validation": {},
        "data.packing": False,
        "fewshot.episodes": {"k": 2, "held_out": ["new"], "separator": SEPARATOR},
        **more,
    }


@pytest.fixture(scope="module")
def two(inputs: Path) -> Results:
    """Two ranks: every layout; runs that are cut after two steps; packed; channel."""
    plan = []

    def add(name: str, run: str | None = None, stop_after: int | None = None, **more: Any) -> None:
        stop = {} if stop_after is None else {"stop_after": stop_after}
        plan.append(scenarios.scenario(inputs, name, changes(inputs, **more), run=run, **stop))

    for stage, micro in LAYOUTS:
        layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
        add(f"episodes-z{stage}", **layout)
    add("episodes-cut", stop_after=2)
    add("episodes-cut-on", run="episodes-cut")
    add("episodes-moved", stop_after=3)
    packed = {"data.packing": True, "train.global_batch_size": 2}
    add("episodes-packed", **packed, **{"train.per_device_train_batch_size": 1})
    return launch(inputs, "episodes-two", plan, num_ranks=2)


@pytest.fixture(scope="module")
def one(inputs: Path, two: Results) -> Results:
    """One rank: other micro-batches, packed rows, what two ranks began."""
    plan = [
        scenarios.scenario(inputs, "episodes-one", changes(inputs)),
        scenarios.scenario(inputs, "episodes-moved-on", changes(inputs), run="episodes-moved"),
        scenarios.scenario(
            inputs,
            "episodes-packed-one",
            changes(
                inputs,
                **{
                    "data.packing": True,
                    "train.global_batch_size": 2,
                    "train.per_device_train_batch_size": 2,
                },
            ),
        ),
    ]
    return launch(inputs, "episodes-one", plan, num_ranks=1)


@pytest.fixture(scope="module")
def truth(inputs: Path) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of each step, written down once more in the plainest way."""
    recipe = scenarios.recipe(inputs, "truth-episodes", changes(inputs))
    config = RunConfig.model_validate(recipe)
    data = prepare_data(config, say=lambda text: None)
    plan = build_step_plan(config, data, None, BATCH)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    model = choose_trainable(model, config.adapter, base="x", seed=config.train.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    schedule = Schedule(config.train, total_steps=STEPS, warmup=1)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    found, norms = [], []
    for step in range(STEPS):
        losses = []
        for row in plan.rows(step):
            samples = [sample for sample in row[:, 0].tolist() if sample >= 0]
            ids, answer = joined(data.train, samples, tokenizer)
            logits = model(input_ids=torch.tensor([ids])).logits[0, -answer - 1 : -1]
            losses.append(F.cross_entropy(logits, torch.tensor(ids[-answer:]), reduction="none"))
        loss = torch.cat(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.step()
        found.append(float(loss.detach()))
    return found, norms


def joined(store: TokenStore, samples: list[int], tokenizer: Any) -> tuple[list[int], int]:
    """Ids of an episode, and how many of them, at its end, are the query's answer."""
    separator = tokenizer(f"a{SEPARATOR}", add_special_tokens=False).input_ids
    separator = separator[len(tokenizer("a", add_special_tokens=False).input_ids) :]
    ids: list[int] = []
    for sample in samples:
        own = store.tokens(sample).tolist()
        if ids and own[0] == tokenizer.bos_token_id:
            own = own[1:]
        ids += own if sample == samples[-1] else [*own[:-1], *separator]
        assert store.tokens(sample)[-1] == tokenizer.eos_token_id
    return ids, int(store.mask(samples[-1]).sum())


@pytest.mark.parametrize("stage", [stage for stage, _ in LAYOUTS])
def test_two_ranks_equal_the_plain_loop(two: Results, truth: Any, stage: int) -> None:
    losses, norms = truth
    assert two[f"episodes-z{stage}"]["losses"] == pytest.approx(losses, rel=1e-5)
    assert two[f"episodes-z{stage}"]["grad_norms"] == pytest.approx(norms, rel=1e-4)


def test_one_rank_equals_two(one: Results, two: Results, truth: Any) -> None:
    assert one["episodes-one"]["losses"] == pytest.approx(truth[0], rel=1e-5)
    packed = one["episodes-packed-one"]["losses"]
    assert packed == pytest.approx(two["episodes-packed"]["losses"], rel=1e-5)


def test_resumed_equals_uninterrupted(two: Results, one: Results) -> None:
    assert two["episodes-cut-on"]["losses"] == pytest.approx(two["episodes-z2"]["losses"], rel=1e-5)
    assert one["episodes-moved-on"]["losses"] == pytest.approx(
        one["episodes-one"]["losses"], rel=1e-5
    )


def test_ranks_evaluate_the_held_out_task_alike(two: Results, one: Results, inputs: Path) -> None:
    found = []
    for run in ("episodes-z2", "episodes-z3", "episodes-one"):
        records = read_records(RunPaths(inputs / "runs" / run).metrics)
        last = [record for record in records if isinstance(record, EvaluationRecord)][-1]
        found.append((last.loss, last.token_accuracy, last.tokens))
    assert len({tokens for *_, tokens in found}) == 1
    for loss, accuracy, _ in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        assert accuracy == pytest.approx(found[0][1], abs=0.05)
