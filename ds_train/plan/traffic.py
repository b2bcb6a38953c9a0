"""What the plan says of a run's collectives, for the records of the run itself."""

from __future__ import annotations

from dataclasses import replace

from ds_train.config.run import RunConfig
from ds_train.plan.cluster import Cluster, read_cluster
from ds_train.plan.estimate import estimate
from ds_train.plan.model_files import describe_model
from ds_train.report.traffic import Planned, Prediction


def predict_traffic(config: RunConfig, num_ranks: int, *, on_cpu: bool) -> Prediction:
    """Collective -> calls, bytes and seconds of one step.

    Raises ModelError or ConfigError where the plan does not know the model.
    """
    cluster = _cluster(config, num_ranks, on_cpu)
    found: dict[str, Planned] = {}
    for one in estimate(config, describe_model(config.model), cluster).collectives:
        bandwidth = cluster.bandwidth(one.ranks)
        seconds = None if bandwidth is None else one.seconds(bandwidth)
        before = found.get(one.operation, Planned(0, 0, 0, 0.0))
        found[one.operation] = Planned(
            before.calls + one.calls,
            before.logged_bytes + one.logged,
            before.sent_bytes + one.sent,
            None if seconds is None or before.seconds is None else before.seconds + seconds,
        )
    return found


def _cluster(config: RunConfig, num_ranks: int, on_cpu: bool) -> Cluster:
    """`report.cluster` with as many nodes as the ranks take; without it nothing but the ranks."""
    if config.report.cluster is None:
        return Cluster("this run", 1, num_ranks, is_cpu=on_cpu)
    described = read_cluster(config.report.cluster, "report.cluster")
    per_node = min(described.gpus, num_ranks)
    return replace(described, nodes=-(-num_ranks // per_node), gpus=per_node, is_cpu=on_cpu)
