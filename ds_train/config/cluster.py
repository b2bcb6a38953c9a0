"""The `cluster` section: on which processes and nodes the deepspeed launcher starts the run."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from ds_train.config.base import Count, Natural, Section


def _check_variable(text: str) -> str:
    """A name that a shell can export; HF_TOKEN and the like do not belong into a file."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(f'"{text}" is not the name of a variable; write it like NCCL_DEBUG')
    return text


def _check_value(text: str) -> str:
    """What the launcher can hand to the shell of another host and have it arrive unchanged."""
    if found := next((sign for sign in '"$`\\\n' if sign in text), None):
        raise ValueError(
            f"{text!r} has a {found!r}, which the remote shell would change; leave it out"
        )
    return text


Variable = Annotated[str, AfterValidator(_check_variable)]
Value = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_value)]


class ClusterConfig(Section):
    """What the deepspeed launcher is told."""

    processes_per_node: Count | None = None
    """Ranks on each node; one per GPU when left out, one on a machine without."""

    hostfile: str | None = None
    """Lines `host slots=N`; several nodes when given."""

    include: str | None = None
    """Only these of the hostfile's hosts and slots: `worker-0@worker-1:0,2`."""

    exclude: str | None = None
    """All but these of the hostfile's hosts and slots."""

    ssh_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Of every host's sshd; what ssh's own settings say when left out."""

    env: dict[Variable, Value] = {}
    """Variables of every rank, on every host, such as NCCL_SOCKET_IFNAME: eth0."""

    master_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of rank 0; a free one when left out."""

    hang_seconds: Annotated[float, Field(ge=1)] | None = 1800.0
    """End the run, with the stacks of all ranks, when there is no progress for so long: no forward
    or backward pass, no parameter saved. At least 10 minutes before the second step; null: no
    limit."""

    restarts: Natural = 0
    """How often `ds-train train` starts the run again by itself, from its last good checkpoint and
    on the hosts that answer, when a rank was killed or hung, or a host or the launcher is lost."""
