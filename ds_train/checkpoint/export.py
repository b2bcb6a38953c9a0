"""`ds-train export`: from a run folder, files alone, to what other tools load.

Without --merge an adapter stays an adapter: a folder for plain PEFT. With it, and for full and
partial fine-tuning always, the result is a Hugging Face model folder. It is written tensor by
tensor in the base's own file split, so a model of any size needs the memory of its largest tensor.
With --average it holds the average of several checkpoints (`average.py`).
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ds_train.checkpoint.average import (
    Average,
    average_layouts,
    averaged_checkpoints,
    parse_average,
)
from ds_train.checkpoint.checksums import refuse_damaged
from ds_train.checkpoint.folder import find_checkpoint
from ds_train.checkpoint.layout import WEIGHT_METHODS, Layout, cast_layout, plan_layout
from ds_train.checkpoint.merge import skeleton
from ds_train.checkpoint.shards import write_shard
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.data.encode import open_tokenizer
from ds_train.data.templates import choose_template
from ds_train.errors import CheckpointError, quoted
from ds_train.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ds_train.model.check import load_architecture
from ds_train.model.files import find_file
from ds_train.model.load import DTYPES
from ds_train.paths import RunPaths
from ds_train.plan.headers import INDEX, SINGLE
from ds_train.units import format_bytes

Say = Callable[[str], Any]


def export_command(
    run: str | Path,
    *,
    checkpoint: str = "chosen",
    merge: bool = False,
    average: str | None = None,
    output: str | Path | None = None,
    dtype: str | None = None,
    say: Say = print,
) -> Path:
    """Export a checkpoint of a run; returns the folder written.

    Args:
        checkpoint: `latest`, `best`, `step-50`; `chosen`: the best under early stopping, else the
            latest.
        merge: one model folder rather than an adapter folder.
        average: `last:6`, `ema:0.2` or `ema:0.2:6`: the average of the last checkpoints' models.
        output: a folder that is empty or not there; RUN/merged or RUN/adapter when left out.
        dtype: bf16, fp16 or fp32 for floating-point weights; the base's when left out.

    Raises:
        CheckpointError: nothing to export, no place for it, or an adapter that does not fit.
    """
    run = Path(run)
    averaging = None if average is None else parse_average(average)
    step = find_checkpoint(run, checkpoint)
    config = load_recipe(RunPaths(run).recipe)
    whole = merge or config.adapter.method in WEIGHT_METHODS
    steps = [step]
    if averaging is not None:
        _refuse_average(averaging, config, whole, checkpoint)
        steps = averaged_checkpoints(run, averaging, config.checkpoint.keep)
    weights = averaging.weights(len(steps)) if averaging is not None else [1.0]
    name = ("averaged" if averaging is not None else "merged") if whole else "adapter"
    target = Path(output) if output is not None else run / name
    if dtype is not None and not whole:
        raise CheckpointError(
            f"--dtype {dtype}: an adapter keeps the precision it was trained in; --dtype goes with "
            "--merge."
        )
    _refuse_occupied(target)
    for one in steps:
        refuse_damaged(one)
    with _published(target) as folder:
        if whole:
            _write_model(config, steps, weights, folder, dtype, say)
        else:
            _write_adapter(config, step, folder)
        _write_tokenizer(config, folder)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    kind = "model" if whole else "adapter"
    what = step.name if averaging is None else f"the average of {_shares(steps, weights)}"
    say(f"export: {kind} of {what} in {target} ({format_bytes(size)})")
    return target


def _refuse_average(average: Average, config: RunConfig, whole: bool, checkpoint: str) -> None:
    if checkpoint not in ("latest", "chosen"):
        raise CheckpointError(
            f"--average {average.text} with --checkpoint {checkpoint}: the last checkpoints are "
            "averaged; leave --checkpoint out."
        )
    if not whole:
        raise CheckpointError(
            f"--average {average.text}: adapter.method = {config.adapter.method}, and the mean of "
            "merged weights is no adapter any more (a mean of products is not the product of "
            "means); add --merge."
        )


def _shares(steps: list[Path], weights: list[float]) -> str:
    """`step-10 (0.5), step-20 (0.5)`."""
    return ", ".join(f"{s.name} ({w:.3g})" for s, w in zip(steps, weights, strict=True))


def _refuse_occupied(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(
            f"--output {target}: already there and not empty, and nothing is overwritten. Remove "
            "it or choose another folder."
        )


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all went well, else vanishes."""
    folder = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir(parents=True)
        yield folder
        if target.is_dir():
            target.rmdir()  # empty: checked before
        folder.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"--output {target}: {error.strerror or error}. Make room there, or choose another "
            "folder with --output."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_adapter(config: RunConfig, step: Path, folder: Path) -> None:
    settings = json.loads((step / ADAPTER_CONFIG).read_text())
    base = Path(config.model.name_or_path)
    # A relative path would point elsewhere from another working folder; hub names stay.
    settings["base_model_name_or_path"] = str(base.resolve() if base.is_dir() else base)
    settings["revision"] = config.model.revision
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(step / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)


def _write_tokenizer(config: RunConfig, folder: Path) -> None:
    tokenizer = open_tokenizer(config.model)
    # A template that the recipe chose is part of what was learned.
    if config.data.chat_template is not None:
        template = choose_template(config.data.chat_template, {}, tokenizer)
        tokenizer.chat_template = template.text if template is not None else None
    tokenizer.save_pretrained(str(folder))


def _write_model(
    config: RunConfig,
    steps: list[Path],
    weights: list[float],
    folder: Path,
    dtype: str | None,
    say: Say,
) -> None:
    architecture = load_architecture(config.model)
    if quantization := getattr(architecture, "quantization_config", None):
        raise CheckpointError(
            f"model.name_or_path = {quoted(config.model.name_or_path)} holds quantised weights "
            f"({quantization.get('quant_method', 'unknown')}), into which nothing can be merged. "
            "Export without --merge, or train from the original weights (model.quantization)."
        )
    layouts = [
        # an adapter alters its skeleton, so each checkpoint has its own
        plan_layout(config, step, skeleton(architecture, config.model.trust_remote_code))
        for step in steps
    ]
    layout = average_layouts(layouts, weights) if len(layouts) > 1 else layouts[0]
    if dtype is not None:
        layout = cast_layout(layout, DTYPES[dtype])
    free = shutil.disk_usage(folder).free
    if layout.num_bytes > free:
        raise CheckpointError(
            f"--output: the model takes {format_bytes(layout.num_bytes)}, the disk has "
            f"{format_bytes(free)} free. Make room, or choose another folder with --output."
        )
    for name, specs in layout.files.items():
        write_shard(folder / name, specs, layout.make)
    if len(layout.files) > 1 or SINGLE not in layout.files:
        _write_index(layout, folder)
    _write_config(config, architecture, layout, folder)
    say(f"export: {len(layout.files)} weight file(s) as {str(layout.dtype).removeprefix('torch.')}")
    if layout.untied:
        say("export: the adapter parted the tied embedding and output layer; both are written")


def _write_index(layout: Layout, folder: Path) -> None:
    weight_map = {spec.key: name for name, specs in layout.files.items() for spec in specs}
    index = {"metadata": {"total_size": layout.num_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(config: RunConfig, architecture: Any, layout: Layout, folder: Path) -> None:
    """config.json of the base with what the export changed, and the other files it came with."""
    name, revision = config.model.name_or_path, config.model.revision
    source = find_file(name, "config.json", revision)
    if config.model.init == "random" or source is None:
        settings = architecture.to_diff_dict()
    else:
        settings = json.loads(source.read_text())
    settings.pop("torch_dtype", None)
    settings["dtype"] = str(layout.dtype).removeprefix("torch.")
    if layout.untied:
        for part in (settings, settings.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if generation := find_file(name, "generation_config.json", revision):
        shutil.copyfile(generation, folder / generation.name)
    if config.model.trust_remote_code and Path(name).is_dir():
        for code in Path(name).glob("*.py"):
            shutil.copyfile(code, folder / code.name)
