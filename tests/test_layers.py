"""The architecture as a table: imports go downward only, and the light layers stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ds_train"
HEAVY = {"torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "bitsandbytes"}

LAYERS: dict[str, int] = {
    # 0: standard library only
    "ds_train": 0,
    "ds_train.errors": 0,
    "ds_train.units": 0,
    "ds_train.paths": 0,
    "ds_train.locks": 0,
    # 1: pydantic and yaml
    "ds_train.config": 1,
    # 2: plain logic; never torch
    "ds_train.plan": 2,
    "ds_train.launch": 2,
    "ds_train.report": 2,
    "ds_train.doctor": 2,
    "ds_train.doctor.allreduce": 3,
    "ds_train.data": 2,
    "ds_train.curriculum": 2,
    "ds_train.fewshot": 2,
    # 3: torch, transformers, peft
    "ds_train.data.batch": 3,
    "ds_train.data.candidate_batch": 3,
    "ds_train.data.loader": 3,
    "ds_train.data.slice": 3,
    "ds_train.ops": 3,
    "ds_train.model": 3,
    # 4: deepspeed, in `engine`
    "ds_train.engine": 4,
    "ds_train.engine.piece": 3,
    "ds_train.checkpoint.background": 4,
    "ds_train.checkpoint.checksums": 4,
    "ds_train.checkpoint.folder": 4,
    "ds_train.checkpoint.pieces": 4,
    "ds_train.checkpoint.rehearse": 4,
    "ds_train.checkpoint.shards": 4,
    "ds_train.checkpoint.state": 4,
    # 5
    "ds_train.train": 5,
    # 6
    "ds_train.checkpoint": 6,
    "ds_train.evaluate.content_free": 3,
    "ds_train.evaluate.embed": 5,
    "ds_train.evaluate.generation": 5,
    "ds_train.evaluate.generation_settings": 3,
    "ds_train.evaluate.ranking": 5,
    "ds_train.evaluate.prefix_rows": 2,
    "ds_train.evaluate.requests": 2,
    "ds_train.evaluate.sharing": 3,
    "ds_train.evaluate.scorer": 5,
    "ds_train.evaluate.task_files": 2,
    "ds_train.evaluate.task_list": 5,
    "ds_train.evaluate.task_model": 5,
    "ds_train.evaluate.task_options": 5,
    "ds_train.evaluate.task_scores": 3,
    "ds_train.evaluate.task_shots": 3,
    "ds_train.evaluate.task_templates": 2,
    "ds_train.evaluate.tasks": 5,
    "ds_train.evaluate.text": 3,
    "ds_train.evaluate": 6,
    "ds_train.quickstart": 6,
    "ds_train.score": 6,
    "ds_train.compare": 6,
    "ds_train.transfer": 6,
    "ds_train.tune": 6,
    # 7
    "ds_train.cli": 7,
    "ds_train.commands": 7,
    "ds_train.__main__": 7,
}
"""The longest name that a module's name begins with decides."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("ds_train", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layer(name: str) -> int:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        # the package itself stands for nothing but its own __init__
        if prefix in LAYERS and (prefix != "ds_train" or name == "ds_train"):
            return LAYERS[prefix]
    raise AssertionError(f"{name} has no layer; add it to LAYERS")


@cache
def imports(path: Path, *, inside_functions: bool) -> frozenset[str]:
    """Names of modules imported by a file; those for type checkers only do not count."""
    found: set[str] = set()

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import) and in_function == inside_functions:
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and in_function == inside_functions:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return frozenset(found)


def ours(names: Iterable[str]) -> set[str]:
    return {name for name in names if name in modules()}


@cache
def reached(name: str) -> frozenset[str]:
    """Everything that importing a module imports, itself and other packages included."""
    seen, waiting = {name}, [name]
    while waiting:
        current = waiting.pop()
        if current not in modules():
            continue
        for found in imports(modules()[current], inside_functions=False) - seen:
            seen.add(found)
            waiting.append(found)
    return frozenset(seen)


@pytest.mark.parametrize("name", modules())
def test_imports_go_downward(name: str) -> None:
    for target in ours(imports(modules()[name], inside_functions=False)):
        assert layer(target) <= layer(name), f"{name} imports {target}, which is above it"


def test_no_cycles() -> None:
    for name, path in modules().items():
        for target in ours(imports(path, inside_functions=False)) - {name}:
            assert name not in reached(target), f"{name} and {target} import each other"


@pytest.mark.parametrize("name", [name for name in modules() if layer(name) <= 2])
def test_light_layers_reach_nothing_heavy(name: str) -> None:
    heavy = {found for found in reached(name) if found.split(".")[0] in HEAVY}
    assert not heavy, f"{name} reaches {sorted(heavy)}"


def test_layer_0_needs_only_the_standard_library() -> None:
    for name in modules():
        if layer(name) == 0:
            outside = {found.split(".")[0] for found in reached(name)} & {"pydantic", "yaml"}
            assert not outside, f"{name} imports {outside}"


def test_deepspeed_is_imported_in_one_folder() -> None:
    users = [
        name
        for name, path in modules().items()
        if any(
            found.split(".")[0] == "deepspeed"
            for inside in (True, False)
            for found in imports(path, inside_functions=inside)
        )
    ]
    assert {name.rpartition(".")[0] for name in users} == {"ds_train.engine"}


def test_the_command_line_imports_nothing_before_a_command_is_chosen() -> None:
    for name in ("ds_train.cli", *(name for name in modules() if ".commands" in name)):
        outside = {
            found
            for found in ours(imports(modules()[name], inside_functions=False))
            if not found.startswith("ds_train.commands")
        }
        assert outside <= {"ds_train", "ds_train.errors"}, f"{name} imports {outside}"
