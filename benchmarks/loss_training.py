"""A whole training with the fused loss and with the reference: tokens per second, peak memory.

LoRA and full fine-tuning of random Llamas through `ds-train train`, two processes on a CPU, bf16,
with `model.loss_implementation` of either kind. Runs are repeated in changing order, and the ratio
is the median over repetitions of the ratio within one. Everything comes from the runs' own records.

usage: python benchmarks/loss_training.py [--output benchmarks/results/loss_training.md] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import yaml
from loss_peers import chosen
from loss_report import machine, machine_line, mebibytes, table, times, write
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ds_train.model.tiny import tiny_model
from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records

VOCAB, QUICK_VOCAB = 49152, 1024
SPECIAL = ("<unk>", "<s>", "</s>")
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
SIZES = {"4 layers of 256": SMALL, "SmolLM-135M's shape": SMOL}
METHODS = {"lora": {"method": "lora", "r": 8}, "full": {"method": "full"}}
IMPLEMENTATIONS = ("reference", "auto")
_ROWS, _WORDS, _LENGTH = 400, 240, 512


@dataclass(frozen=True)
class Outcome:
    """What the records of one run say; its first step, which warms up, is left out."""

    implementation: str
    tokens_per_second: float
    peak_memory_bytes: int
    last_loss: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; JSON is written beside it")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it all run?")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats, args.sizes = 2, 1, args.sizes[:1]
    return args


def write_model(folder: Path, sizes: dict[str, int], vocab: int) -> None:
    """A random Llama in bf16, and a tokenizer with as many words as the model has."""
    settings: dict[str, Any] = {
        **sizes,
        "vocab_size": vocab,
        "max_position_embeddings": _LENGTH,
        "tie_word_embeddings": False,
    }
    model: Any = tiny_model("llama", **settings)
    model.to(torch.bfloat16).save_pretrained(str(folder))
    words = {word: place for place, word in enumerate([*SPECIAL, *vocabulary(vocab)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(str(folder))


def vocabulary(vocab: int) -> list[str]:
    """The words of the tokenizer."""
    return [f"w{number}" for number in range(vocab - len(SPECIAL))]


def write_rows(path: Path, vocab: int) -> None:
    """Prompts and completions of equal length, so that half of the tokens are supervised."""
    draw, words = random.Random(0), vocabulary(vocab)

    def text() -> str:
        return " ".join(draw.choices(words, k=_WORDS))

    rows = [{"prompt": text(), "completion": " " + text()} for _ in range(_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder: Path, run: Path, method: str, implementation: str, steps: int) -> dict[str, Any]:
    """One training."""
    return {
        "output_dir": str(run),
        "model": {
            "name_or_path": str(folder / "model"),
            "dtype": "bf16",
            "loss_implementation": implementation,
        },
        "adapter": METHODS[method],
        "data": {
            "train": [{"path": str(folder / "rows.jsonl"), "format": "prompt_completion"}],
            "max_length": _LENGTH,
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
            "max_steps": steps,
            "learning_rate": 1e-4,
        },
        "engine": {"preset": "zero2"},
        "cluster": {"processes_per_node": 2},
        "report": {"progress": "none"},
    }


def train(folder: Path, name: str, method: str, implementation: str, steps: int) -> Outcome:
    """Run it, and read its records."""
    run, file = folder / "runs" / name, folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe(folder, run, method, implementation, steps)))
    command = [sys.executable, "-m", "ds_train", "train", str(file)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    records = [r for r in read_records(RunPaths(run).metrics) if isinstance(r, StepRecord)]
    later = records[1:]
    return Outcome(
        implementation,
        sum(record.tokens for record in later) / sum(record.seconds for record in later),
        max(record.peak_memory_bytes for record in records),
        records[-1].loss,
    )


def repeated(folder: Path, method: str, steps: int, repeats: int) -> list[dict[str, Outcome]]:
    """Both implementations, as often as asked for; every other time in the other order."""
    results = []
    for number in range(repeats):
        order = IMPLEMENTATIONS if number % 2 == 0 else IMPLEMENTATIONS[::-1]
        results.append(
            {i: train(folder, f"{method}-{number}-{i}", method, i, steps) for i in order}
        )
    return results


def row(size: str, method: str, results: list[dict[str, Outcome]]) -> list[str]:
    """A line of the table."""
    cells = [size, method]
    for name in IMPLEMENTATIONS:
        cells.append(f"{statistics.median(r[name].tokens_per_second for r in results):,.0f}")
    ratios = [r["auto"].tokens_per_second / r["reference"].tokens_per_second for r in results]
    cells.append(times(statistics.median(ratios)))
    for name in IMPLEMENTATIONS:
        cells.append(mebibytes(max(r[name].peak_memory_bytes for r in results)))
    return [*cells, *(f"{results[0][name].last_loss:.4f}" for name in IMPLEMENTATIONS)]


def main() -> None:
    """Run everything and print the table."""
    args, began = arguments(), time.time()
    vocab = QUICK_VOCAB if args.quick else VOCAB
    lines, values = [], []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "model", SIZES[size], vocab)
            write_rows(folder / "rows.jsonl", vocab)
            for method in args.methods:
                results = repeated(folder, method, args.steps, args.repeats)
                lines.append(row(size, method, results))
                outcomes = [{k: asdict(v) for k, v in r.items()} for r in results]
                values.append({"size": size, "method": method, "runs": outcomes})
    facts = machine(torch.device("cpu"))
    columns = ["model", "trains", "tokens/s, reference", "tokens/s, auto", "auto by reference"]
    columns += ["peak MiB, reference", "peak MiB, auto", "last loss, reference", "last loss, auto"]
    text = (
        f"# Training with the fused loss\n\n{machine_line(facts)}\n\n"
        f"`auto` takes: {chosen(torch.device('cpu'), 'bf16')}. Two processes of one thread each, "
        f"ZeRO-2, bf16, vocabulary {vocab}, 8 rows of {_LENGTH} tokens a step, half of them "
        f"supervised, {args.steps} steps, {args.repeats} repetitions, "
        f"{time.time() - began:.0f} s. Peak memory is the resident set of the larger process, "
        "libraries and model included.\n\n"
        f"{table(columns, lines)}\n"
    )
    print(text)
    if args.output is not None:
        write(args.output, text, {"machine": facts, "trainings": values})


if __name__ == "__main__":
    main()
