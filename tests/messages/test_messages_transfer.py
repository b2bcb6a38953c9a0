"""Messages about the options for transfer and about `ds-train transfer`, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.cli import main

HELD_OUT = {"path": "org/held_out"}


def recipe(**sections: Any) -> dict[str, Any]:
    """Full fine-tuning of a hub model with test and dev data; sections laid over."""
    result: dict[str, Any] = {
        "output_dir": "run",
        "model": {"name_or_path": "org/model"},
        "adapter": {"method": "full"},
        "data": {
            "train": [{"path": "org/data"}],
            "validation": {"sources": [HELD_OUT]},
            "dev": {"sources": [HELD_OUT]},
        },
        "train": {"max_steps": 10, "early_stopping": {"patience": 2}},
        "evaluate": {"every": 2},
        "cluster": {"processes_per_node": 1},
    }
    for name, section in sections.items():
        given = {**result.get(name, {}), **section}
        result[name] = {key: value for key, value in given.items() if value is not None}
    return result


# command, sections, the messages
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "validate",
        {"adapter": {"method": "lora"}, "train": {"l2_sp": 0.1}},
        [
            "train.l2_sp with adapter.method = lora: the pretrained weights do not move, and an "
            "adapter starts from none; set train.weight_decay, or adapter.method: full."
        ],
    ),
    (
        "validate",
        {"adapter": {"method": "ia3"}, "train": {"unfreeze": {"every": 2}}},
        [
            "train.unfreeze with adapter.method = ia3: the model's own weights stay frozen, so "
            "that there is nothing to unfreeze; set adapter.method: full, or remove it."
        ],
    ),
    (
        "validate",
        {"model": {"init": "random"}, "train": {"l2_sp": 0.1, "unfreeze": {"every": 2}}},
        [
            "train.unfreeze with model.init = random: the layers below would pass on noise until "
            "they join; set model.init: pretrained, or remove train.unfreeze.",
            "train.l2_sp with model.init = random: there are no pretrained weights to stay close "
            "to; remove it, or set model.init: pretrained.",
        ],
    ),
    (
        "validate",
        {"train": {"unfreeze": {"every": "10 steps"}}},
        [
            "train.unfreeze.every = 10 steps: the run ends before more layers join; make it "
            "shorter, or the run longer."
        ],
    ),
    (
        "validate",
        {
            "adapter": {"method": "prompt_tuning"},
            "data": {"packing": False},
            "train": {"layer_lr_decay": 0.9},
        },
        [
            "train.layer_lr_decay with adapter.method = prompt_tuning: virtual tokens belong to no "
            "layer; remove it."
        ],
    ),
    (
        "validate",
        {"evaluate": {"every": None}},
        [
            "train.early_stopping without evaluate.every: the run would be evaluated at its end "
            "only; set evaluate.every, e.g. 20 steps."
        ],
    ),
    (
        "validate",
        {"data": {"dev": None, "validation": None}, "evaluate": {"every": None}},
        [
            "train.early_stopping: nothing is held out to tell when to stop; set data.dev or "
            "data.validation."
        ],
    ),
    (
        "validate",
        {"checkpoint": {"best": False}},
        [
            "train.early_stopping with checkpoint.best = false: the model is worse at the end than "
            "at its best, which would be lost; set checkpoint.best: true."
        ],
    ),
    (
        "validate",
        {"train": {"early_stopping": {"metric": "rank_accuracy"}}},
        [
            "train.early_stopping.metric = rank_accuracy: is measured with "
            "evaluate.rank_classification: true only; set it, or choose loss."
        ],
    ),
    (
        "validate",
        {"data": {"validation": None}},
        [
            "data.dev without data.validation: dev is what choices are made on, and nothing is "
            "left to report; give data.validation too, or rename dev to validation."
        ],
    ),
    (
        "validate",
        {"data": {"limit": {"bytes": "20 kB", "samples": 4}}},
        ["data.limit: give either bytes or samples (given: bytes, samples) (my.yaml, line 16)."],
    ),
    (
        "validate",
        {"adapter": {"method": "partial", "trainable": ["norm"], "frozen_layers": 2}},
        [
            "adapter.trainable with adapter.frozen_layers: both say which parameters train; remove "
            "one of them."
        ],
    ),
    (
        "transfer",
        {},
        [
            "my.yaml: has no section transfer, which says what is measured, e.g. transfer: {arms: "
            "[warm, random], sizes: [20 kB, 100 kB]}."
        ],
    ),
    (
        "transfer",
        {"data": {"dev": None}, "train": {"early_stopping": None}, "transfer": {"seeds": [0]}},
        [
            "transfer without data.dev: learning rates and lengths would be chosen on the text "
            "that is reported; set data.dev: {fraction: 0.1} or give data.dev.sources.",
            "transfer without train.early_stopping: small data is over-fitted within a few epochs, "
            "and arms would be compared by how much; set train.early_stopping: {patience: 3} and "
            "evaluate.every.",
        ],
    ),
    (
        "transfer",
        {"transfer": {"arms": ["warm", "rnadom"]}},
        [
            "transfer.arms = ['warm', 'rnadom']: rnadom is none of warm, random, lora, ia3, head, "
            "replay, l2_sp, frozen-2, and has no settings; give it some, e.g. {rnadom: "
            "{train.unfreeze: {every: 1 epoch}}} (my.yaml, line 25)."
        ],
    ),
    (
        "transfer",
        {"transfer": {"arms": {"warm": {"data.limit.bytes": 4}}}},
        [
            "transfer.arms: arm warm sets data.limit.bytes, which no arm can: transfer.sizes says "
            "it for all arms (my.yaml, line 25)."
        ],
    ),
    (
        "transfer",
        {"transfer": {"arms": ["warm", "replay"]}},
        [
            "transfer.arms has replay, which wants transfer.replay, e.g. {sources: [{path: "
            "stories.txt}], share: 0.1}."
        ],
    ),
    (
        "transfer",
        {"transfer": {"arms": ["warm"], "sizes": ["20 kB"], "random_sizes": ["40 kB"]}},
        ["transfer.random_sizes: random is not among transfer.arms; add it."],
    ),
    (
        "transfer",
        {"transfer": {"learning_rates": {"wram": [1e-3]}}},
        [
            "transfer.learning_rates.wram: is not one of the arms warm, random, nor one of them at "
            "a size (warm-all, random-all, ...)."
        ],
    ),
    (
        "transfer",
        {
            "transfer": {
                "arms": ["warm", "replay"],
                "source": [{"path": "org/stories"}],
                "replay": {"sources": [{"path": "org/stories"}]},
            }
        },
        [
            "transfer.replay and transfer.source both have stories: what is trained on says "
            "nothing about forgetting; hold some of it out."
        ],
    ),
    (
        "transfer",
        {"transfer": {"arms": {"own": {"train.l2_sp": 0.1, "adapter.method": "lora"}}}},
        [
            "compare.arms.own-all: train.l2_sp with adapter.method = lora: the pretrained weights "
            "do not move, and an adapter starts from none; set train.weight_decay, or "
            "adapter.method: full."
        ],
    ),
]


@pytest.mark.parametrize(
    ("command", "sections", "messages"), CASES, ids=[case[2][0][:50] for case in CASES]
)
def test_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    sections: dict[str, Any],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(yaml.safe_dump(recipe(**sections), sort_keys=False))
    assert main([command, "my.yaml"]) == 2
    head = f"{len(messages)} faults:\n" if len(messages) > 1 else ""
    lines = "".join(f"{'  ' if head else ''}{message}\n" for message in messages)
    assert capsys.readouterr().err == f"error: {head}{lines}"


def test_the_options_together_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = {"l2_sp": 0.01, "layer_lr_decay": 0.8, "unfreeze": {"every": "2 steps"}}
    Path("my.yaml").write_text(yaml.safe_dump(recipe(train=train, data={"limit": {"samples": 9}})))
    assert main(["validate", "my.yaml"]) == 0
    assert "my.yaml is valid" in capsys.readouterr().out
