"""Settings of the `report` section that can't work; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.plan.cluster import read_cluster


def report_rules(config: RunConfig) -> Iterator[str]:
    """Faults of the cluster that predicts the seconds of communication."""
    report = config.report
    if report.cluster is None:
        return
    try:
        read_cluster(report.cluster, "report.cluster")
    except ConfigError as error:
        yield from error.faults
    if report.communication_every == 0:
        yield (
            f'report.cluster = "{report.cluster}" with report.communication_every = 0: nothing is '
            "recorded that it would predict; remove one of the two."
        )
