"""What a run is told of its collectives at its start is what `ds-train plan` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.model.tiny import save_tiny
from ds_train.plan.cluster import Cluster
from ds_train.plan.estimate import estimate
from ds_train.plan.model_files import describe_model
from ds_train.plan.rules import check_rules
from ds_train.plan.traffic import predict_traffic


def config_of(folder: Path, **report: Any) -> RunConfig:
    if not (folder / "model").exists():
        save_tiny(folder / "model", "llama")
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(folder / "model")},
            "adapter": {"method": "lora", "r": 4},
            "data": {"train": [{"path": "rows.jsonl"}], "max_length": 64},
            "train": {"max_steps": 1, "per_device_train_batch_size": 1},
            "engine": {"preset": "zero3"},
            "report": report,
        }
    )


def test_equals_the_plan_collective_by_collective(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    found = predict_traffic(config, 4, on_cpu=True)
    parts = estimate(config, describe_model(config.model), Cluster("four", 1, 4)).collectives
    assert set(found) == {"all_gather", "reduce_scatter"}
    for name, planned in found.items():
        mine = [part for part in parts if part.operation == name]
        assert planned.logged_bytes == sum(part.logged for part in mine) > 0
        assert planned.sent_bytes == sum(part.sent for part in mine)
        assert planned.calls == sum(part.calls for part in mine)
        assert planned.seconds is None


def test_a_cluster_that_is_known_gives_seconds(tmp_path: Path) -> None:
    within = predict_traffic(config_of(tmp_path, cluster="8xh100"), 8, on_cpu=False)
    across = predict_traffic(config_of(tmp_path, cluster="2x8xh100"), 16, on_cpu=False)
    fewer = predict_traffic(config_of(tmp_path, cluster="2x8xh100"), 8, on_cpu=False)
    first, second, third = (one["all_gather"].seconds for one in (within, across, fewer))
    assert first is not None and second is not None and third is not None
    assert 0 < first == third < second


def test_a_cluster_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (fault,) = check_rules(config_of(tmp_path, cluster="8xh10"), 1)
    assert fault.startswith('report.cluster = "8xh10": no such file, and no cluster of that name')
    assert fault.endswith("Did you mean 8xh100?")


def test_a_prediction_of_what_is_not_recorded_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, cluster="8xh100", communication_every=0)
    assert check_rules(config, 1) == [
        'report.cluster = "8xh100" with report.communication_every = 0: nothing is recorded that '
        "it would predict; remove one of the two."
    ]
