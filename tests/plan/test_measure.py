"""`ds-train plan --measure`: what is shrunk, what is refused, and a real measurement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_train.cli import main
from ds_train.config.run import RunConfig
from ds_train.model.tiny import save_tiny
from ds_train.plan import measure
from ds_train.plan.measure import Measured

RECIPE = """\
output_dir: run
model: {name_or_path: ./model, dtype: fp32}
adapter: {method: lora, r: 4}
data: {train: [{path: org/data}], max_length: 128}
train: {global_batch_size: 16, per_device_train_batch_size: 4, max_steps: 5}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = {"hidden_size": 256, "intermediate_size": 688, "vocab_size": 2048, "head_dim": 64}
    save_tiny(tmp_path / "model", "qwen3", num_hidden_layers=10, **sizes)
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


def test_lists_of_layers_are_shortened(make: Callable[..., RunConfig]) -> None:
    raw = {"num_hidden_layers": 6, "layer_types": list("abcdef"), "eos_token_id": [1, 2]}
    small = measure._shrunken(make(), raw, "num_hidden_layers", 6, 2)
    assert small.model.config_overrides == {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert small.model.init == "random"
    assert small.train.gradient_accumulation_steps == 2


def test_the_whole_model_is_a_straight_line_through_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(config: RunConfig, depth: int) -> Measured:
        return Measured(depth, 2**20 * (10 + depth), 2**20 * (8 + 2 * depth), 1.0 + depth)

    monkeypatch.setattr(measure, "_measure", fake)
    assert main(["plan", "my.yaml", "--measure", "--json", "out.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["2", "12.00", "MiB", "12.00", "MiB", "+0.0%", "3.0", "s"]
    last = ["10", "20.00", "MiB", "28.00", "MiB", "-28.6%", "11", "s", "extrapolated"]
    assert lines[4].split() == last
    numbers = json.loads((folder / "out.json").read_text())["measured"]
    assert [one["layers"] for one in numbers] == [2, 4, 10]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adapter.path=x", "adapter.path with --measure: its layers are those of the whole model"),
        ("adapter.method=partial", "adapter.method = partial with --measure"),
        ("model.quantization=nf4", "the shrunken model has random weights, and nothing to"),
    ],
)
def test_what_can_not_be_shrunk(
    folder: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "my.yaml", "--measure", override]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.distributed
def test_a_real_measurement(folder: Path) -> None:
    assert main(["plan", "my.yaml", "--measure", "--json", "out.json"]) == 0
    two, four, ten = json.loads((folder / "out.json").read_text())["measured"]
    # 0.9 million parameters a layer; what a process takes besides is more than such a model
    slope = (four["peak_bytes"] - two["peak_bytes"]) / (
        four["planned_bytes"] - two["planned_bytes"]
    )
    assert 0.8 < slope < 1.25
    assert ten["extrapolated"]
    assert ten["seconds"] > two["seconds"] > 0
