"""The files that a cluster reads: shell scripts for ssh, single nodes, Slurm and MPI.

Each ends in one of two commands: `ds-train train`, where DeepSpeed's launcher reaches the hosts
over ssh, or `ds-train launch --target per-node --run`, where something else starts one process a
node. Which recipe and how many nodes are filled in here; nothing is decided when the script runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_SECONDS = 300
"""How long before the end of a Slurm job its run is asked to save."""


@dataclass(frozen=True)
class Job:
    """What a script is rendered from."""

    name: str
    recipe: str
    """Absolute path."""
    overrides: Sequence[str]
    python: str
    """The interpreter that has ds-train, at the same path on every node."""
    folder: str
    """Working folder on every node; relative paths of the recipe begin there."""
    env: dict[str, str]
    num_nodes: int
    slots: int
    """Processes of a node."""
    on_cpu: bool = False
    time: str | None = None
    partition: str | None = None
    options: Sequence[str] = field(default_factory=tuple)
    """Further options of sbatch or mpirun, one each: `--account=x`."""
    stop_seconds: int = STOP_SECONDS
    hosts: Sequence[str] = field(default_factory=tuple)
    """Names, where the script has to name them (MPI)."""

    @property
    def train(self) -> str:
        """`ds-train train RECIPE ...`"""
        return shlex.join([self.python, "-m", "ds_train", "train", self.recipe, *self.overrides])

    @property
    def per_node(self) -> str:
        """`ds-train launch RECIPE ... --target per-node --run`"""
        words = [self.python, "-m", "ds_train", "launch", self.recipe, *self.overrides]
        return shlex.join([*words, "--target", "per-node", "--run"])


def render_ssh(job: Job) -> str:
    """A script for the machine that one starts from."""
    return f"""\
{_head(job, "ssh", "run it on a machine from which ssh reaches every host of the hostfile")}
{_place(job)}
exec {job.train}
"""


def render_per_node(job: Job) -> str:
    """A script to be run once on every node, by hand or by whatever can."""
    how = f"run it once on each of {job.num_nodes} nodes, each with its own NODE_RANK"
    return f"""\
{_head(job, "per-node", how)}
#   NODE_RANK=0 MASTER_ADDR=first-node {shlex.quote(Path(job.recipe).stem)}.sh     (0 on the first)
{_place(job)}
export NNODES={job.num_nodes} MASTER_PORT="${{MASTER_PORT:-29500}}"
: "${{NODE_RANK:?which node this is, from 0}}" "${{MASTER_ADDR:?name of node 0}}"
export NODE_RANK MASTER_ADDR
exec {job.per_node}
"""


def render_mpi(job: Job) -> str:
    """A script that starts one process on each host through Open MPI's mpirun."""
    hosts = ",".join(f"{host}:1" for host in job.hosts)
    names = ["MASTER_ADDR", "MASTER_PORT", *job.env]
    words = ["mpirun", "-np", str(job.num_nodes), "--host", hosts, "--map-by", "ppr:1:node"]
    words += ["--bind-to", "none", *(word for name in names for word in ("-x", name)), *job.options]
    return f"""\
{_head(job, "mpi", "run it on a machine from which mpirun reaches every host")}
{_place(job)}
export MASTER_ADDR={shlex.quote(job.hosts[0])} MASTER_PORT="${{MASTER_PORT:-29500}}"
# one process a node: the ranks are started by the deepspeed launcher; SIGUSR1 and SIGTERM make the
# run save and end. PYTHONPATH goes along as over ssh: every node shall run the same code.
exec {shlex.join(words)} ${{PYTHONPATH:+-x PYTHONPATH}} \\
    {job.per_node}
"""


def render_slurm(job: Job) -> str:
    """A batch script: one task a node, saved and queued again when its time is nearly up."""
    lines = [
        *(f"--job-name={job.name}", f"--nodes={job.num_nodes}", "--ntasks-per-node=1"),
        *([] if job.on_cpu else [f"--gpus-per-node={job.slots}"]),
        *([f"--time={job.time}"] if job.time else []),
        *([f"--partition={job.partition}"] if job.partition else []),
        *(f"--chdir={shlex.quote(job.folder)}", "--output=slurm-%j.log", "--open-mode=append"),
        *("--requeue", f"--signal=B:USR1@{job.stop_seconds}", *job.options),
    ]
    head = "\n".join(f"#SBATCH {line}" for line in lines)
    return f"""\
#!/usr/bin/env bash
{head}
# {_title(job, "slurm")}; submit it with sbatch.
# {job.stop_seconds} s before its time is up, or after `scancel --signal=USR1 --batch JOB`, the run
# saves and ends, and the job is queued again; it then goes on from there.
{_place(job)}
stopped=0
# shellcheck disable=SC2317  # the trap calls it
ask_to_stop() {{
    stopped=1
    echo "$(date -Is) asking the run to save and end"
    kill -USR1 "$srun_pid"
}}
trap ask_to_stop USR1

# one node that fails ends the others too, instead of leaving them in a collective
srun --kill-on-bad-exit=1 --cpu-bind=none \\
    {job.per_node} &
srun_pid=$!
code=0
wait "$srun_pid" || code=$?
if ((stopped)); then
    # the signal has ended the waiting, not the run
    trap '' USR1
    code=0
    wait "$srun_pid" || code=$?
    case $code in
        # 0: saved; the others: there was no step yet to save
        0 | {128 + 10} | {128 + 15})
            echo "$(date -Is) queueing job $SLURM_JOB_ID again"
            scontrol requeue "$SLURM_JOB_ID"
            exit 0
            ;;
    esac
fi
exit "$code"
"""


def _title(job: Job, target: str) -> str:
    return f"ds-train launch {Path(job.recipe).name} --target {target}"


def _head(job: Job, target: str, how: str) -> str:
    return f"#!/usr/bin/env bash\n# {_title(job, target)}:\n# {how}."


def _place(job: Job) -> str:
    """Strict mode, the folder, and the variables of `cluster.env`."""
    lines = ["set -euo pipefail", f"cd {shlex.quote(job.folder)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.env.items()]
    return "\n".join(lines)
