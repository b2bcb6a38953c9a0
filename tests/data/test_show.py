"""What is shown of the data is what is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recipes import recipe, write_jsonl
from toy_tokenizers import FAMILIES, toy_tokenizer

from ds_train.config.run import RunConfig
from ds_train.data.order import StepPlan
from ds_train.data.prepare import prepare_data
from ds_train.data.row_plan import RowPlan
from ds_train.data.show import show_data
from ds_train.data.show_step import segments
from ds_train.errors import DataError

PAIRS = [{"prompt": f"What is {i}?", "completion": f" It is {i * i}."} for i in range(40)]


def _config(stories260k: Path, folder: Path) -> RunConfig:
    return recipe(
        stories260k,
        folder,
        [{"path": write_jsonl(folder / "a.jsonl", PAIRS)}],
        max_length=64,
        cluster={"processes_per_node": 2},
        train_section={"max_steps": 5, "global_batch_size": 8, "per_device_train_batch_size": 2},
    )


def test_first_rows_with_marks_and_with_colour(stories260k: Path, tmp_path: Path) -> None:
    said: list[str] = []
    show_data(_config(stories260k, tmp_path), rows=1, say=said.append)
    assert "What is 0?« It is 0.</s>»" in said[-1]
    assert "sample 0 (a.jsonl, row 1):" in said[-2] and "learned from" in said[-2]
    show_data(_config(stories260k, tmp_path), rows=1, color=True, say=said.append)
    assert "What is 0?\x1b[32m It is 0.</s>\x1b[0m" in said[-1]


def test_json_of_a_step_is_the_plan_of_the_step(stories260k: Path, tmp_path: Path) -> None:
    config = _config(stories260k, tmp_path)
    said: list[str] = []
    show_data(config, step=4, as_json=True, say=said.append)
    step = json.loads("".join(said))["step"]
    data = prepare_data(config, say=said.append)
    rows = StepPlan(RowPlan.uniform(data.train, config.data, 0, data.source_weights), 8).rows(3)
    shown = [
        [sample["sample"] for sample in row]
        for rank in step["ranks"]
        for micro_batch in rank
        for row in micro_batch
    ]
    assert len(step["ranks"]) == 2 and all(len(rank) == 2 for rank in step["ranks"])
    assert sorted(shown) == sorted(row.tolist() for row in rows)
    sample = step["ranks"][0][0][0][0]
    assert sample["ids"] == data.train.tokens(sample["sample"]).tolist()
    assert sum(sample["mask"]) == sample["supervised_tokens"]


def test_a_step_as_text(stories260k: Path, tmp_path: Path) -> None:
    said: list[str] = []
    show_data(_config(stories260k, tmp_path), step=1, say=said.append)
    text = "\n".join(said)
    assert "step 1 of 5, epoch 0.000: 2 processes x 2 rows x 2 micro-batches = 8 rows" in text
    assert "rank 1, micro-batch 1, row 1:" in text
    with pytest.raises(DataError, match="--step 6: the run has steps 1 to 5"):
        show_data(_config(stories260k, tmp_path), step=6, say=said.append)


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_join_to_the_whole_text(family: str) -> None:
    tokenizer = toy_tokenizer(family)
    ids = np.array(tokenizer.encode("hello world, 日本語 12+30"))
    mask = np.arange(len(ids)) % 5 > 2
    parts = segments(tokenizer, ids, mask)
    assert "".join(text for text, _ in parts).replace("\ufffd", "").startswith("<s>")
    assert [learned for _, learned in parts] == [i % 2 == 1 for i in range(len(parts))]
    if family in ("metaspace", "words"):
        assert "".join(text for text, _ in parts) == tokenizer.decode(ids)
