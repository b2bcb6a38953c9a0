"""`ds-train launch`: write the file of a target, or start the run through it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from ds_train.config.load import load_recipe
from ds_train.data.workers import num_cores
from ds_train.launch.per_node import (
    RANK_VARIABLES,
    check_cluster,
    check_cores,
    node_hostfile,
    per_node_arguments,
    slots_here,
)
from ds_train.launch.place import find_place
from ds_train.launch.target import launch_faults, render_target, run_script, write_output
from ds_train.plan.launch import plan_launch
from ds_train.train.one_node import train_on_one_node
from ds_train.train.restart import train_to_the_end


def launch_command(args: argparse.Namespace) -> int:
    """The exit code. Raises ConfigError about recipe or options, RunFailed after a start."""
    launch_faults(args.target, args.run, args.launcher_args)
    if args.run and args.target == "per-node":
        return _run_per_node(args)
    text = render_target(args)
    if args.run and args.target == "ssh":
        given = (args.recipe, args.overrides, args.launcher_args)
        return train_to_the_end(plan_launch(*given), *given)
    if args.output is not None:
        write_output(text, args.output, executable=args.target != "kubernetes")
        print(args.output)
        if args.run:
            return run_script(args.target, Path(args.output))
    elif args.run:
        with tempfile.TemporaryDirectory(prefix="ds-train-launch-") as folder:
            path = Path(folder) / f"{args.target}.sh"
            path.write_text(text, encoding="utf-8")
            return run_script(args.target, path)
    else:
        print(text, end="")
    return 0


def _run_per_node(args: argparse.Namespace) -> int:
    """The launcher of this node, told by whoever started us which node that is."""
    place = find_place(os.environ)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    cluster = load_recipe(args.recipe, args.overrides).cluster
    check_cluster(cluster)
    print(
        f"node {place.node_rank} of {place.num_nodes}, said by {place.source}; rank 0 is at "
        f"{place.master_addr}:{place.master_port}",
        flush=True,
    )
    with node_hostfile(place.num_nodes, slots_here(cluster)) as hostfile:
        arguments = per_node_arguments(place, hostfile)
        launch = plan_launch(args.recipe, args.overrides, arguments)
        if not launch.plan.world.on_cpu:
            check_cores(num_cores(), slots_here(cluster))
        return train_on_one_node(launch, place.node_rank, args.tell_stop)
