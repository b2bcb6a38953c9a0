"""Weight files that are missing, cut off or changed, and weights that were not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ds_train.config.model import ModelConfig
from ds_train.errors import ModelError
from ds_train.model.check import load_architecture
from ds_train.model.files import fingerprint_files, weight_files
from ds_train.model.integrity import check_integrity
from ds_train.model.load import load_model
from ds_train.model.tiny import save_tiny
from ds_train.plan.headers import read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", shard_size="200KB")


def integrity(model: torch.nn.Module, folder: Path) -> str:
    return check_integrity(
        model,
        weight_files(str(folder)),
        rank=0,
        world_size=1,
        sum_over_ranks=lambda values: values,
    )


def test_a_missing_shard_is_named(folder: Path) -> None:
    shards = weight_files(str(folder))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"{shards[1].name} is missing"):
        weight_files(str(folder))


def test_a_shard_cut_off_is_named(folder: Path) -> None:
    shard = weight_files(str(folder))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{shard.name}: is cut off"):
        read_header(shard)


def test_a_file_that_is_no_safetensors_file(folder: Path) -> None:
    shard = weight_files(str(folder))[0]
    shard.write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_header(shard)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found neither"):
        weight_files(str(tmp_path))


def test_fingerprint_follows_the_content(folder: Path) -> None:
    shards = weight_files(str(folder))
    before = fingerprint_files(shards)
    assert fingerprint_files(shards) == before
    content = bytearray(shards[0].read_bytes())
    content[-1] ^= 1
    shards[0].write_bytes(bytes(content))
    assert fingerprint_files(shards) != before


def test_integrity_holds_after_loading(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert "21 of 21" in integrity(model, folder) or "20 of 20" in integrity(model, folder)


def test_integrity_sees_one_tensor_at_random_values(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    torch.nn.init.normal_(model.model.layers[1].mlp.up_proj.weight, std=0.02)
    with pytest.raises(ModelError, match=r"1 of \d+ tensors .*layers\.1\.mlp\.up_proj"):
        integrity(model, folder)


def test_a_checkpoint_without_some_tensors_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "small", num_hidden_layers=1)
    config = ModelConfig(name_or_path=str(folder), dtype="fp32")
    architecture = load_architecture(config)
    architecture.num_hidden_layers = 2
    with pytest.raises(ModelError, match="9 of the model's parameters are not in its files"):
        load_model(config, architecture, seed=0)
