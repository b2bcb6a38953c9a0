"""`ds-train generate`: a prompt completed by a run, an adapter or a model."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_target_arguments
from ds_train.commands.values import count


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "generate",
        run,
        "complete a prompt with a run, an adapter or a model",
        'ds-train generate runs/first "Once upon a time"\n'
        'ds-train generate runs/first --chat "Why is the sky blue?"',
    )
    parser.add_argument("target", help="run folder, adapter folder, model folder or hub name")
    parser.add_argument("prompt", help="the text to go on from; - reads it from stdin")
    add_target_arguments(parser)
    parser.add_argument("--chat", action="store_true", help="put the prompt into a user message")
    parser.add_argument("--system", help="with --chat: the system message")
    parser.add_argument("--max-new-tokens", type=count, default=256)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token"
    )
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from ds_train.evaluate.generate import generate_command

    generate_command(
        args.target,
        args.prompt,
        chat=args.chat,
        system=args.system,
        checkpoint=args.checkpoint,
        base=args.base,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        dtype=args.dtype,
        device=args.device,
    )
    return 0
