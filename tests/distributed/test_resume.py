"""Resumed equals uninterrupted: to the bit on the same layout, and within rounding on another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.checkpoint.checksums import find_damage
from ds_train.checkpoint.folder import complete_checkpoints
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of the last of four starts of the same runs, and of undisturbed ones beside it."""
    folder = tmp_path_factory.mktemp("chain")
    scenarios.write_inputs(folder)
    results: Results = {}
    for number, (num_ranks, stage, stop_after) in enumerate(
        [(1, 0, 2), (2, 2, 2), (3, 3, 2), (1, 1, None)]
    ):
        plan = scenarios.chain_plan(folder, stage, stop_after)
        results = launch(folder, f"start-{number}", plan, num_ranks)
    return results


@pytest.mark.parametrize("family", scenarios.FAMILIES)
@pytest.mark.parametrize("stage", [2, 3])
def test_same_layout_goes_on_to_the_bit(two_ranks: Results, family: str, stage: int) -> None:
    whole = two_ranks[f"{family}-z{stage}-m4"]
    assert len(two_ranks[f"cut-{family}-z{stage}"]["losses"]) == 2
    resumed = two_ranks[f"cut-{family}-z{stage}-on"]
    for key in ("losses", "grad_norms", "evaluations", "learning_rates"):
        assert resumed[key] == whole[key]


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_optimizer_states_go_on_to_the_bit_and_are_saved_in_fp32(
    two_ranks: Results, inputs: Path, stage: int
) -> None:
    name = f"bf16-states-z{stage}"
    whole, resumed = two_ranks[name], two_ranks[f"cut-{name}-on"]
    assert resumed["losses"] == whole["losses"]
    masters = two_ranks["bf16-full-z1"]["losses"]
    assert whole["losses"] == pytest.approx(masters, rel=5e-3)
    assert whole["losses"] != masters  # they are in use
    folder = complete_checkpoints(RunPaths(inputs / "runs" / name))[-1]
    saved = load_file(str(folder / "state" / "rank-00000.safetensors"))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.skipif(
    not scenarios.TRIES_NVME, reason="takes minutes, needs libaio: set DS_TRAIN_TEST_NVME=1"
)
def test_optimizer_states_on_nvme_go_on(two_ranks: Results) -> None:
    """Of 13 million parameters: those under 1 MiB would stay in memory."""
    whole, resumed = two_ranks["big-full"], two_ranks["cut-nvme-on"]
    assert len(two_ranks["cut-nvme"]["losses"]) == 2
    for key in ("losses", "grad_norms", "evaluations"):
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6)


@pytest.mark.parametrize("name", ["dropout", "pissa"])
def test_dropout_and_pissa_go_on_to_the_bit(two_ranks: Results, name: str) -> None:
    whole = two_ranks["pissa" if name == "pissa" else "dropout-z1"]
    resumed = two_ranks[f"cut-{name}-on"]
    tolerance = 0 if name == "pissa" else 1e-6  # the whole dropout run is at another stage
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=tolerance)


def test_adafactor_goes_on_to_the_bit(one_rank: Results) -> None:
    assert one_rank["cut-adafactor-on"]["losses"] == one_rank["adafactor"]["losses"]


@pytest.mark.parametrize("family", scenarios.FAMILIES)
@pytest.mark.parametrize(("stage", "other"), [(2, 3), (3, 1)])
def test_two_ranks_go_on_as_one_at_another_stage(
    two_ranks: Results, one_rank: Results, family: str, stage: int, other: int
) -> None:
    whole = two_ranks[f"{family}-z{stage}-m4"]
    resumed = one_rank[f"moved-{family}-z{stage}-to-z{other}"]
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-5)


@pytest.mark.parametrize("family", scenarios.FAMILIES)
def test_one_two_three_one_ranks_each_at_another_stage(chain: Results, family: str) -> None:
    """Eight rows a step on three ranks: nine places, one of them empty."""
    whole, moved = chain[f"{family}-whole"], chain[f"{family}-chain"]
    assert len(moved["losses"]) == len(whole["losses"]) == 8
    for key in ("losses", "evaluations"):
        assert moved[key] == pytest.approx(whole[key], rel=1e-5)
    assert moved["tokens"] == whole["tokens"]


def test_another_recipe_is_refused_with_the_difference(one_rank: Results) -> None:
    result = one_rank["other-recipe"]
    assert result["kind"] == "CheckpointError"
    assert "train.learning_rate: 0.01 -> 0.02" in result["error"]


def test_a_complete_run_trains_nothing_more(one_rank: Results, two_ranks: Results) -> None:
    assert one_rank["complete"]["losses"] == two_ranks["lora-z2-m4"]["losses"]
    assert any("complete" in line for line in one_rank["complete"]["said"])


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt", "prefix", "modules-to-save"])
@pytest.mark.parametrize("stage", [1, 3])
def test_the_checkpoint_is_an_adapter_that_plain_peft_reads(
    two_ranks: Results, inputs: Path, kind: str, stage: int
) -> None:
    name = f"{kind}-z{stage}" + ("-m4" if kind == "lora" else "")
    (folder,) = complete_checkpoints(RunPaths(inputs / "runs" / name))[-1:]
    saved = load_file(str(folder / "adapter_model.safetensors"))
    assert saved and all(tensor.abs().sum() > 0 for tensor in saved.values())
    base = AutoModelForCausalLM.from_pretrained(str(inputs / "model"))
    model = PeftModel.from_pretrained(base, str(folder))
    own = {key: value for key, value in model.state_dict().items() if ".default" in key}
    assert sum(value.numel() for value in own.values()) >= sum(
        value.numel() for value in saved.values()
    )


def test_a_50_mb_base_leaves_no_trace_in_a_zero3_checkpoint(
    two_ranks: Results, inputs: Path
) -> None:
    weights = (inputs / "model-50mb" / "model.safetensors").stat().st_size
    assert weights > 50e6
    folder = complete_checkpoints(RunPaths(inputs / "runs" / "big-base"))[-1]
    adapter = (folder / "adapter_model.safetensors").stat().st_size
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert 0.3e6 < adapter < total < adapter + 2 * adapter + 2e6  # the adapter, two moments, 2 MB


def test_a_full_disk_leaves_the_previous_checkpoint_whole(two_ranks: Results, inputs: Path) -> None:
    result = two_ranks["disk-full"]
    assert result["kind"] == "CheckpointError"
    assert "step-00000003 could not be written" in result["error"]
    assert "rank 1: [Errno 28] No space left on device" in result["error"]
    paths = RunPaths(inputs / "runs" / "disk-full")
    latest = complete_checkpoints(paths)[-1]
    assert latest.name == "step-00000002" == (paths.checkpoints / "latest").read_text().strip()
    assert load_file(str(latest / "adapter_model.safetensors"))
    assert not list(paths.checkpoints.glob(".partial-*"))


def test_saved_behind_the_steps_are_the_same_checkpoints(two_ranks: Results, inputs: Path) -> None:
    behind, before = (two_ranks[f"saved-{when}"] for when in ("behind", "before"))
    assert behind["losses"] == before["losses"]
    files = [
        {
            str(path.relative_to(root)): path.read_bytes()
            for folder in complete_checkpoints(RunPaths(root))
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("checkpoint.json", "SHA256SUMS")
        }
        for root in (inputs / "runs" / "saved-behind", inputs / "runs" / "saved-before")
    ]
    assert len(files[0]) > 4 and files[0] == files[1]
    for folder in complete_checkpoints(RunPaths(inputs / "runs" / "saved-behind")):
        assert find_damage(folder) is None


def test_a_full_disk_behind_the_steps(two_ranks: Results, inputs: Path) -> None:
    result = two_ranks["disk-full-behind"]
    assert result["kind"] == "CheckpointError"
    assert "step-00000003 could not be written" in result["error"]
    assert "rank 1: [Errno 28] No space left on device" in result["error"]
    latest = complete_checkpoints(RunPaths(inputs / "runs" / "disk-full-behind"))[-1]
    assert latest.name == "step-00000002" and find_damage(latest) is None


def test_a_full_disk_is_met_before_the_first_step(two_ranks: Results, inputs: Path) -> None:
    result = two_ranks["disk-full-at-once"]
    assert result["kind"] == "CheckpointError"
    assert "checkpoint rehearsal could not be written" in result["error"]
    assert "rank 1: [Errno 28] No space left on device" in result["error"]
    assert not list(RunPaths(inputs / "runs" / "disk-full-at-once").checkpoints.iterdir())


def test_an_existing_adapter_goes_on_where_it_was(two_ranks: Results) -> None:
    trained, continued = two_ranks["lora-z2-m4"], two_ranks["continued"]
    assert continued["losses"][0] < trained["losses"][0] - 0.2


def test_a_checkpoint_holds_no_frozen_weight(two_ranks: Results, inputs: Path) -> None:
    folder = complete_checkpoints(RunPaths(inputs / "runs" / "lora-z3-m4"))[-1]
    adapter = (folder / "adapter_model.safetensors").stat().st_size
    state = sum(file.stat().st_size for file in (folder / "state").iterdir())
    assert state < 3 * adapter + 20_000  # weights and two moments, and the headers
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask  # the team can read it
    assert len(list((folder / "state").iterdir())) == 2  # one file a rank
