"""`ds-train recipes`: the bundled recipes, to read and to copy."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "recipes",
        run,
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


def run(args: argparse.Namespace) -> int:
    import textwrap

    from ds_train.config.recipes import bundled_recipes, copy_recipe, find_recipe
    from ds_train.plan.presets import ds_configs_dir

    folder = ds_configs_dir() / "recipes"
    if args.action == "show":
        print(find_recipe(folder, args.name).path.read_text(encoding="utf-8"), end="")
    elif args.action == "copy":
        target = copy_recipe(find_recipe(folder, args.name), args.destination)
        print(f"{target}: change it, then run ds-train validate {target}")
    else:
        for recipe in bundled_recipes(folder):
            text = textwrap.fill(
                recipe.description, 96, initial_indent="    ", subsequent_indent="    "
            )
            print(f"{recipe.name}\n{text}")
    return 0
