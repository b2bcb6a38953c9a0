"""Weight files written tensor by tensor are what the safetensors library writes and reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_run import adapter_run
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from ds_train.checkpoint.shards import TensorSpec, WeightFiles, write_shard
from ds_train.model.tiny import save_tiny

TENSORS = {
    "odd.bf16": torch.randn(3, dtype=torch.float32).bfloat16(),
    "wide": torch.randn(2, 3, 5),
    "scalar": torch.tensor(7),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "half": torch.randn(4, 4).half(),
    "empty": torch.zeros(0, 3),
}


def _specs() -> list[TensorSpec]:
    return [TensorSpec(key, t.dtype, tuple(t.shape)) for key, t in TENSORS.items()]


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", _specs(), TENSORS.__getitem__)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor), key


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    keys = list(TENSORS)
    for path, part in zip(paths, (keys[:3], keys[3:]), strict=True):
        save_file({key: TENSORS[key] for key in part}, path)
    files = WeightFiles(paths)
    assert set(files.keys_of(paths[1])) == set(keys[3:])
    for spec in _specs():
        assert files.specs[spec.key] == spec
        assert torch.equal(files.read(spec.key), TENSORS[spec.key])
        assert spec.num_bytes == TENSORS[spec.key].nbytes


def test_tensors_are_cast_and_their_shape_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, [TensorSpec("wide", torch.bfloat16, (2, 3, 5))], TENSORS.__getitem__)
    assert torch.equal(load_file(path)["wide"], TENSORS["wide"].bfloat16())
    with pytest.raises(ValueError, match=r"wide: shape \(2, 3, 5\), not \(5, 3, 2\)"):
        write_shard(path, [TensorSpec("wide", torch.float32, (5, 3, 2))], TENSORS.__getitem__)


MEASURE = """
import sys
from pathlib import Path
from ds_train.checkpoint.export import export_command
from ds_train.model.tiny import tiny_model
tiny_model("llama")  # imports what any model needs
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
export_command(sys.argv[1], merge=True, say=lambda _: None)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_a_merge_never_holds_the_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 24}
    base = save_tiny(tmp_path / "base", **sizes)  # one file, tensors of 2 MiB
    assert (base / "model.safetensors").stat().st_size > 150 * 2**20
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    paths, _ = adapter_run(tmp_path / "run", base, config)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(paths.root)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 80
