"""What can be typed after `ds-train`: the commands, their arguments and help texts."""

from __future__ import annotations

import argparse

from ds_train import __version__
from ds_train.cli_cluster import (
    add_cluster_arguments,
    add_doctor_arguments,
    add_launch_arguments,
    add_tune_arguments,
)

_EPILOG = """\
start here:
  ds-train recipes                                 what there is to copy
  ds-train recipes copy lora_sft_messages my.yaml
  ds-train validate my.yaml                        every fault at once, without a GPU
  ds-train data my.yaml                            what is learned from
  ds-train train my.yaml

exit codes: 0 done (or stopped and saved), 2 something you gave is wrong, 1 the run failed
"""
_OVERRIDES = (
    "settings laid over the recipe, e.g. train.learning_rate=1e-4 data.train.0.path=x.jsonl"
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="ds-train",
        description="Fine-tuning of large language models on DeepSpeed, whose runs can be trusted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ds-train {__version__}")
    # the deepspeed launcher hands this to every rank; LOCAL_RANK says the same
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_validate(commands)
    _add_plan(commands)
    _add_tune(commands)
    _add_data(commands)
    _add_score(commands)
    _add_train(commands)
    _add_doctor(commands)
    _add_launch(commands)
    _add_compare(commands)
    _add_fewshot(commands)
    _add_transfer(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_export_curriculum(commands)
    _add_generate(commands)
    _add_recipes(commands)
    _add_build(commands)
    _add_quickstart(commands)
    return parser


def _count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}": must be a whole number of at least 1')
    return int(text)


def _share(text: str) -> float:
    """A number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'"{text}": must be above 0 and at most 1')
    return value


def _natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f'"{text}": must be a whole number of at least 0')
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 0, as in `0,2,4`; each once."""
    found = tuple(_natural(part) for part in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'"{text}": names a number twice')
    return found


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them; each once."""
    found = tuple(part.strip() for part in text.split(","))
    if "" in found or len(set(found)) < len(found):
        fault = "has an empty name" if "" in found else "names one twice"
        raise argparse.ArgumentTypeError(f'"{text}": {fault}; write names as in a,b')
    return found


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "validate",
        "check a recipe and list every fault, without torch or a GPU",
        "ds-train validate my.yaml train.global_batch_size=64",
    )
    _add_recipe_arguments(parser)
    parser.add_argument(
        "--ds-config", action="store_true", help="print the whole resolved DeepSpeed config"
    )
    parser.add_argument(
        "--resolved", action="store_true", help="print the whole recipe with its defaults"
    )


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "plan",
        "memory, communication, time and disk of a recipe on a cluster, and what to change to fit",
        "ds-train plan my.yaml --cluster 8xh100\n"
        "ds-train plan my.yaml --nodes 2 --gpus 8 --gpu-memory 80GiB --intra 900GB/s "
        "--inter 50GB/s\n"
        "ds-train plan my.yaml --cluster 8xh100 engine.preset=zero3 --json plan.json",
    )
    _add_recipe_arguments(parser)
    add_cluster_arguments(parser, _count)
    parser.add_argument(
        "--utilisation",
        type=_share,
        metavar="0.4",
        help="share of the peak that arithmetic reaches (default 0.4)",
    )
    parser.add_argument("--json", metavar="FILE", help="write every number to this file")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train a few layers on one device of this machine, and compare with the plan",
    )


def _add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "tune",
        "find the quickest stage, micro-batch, checkpointing and buckets by short real runs",
        "ds-train tune my.yaml                       writes my.tuned.yaml\n"
        "ds-train tune my.yaml --in-place --trials 20\n"
        "ds-train tune my.yaml --cluster 8xh100 --json tune.json",
    )
    _add_recipe_arguments(parser)
    add_tune_arguments(parser, _count)
    add_cluster_arguments(parser, _count)
    parser.add_argument("--json", metavar="FILE", help="write every number to this file")


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "data",
        "show what the data becomes: the audit and rows with what is learned from",
        "ds-train data my.yaml\nds-train data my.yaml --step 1234      exactly what it trains on",
    )
    _add_recipe_arguments(parser)
    parser.add_argument("--step", type=int, help="show the rows of this step (the first is 1)")
    parser.add_argument("--rows", type=_count, default=3, help="rows to show (default 3)")
    parser.add_argument("--no-color", action="store_true", help="mark with brackets, not colours")


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "score",
        "measure how hard each training sample is, once, for a curriculum",
        "ds-train score my.yaml\n"
        "ds-train score my.yaml curriculum.metric=[length,rarity_mean]\n"
        "ds-train score my.yaml curriculum.metric=ifd curriculum.metric_model=./small",
    )
    _add_recipe_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print numbers and examples as JSON")


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "train",
        "check, tokenise and train through the deepspeed launcher; continue what was begun",
        "ds-train train my.yaml\n"
        "ds-train train my.yaml cluster.processes_per_node=8 -- --bind_cores_to_rank\n"
        "deepspeed --num_gpus 8 --module ds_train train my.yaml      the same by hand",
    )
    _add_recipe_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the launcher's command and stop"
    )


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "doctor",
        "check all hosts at once before a run: software, GPUs, files, clocks, network, all-reduce",
        "ds-train doctor my.yaml --json doctor.json\n"
        "ds-train doctor --hostfile launch/hostfile        without a recipe\n"
        "ds-train doctor                                   this machine alone",
    )
    parser.add_argument("recipe", nargs="?", help="the YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )
    add_doctor_arguments(parser)


def _add_launch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "launch",
        "write what a cluster reads to start a recipe, or start it: ssh, Slurm, Kubernetes, MPI",
        "ds-train launch my.yaml --target slurm --nodes 4 --time 12:00:00 --output my.sbatch\n"
        "ds-train launch my.yaml --target per-node --run     on every node: srun, a pod",
    )
    _add_recipe_arguments(parser)
    add_launch_arguments(parser, _count)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "compare",
        "train variants of a recipe with several seeds each, and say what differs beyond chance",
        "ds-train compare my.yaml                       what its compare section names\n"
        "ds-train compare my.yaml compare.seeds=[0,1,2,3,4]\n"
        "ds-train compare --digits runs/digits          a curriculum on a task of our own making",
    )
    parser.add_argument("recipe", nargs="?", help="the YAML file with a compare section")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )
    parser.add_argument(
        "--digits", metavar="FOLDER", help="write the bundled task there and compare on it"
    )


def _add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "transfer",
        "measure what pretraining is worth: warm start against random weights, adapters, ladders",
        "ds-train transfer my.yaml                      what its transfer section names\n"
        "ds-train transfer my.yaml transfer.seeds=[0,1,2,3,4]",
    )
    _add_recipe_arguments(parser)


def _add_fewshot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "fewshot",
        "train a recipe, or the arms of its compare section, on k examples of each class",
        "ds-train fewshot my.yaml --k 4,16,64 --seeds 5\n"
        "ds-train fewshot my.yaml --k 16 --seeds 13,21,42,87,100\n"
        "ds-train fewshot --demo runs/demo              on a task of our own making, from nothing",
    )
    parser.add_argument("recipe", nargs="?", help="the YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )
    parser.add_argument(
        "--demo", metavar="FOLDER", help="write the bundled task there and show what is gained"
    )
    parser.add_argument(
        "--k", default="4,16,64", metavar="K,...", help="examples of each class (default 4,16,64)"
    )
    parser.add_argument(
        "--seeds", metavar="N", help="how many, or which: 13,21,42; those of the recipe if left out"
    )


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="chosen",
        help="of a run: latest (default; with early stopping best), best, or step-50",
    )
    parser.add_argument(
        "--base", action="store_true", help="of a run: the base model it began from"
    )
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], help="arithmetic")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one")


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        "measure a run, an adapter or a model: its loss on data or text, or lm_eval's tasks",
        "ds-train evaluate runs/first --checkpoint best\n"
        "ds-train evaluate runs/first/merged --recipe my.yaml\n"
        "ds-train evaluate runs/first --tasks arc_easy,piqa --shots 0,5 --output numbers.json\n"
        "ds-train evaluate my-model --tasks my_task --task-path my_tasks --processes 8\n"
        "ds-train evaluate my-model --tasks sst2 --shots 4 --demonstrations bm25 "
        "--calibration contextual\n"
        "ds-train evaluate runs/first --text book.txt letters.txt",
    )
    parser.add_argument("target", help="run folder, adapter folder, model folder or hub name")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )
    _add_target_arguments(parser)
    parser.add_argument("--recipe", help="whose data to use; the run's own when left out")
    parser.add_argument("--split", choices=["validation", "dev", "train"], default="validation")
    parser.add_argument(
        "--max-rows",
        type=_count,
        dest="max_samples",
        metavar="N",
        help="only the first so many samples",
    )
    parser.add_argument("--batch-size", type=_count, help="samples at once")
    parser.add_argument("--output", help="write the numbers to this JSON file")
    _add_task_arguments(parser)


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_argument_group("evaluation tasks (needs the package lm_eval)")
    tasks.add_argument(
        "--tasks",
        type=_names,
        metavar="a,b",
        help="names of tasks, groups or tags, patterns such as blimp_*, or YAML files",
    )
    tasks.add_argument("--task-path", metavar="DIR", help="a folder of your own task YAML files")
    tasks.add_argument(
        "--shots",
        type=_numbers,
        default=(),
        metavar="0,2,4",
        help="numbers of demonstrations; each task's own when left out",
    )
    tasks.add_argument(
        "--seeds",
        type=_numbers,
        default=(1234,),
        metavar="1,2,3",
        help="of the demonstrations (default 1234)",
    )
    tasks.add_argument(
        "--demonstrations",
        metavar="NAME",
        help="random, balanced, bm25, knn (by the model's own hidden states), fixed or "
        "fixed:3,17,42; each task's own way when left out",
    )
    tasks.add_argument(
        "--draw",
        metavar="document|lm_eval",
        help="draw from a hash of seed and document (default), or as lm_eval does",
    )
    tasks.add_argument(
        "--calibration",
        metavar="NAME",
        help="none, contextual, batch, pmi, or several of them: a,b",
    )
    tasks.add_argument(
        "--normalise",
        metavar="NAME",
        help="none, tokens, chars, bytes, pmi, or several of them: a,b",
    )
    tasks.add_argument(
        "--samples", action="store_true", help="with --output: every document's answers too"
    )
    text = parser.add_argument_group("any text")
    text.add_argument(
        "--text", nargs="+", metavar="FILE", help="bits per byte and perplexity of these files"
    )
    text.add_argument(
        "--max-length", type=_count, metavar="N", help="tokens of a window; the model's if left out"
    )
    shared = parser.add_argument_group("evaluation tasks and text")
    shared.add_argument(
        "--batch-tokens", type=_count, metavar="N", help="tokens of a batch, padding included"
    )
    shared.add_argument(
        "--processes", type=_count, metavar="N", help="of this machine, one for each GPU"
    )
    shared.add_argument(
        "--zero",
        type=int,
        choices=[0, 3],
        default=0,
        help="3: each process holds a part of the model; 0 (default): all of it",
    )


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "export",
        "write a run's adapter, or one merged model folder, from files alone",
        "ds-train export runs/first --merge --output my-model\n"
        "ds-train export runs/first --merge --average ema:0.2:6",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--merge", action="store_true", help="one Hugging Face model folder")
    parser.add_argument(
        "--checkpoint",
        default="chosen",
        help="latest (default; with early stopping best), best or step-50",
    )
    parser.add_argument(
        "--average",
        metavar="last:N | ema:A[:N]",
        help="average the models of the last N checkpoints; A is the newest one's weight",
    )
    parser.add_argument(
        "--output", help="folder to write; RUN/merged, RUN/averaged or RUN/adapter if left out"
    )
    parser.add_argument(
        "--dtype", choices=["bf16", "fp16", "fp32"], help="of the weights; the base's if left out"
    )


def _add_export_curriculum(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "export-curriculum",
        "write a recipe's curriculum for DeepSpeed's own sampler, for scripts of your own",
        "ds-train export-curriculum my.yaml --output my_curriculum",
    )
    _add_recipe_arguments(parser)
    parser.add_argument("--output", required=True, help="folder to write, new or empty")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "generate",
        "complete a prompt with a run, an adapter or a model",
        'ds-train generate runs/first "Once upon a time"\n'
        'ds-train generate runs/first --chat "Why is the sky blue?"',
    )
    parser.add_argument("target", help="run folder, adapter folder, model folder or hub name")
    parser.add_argument("prompt", help="the text to go on from; - reads it from stdin")
    _add_target_arguments(parser)
    parser.add_argument("--chat", action="store_true", help="put the prompt into a user message")
    parser.add_argument("--system", help="with --chat: the system message")
    parser.add_argument("--max-new-tokens", type=_count, default=256)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token"
    )
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)


def _add_recipes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "recipes",
        "list the bundled recipes, show or copy one",
        "ds-train recipes copy lora_sft_messages my.yaml",
    )
    actions = parser.add_subparsers(dest="action", metavar="list | show NAME | copy NAME [FILE]")
    actions.add_parser("list", help="names and what they are for (the default)")
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("name")
    copy = actions.add_parser("copy", help="copy a recipe, never over an existing file")
    copy.add_argument("name")
    copy.add_argument("destination", nargs="?", help="file or folder; here when left out")


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "build",
        "compile the kernels of the fused loss ahead of their first use",
        "ds-train build\n"
        "ds-train build --kind cuda --arch sm_80 sm_90      no GPU is needed for that",
    )
    parser.add_argument(
        "--kind", choices=["cpu", "cuda"], help="cpu, and cuda where there is a GPU, if left out"
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        default=[],
        metavar="sm_90",
        help="of the GPUs that it is for; this machine's if left out",
    )


def _add_quickstart(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "quickstart",
        "the main job on an embedded tiny model: pretrain, LoRA, export, compare; no download",
        "ds-train quickstart",
    )
    parser.add_argument("--output-dir", default="runs/quickstart", help="default runs/quickstart")
    parser.add_argument("--num-processes", type=_count, help="one per GPU, or 2 on the CPU")
