"""`ds-train plan` as a user meets it, and what its numbers must obey."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.plan.advise import choose_preset, compare_presets, smallest_change
from ds_train.plan.cluster import Cluster, read_cluster
from ds_train.plan.count import shape_of
from ds_train.plan.estimate import Estimate, estimate, with_preset
from ds_train.plan.presets import ds_configs_dir

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
RECIPE = """\
output_dir: run
model: {name_or_path: ./model, dtype: bf16, gradient_checkpointing: true}
adapter: {method: lora, r: 8}
data: {train: [{path: org/data}], max_length: 2048}
train: {global_batch_size: 64, per_device_train_batch_size: 4, max_steps: 200}
"""
Make = Callable[..., RunConfig]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


def big(make: Make, **sections: dict[str, Any]) -> RunConfig:
    """Llama 3.1 8B, 64 rows of 2,048 tokens."""
    model = {"name_or_path": "x", "gradient_checkpointing": True}
    train = {"global_batch_size": 64, "per_device_train_batch_size": 4, "max_steps": 10}
    data = {"max_length": 2048}
    merged = {"model": model, "train": train, "data": data}
    for name, section in sections.items():
        merged[name] = {**merged.get(name, {}), **section}
    return make(**merged)


def under(config: RunConfig, preset: str, cluster: str = "8xh100") -> Estimate:
    return estimate(with_preset(config, preset), shape_of(LLAMA_8B), read_cluster(cluster))


def test_the_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "my.yaml", "--cluster", "8xh100", "--json", "plan.json"]) == 0
    said = capsys.readouterr().out
    for text in (
        "model    llama, 8,051,232,768 parameters, 20,971,520 of them train (0.26 %)",
        "cluster  8xh100: 1 node of 8 GPUs with 74.51 GiB each",
        "  weights, frozen                14.96 GiB",
        "  activations: 3.66 GiB with checkpointing, 49.19 GiB without",
        "take engine.preset: zero1 (it fits",
        "disk     320.00 MiB a checkpoint, 960.00 MiB for all that the run holds at once",
    ):
        assert text in said
    numbers = json.loads((folder / "plan.json").read_text())
    assert numbers["preset"]["name"] == "zero1"
    assert numbers["plan"]["fits"] is True
    assert list(numbers["presets"])[:3] == ["zero0", "zero1", "zero2"]


def test_what_does_not_fit_says_the_smallest_change(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "my.yaml", "--gpus", "8", "--gpu-memory", "20GiB", "--intra", "900GB/s"]
    assert main(arguments) == 1
    assert "smallest change that fits: train.per_device_train_batch_size: 2 (then" in (
        capsys.readouterr().out
    )


def test_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--cluster", "8xh10"], "no cluster of that name; there are .* Did you mean 8xh100"),
        (["--gpu-memory", "80"], ""),
        (["--intra", "900GB"], "--intra: '900GB' is not a bandwidth; write it like 50GB/s"),
        (["--gpu-memory", "eighty"], "--gpu-memory: 'eighty' is not a size"),
        (["engine.preset=zeropp", "--gpus", "6"], "must divide the 6 processes"),
        (["model.name_or_path=org/none"], r"its config.json is not on this machine"),
    ):
        code = main(["plan", "my.yaml", *arguments])
        said = capsys.readouterr().err
        if words:
            assert code == 2
            assert re.search(words, said), said
    (folder / "c.yaml").write_text("gpus: 8\ngpu_memroy: 80 GB\nintra: fast\n")
    with pytest.raises(ConfigError) as caught:
        read_cluster("c.yaml")
    assert [fault.split(": ", 1)[1] for fault in caught.value.faults] == [
        "gpu_memroy: no such setting of a cluster. Did you mean gpu_memory?",
        "intra: 'fast' is not a bandwidth; write it like 50GB/s.",
        "nodes is missing; say how many.",
    ]


def test_it_is_quick_and_light(folder: Path) -> None:
    code = (
        "import sys; from ds_train.cli import main\n"
        "main(['plan', 'my.yaml', '--cluster', '2x8xh100'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'deepspeed', 'numpy', 'datasets'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize("path", sorted((ds_configs_dir() / "clusters").glob("*.yaml")))
def test_every_cluster_file(path: Path) -> None:
    cluster = read_cluster(path.stem)
    assert cluster.is_cpu or cluster.gpu_memory
    assert path.read_text().startswith("# ")  # where its numbers are from


def test_classical_sizes_of_full_training(make: Make) -> None:
    """16 bytes a parameter in 16 bits (ZeRO, section 3.1), and what the stages divide."""
    config = big(make, adapter={"method": "full"})
    n = 8_030_261_248

    def states(preset: str) -> int:
        names = ("weights", "fp32 masters", "optimizer", "gradients,", "gradients")
        memory = under(config, preset).memory
        return sum(
            t.num_bytes for t in memory.terms if t.phase == "always" and t.name.startswith(names)
        )

    assert states("zero0") == 16 * n
    assert states("zero1") == pytest.approx((2 + 4) * n + 12 * n / 8)
    assert states("zero2") == pytest.approx(2 * n + 16 * n / 8)
    gathered = 64 * 4096 + 4096  # norms are never sharded
    assert states("zero3") == pytest.approx((2 + 16) * n / 8 + 2 * gathered, rel=1e-4)


def test_traffic(make: Make) -> None:
    full = big(make, adapter={"method": "full"})
    w = 2 * 8_030_261_248
    ring = 7 / 8
    assert under(full, "zero1").sent_bytes == pytest.approx(3 * ring * w)
    assert under(full, "zero2").sent_bytes == pytest.approx((2 * 2 + 1) * ring * w)
    zero3 = under(full, "zero3")
    gathers = zero3.memory.gathers
    assert gathers is not None
    assert 1.8 * w < 2 * gathers.elements <= 2 * w
    lora = big(make)
    assert under(lora, "zero2").sent_bytes < 0.01 * under(lora, "zero3").sent_bytes


def test_more_ranks_take_less_of_each(make: Make) -> None:
    config = big(make, adapter={"method": "full"})
    for preset in ("zero1", "zero2", "zero3"):
        one, two = under(config, preset), under(config, preset, "2x8xh100")
        assert two.memory.peak < one.memory.peak


def test_what_takes_memory_away(make: Make) -> None:
    def peak(**sections: dict[str, Any]) -> int:
        return estimate(
            big(make, **sections), shape_of(LLAMA_8B), read_cluster("8xh100")
        ).memory.peak

    start = peak()
    assert peak(model={"gradient_checkpointing": False}) > start
    assert peak(train={"per_device_train_batch_size": 2}) < start
    assert peak(data={"max_length": 1024}) < start
    assert peak(adapter={"r": 64}) > start
    assert peak(engine={"preset": "zero3"}) < start


def test_a_checkpoint_behind_the_steps_takes_12_bytes_a_parameter_of_the_hosts(make: Make) -> None:
    config = big(make, checkpoint={"background": True, "every": "100 steps"})
    plain, behind = under(big(make), "zero3"), under(config, "zero3")
    trained = sum(one.num_elements for one in behind.setting.trainable.trained)
    more = 8 * (behind.memory.host - plain.memory.host)
    assert behind.memory.peak == plain.memory.peak
    assert more == pytest.approx(12 * trained, rel=1e-6)


def test_choices(make: Make) -> None:
    shape = shape_of(LLAMA_8B)

    def chosen(cluster: Cluster, **sections: dict[str, Any]) -> str | None:
        choice = choose_preset(compare_presets(big(make, **sections), shape, cluster, 0.4))
        return None if choice is None else choice[0]

    full = {"method": "full"}
    h100 = read_cluster("8xh100")
    assert chosen(h100) == "zero1"
    assert chosen(h100, adapter=full) == "zero1"
    assert chosen(read_cluster("8xa100-40gb"), adapter=full) == "zero3"
    assert chosen(read_cluster("4xl40s"), adapter=full) == "zero2_offload_cpu"
    assert chosen(Cluster("tiny", 1, 2, gpu_memory=2**30), adapter=full) is None
    adafactor = {"optim": "adafactor"}
    big_gpu = Cluster("one", 1, 8, gpu_memory=2**40)
    assert chosen(big_gpu, adapter=full, train=adafactor) == "zero0"


def test_offloading_takes_time_that_is_known_or_said_to_be_unknown(make: Make) -> None:
    config = big(make, adapter={"method": "full"})
    shape, cluster = shape_of(LLAMA_8B), read_cluster("8xh100")
    cpu, nvme = (
        estimate(with_preset(config, name), shape, cluster)
        for name in ("zero3_offload_cpu", "zero3_offload_nvme")
    )
    zero3 = under(config, "zero3")
    assert cpu.step_seconds is not None
    assert zero3.step_seconds is not None
    assert cpu.step_seconds[1] > zero3.step_seconds[1]
    assert nvme.step_seconds is None  # nobody has said how fast the disks are
    assert nvme.nvme_bytes == 24 * 8_030_261_248
    quick = replace(cluster, nvme=100e9)
    timed = estimate(with_preset(config, "zero3_offload_nvme"), shape, quick).communication_seconds
    assert cpu.communication_seconds is not None
    assert timed == pytest.approx(cpu.communication_seconds + nvme.nvme_bytes / 100e9)


def test_the_smallest_change_is_one_setting_where_one_will_do(make: Make) -> None:
    shape = shape_of(LLAMA_8B)
    no_gc = {"gradient_checkpointing": False}
    change = smallest_change(big(make, model=no_gc), shape, read_cluster("1xrtx4090"), 0.4)
    assert change is not None
    assert change.estimate.fits
    assert len(change.settings) == 1
    tiny = Cluster("tiny", 1, 8, gpu_memory=2**30, host_memory=2**33)
    assert smallest_change(big(make), shape, tiny, 0.4) is None


def test_long_rows_are_shared_before_they_are_cut(make: Make) -> None:
    """80 GB and rows of 131,072 tokens: what does not fit is the activations of one row."""
    long = {"max_length": 131_072}
    config = big(make, data=long, train={"per_device_train_batch_size": 1})
    whole = estimate(config, shape_of(LLAMA_8B), read_cluster("8xh100"))
    assert whole.fits is False
    change = smallest_change(config, shape_of(LLAMA_8B), read_cluster("8xh100"), 0.4)
    assert change is not None
    assert change.settings == ("engine.sequence_parallel_size: 2",)
    kept = change.estimate.memory.activations.layer_inputs
    assert kept * 2 == whole.memory.activations.layer_inputs


def test_shared_rows_divide_what_a_rank_keeps_and_add_exchanges(make: Make) -> None:
    shape, cluster = shape_of(LLAMA_8B), read_cluster("8xh100")
    whole = estimate(big(make), shape, cluster)
    config = big(make, engine={"preset": "zero3", "sequence_parallel_size": 8})
    shared = estimate(config, shape, cluster)
    assert shared.compute == whole.compute
    assert shared.setting.batch.accumulation_steps == 16  # one group of 8, 4 rows at once
    before, after = (one for one in shared.collectives if one.operation == "all_to_all")
    # 32 layers, forward, recomputed and backward; 8 key heads of 128 beside 32 query heads; bf16
    assert before.calls == after.calls == 16 * 32 * 3
    elements = before.calls * 4 * config.data.max_length // 8 * 128
    assert after.payload == 2 * elements * 32
    assert before.payload == 2 * elements * (32 + 2 * 8)
    assert after.sent == after.payload * 7 // 8


def test_heads_that_do_not_divide_are_refused(make: Make) -> None:
    config = big(make, engine={"preset": "zero3", "sequence_parallel_size": 6})
    with pytest.raises(ConfigError, match="must divide the model's 32 attention heads"):
        estimate(config, shape_of(LLAMA_8B), Cluster("six", 1, 6, gpu_memory=2**36))
