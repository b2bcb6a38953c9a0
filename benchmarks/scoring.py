"""How fast difficulties are computed that need no model: megabytes of text per second and core.

The training questions and answers of GSM8K, tokenised with stories260K's tokenizer, stand 50 times
in a store (200 MB of text); metrics of the text are computed on a tenth of it, and what is read
from the source rows on these rows once. Each metric is computed in one process and, where that is
offered, in one per core. Seconds are those of a clock; CPU seconds those that this process and its
workers were given, their start included, which says more on a machine that does other work too. Of
three rounds the one with the fewest CPU seconds counts.

usage: python benchmarks/scoring.py [RESULT.md]      (needs the shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.curriculum.metrics import tokens
from ds_train.curriculum.metrics.rows import row_difficulty
from ds_train.curriculum.metrics.spec import MetricSpec
from ds_train.curriculum.metrics.texts import TextDecoder, text_difficulty
from ds_train.curriculum.metrics.tokens import token_difficulty
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import prepare_data
from ds_train.data.store import TokenStore
from ds_train.data.store_writer import SampleChunk, StoreWriter
from ds_train.data.workers import num_cores

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
COPIES = 50
ROUNDS = 3


def recipe(folder: Path) -> RunConfig:
    """GSM8K, each row one sample, with the number of its solution's lines as a column."""
    rows = [json.loads(line) for line in (SHARED / "data/gsm8k/train.jsonl").open()]
    for row in rows:
        row["steps"] = row["answer"].count("\n")
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own_difficulty.py").write_text("def lines(row):\n    return row['steps']\n")
    sys.path.insert(0, str(folder))
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(SHARED / "models" / "stories260K" / "hf")},
            "data": {
                "train": [{"path": str(path)}],
                "max_length": 512,
                "cache_dir": str(folder / "cache"),
            },
            "train": {"max_steps": 1},
        }
    )


def repeated(store: TokenStore, folder: Path) -> TokenStore:
    """The samples of a store, COPIES times over."""
    chosen = range(store.num_samples)
    chunk = SampleChunk.of(
        [store.tokens(index) for index in chosen],
        [store.mask(index).copy() for index in chosen],
        [np.zeros(len(store.tokens(index)), np.int32) for index in chosen],  # no metric reads them
        store.sources.tolist(),
        store.ordinals.tolist(),
    )
    with StoreWriter(folder / "repeated", 512) as writer:
        for _ in range(COPIES):
            writer.append(chunk)
    return TokenStore.open(folder / "repeated")


def cpu_seconds() -> float:
    """CPU time of this process and of its workers that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def measure(compute: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, CPU seconds) of the round with the fewest CPU seconds."""
    rounds = []
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), cpu_seconds()
        compute()
        rounds.append((time.perf_counter() - began, cpu_seconds() - cpu))
    return min(rounds, key=lambda one: one[1])


def text_megabytes(store: TokenStore, decoder: TextDecoder) -> float:
    """UTF-8 text of all samples."""
    texts = decoder.decode([store.tokens(index).tolist() for index in range(store.num_samples)])
    return sum(len(text.encode()) for text in texts) / 1e6


def main() -> None:
    """All metrics, as a Markdown table."""
    tokens.FEW_TOKENS = 1  # processes where they are asked for, also if they don't pay
    text = "\n".join([*head(), *measure_all()]) + "\n"
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


def measure_all() -> Iterator[str]:
    """One line for each metric and number of processes."""
    with tempfile.TemporaryDirectory() as name:
        config = recipe(Path(name))
        once = prepare_data(config, say=lambda text: None).train
        many = repeated(once, Path(name))
        tenth = many.select(np.arange(many.num_samples // 10))
        size = text_megabytes(once, TextDecoder.of(open_tokenizer(config.model)))
        both = (1, num_cores())
        for kind in ("length", "target_length", "rarity", "rarity_mean"):
            for workers in both if kind.startswith("rarity") else (1,):
                work = partial(token_difficulty, kind, many, workers)
                yield line(kind, workers, size * COPIES, measure(work))
        for kind in ("compression", "readability"):
            for workers in both:
                work = partial(text_difficulty, kind, tenth, config.model, workers)
                yield line(kind, workers, size * COPIES / 10, measure(work))
        for spec in (MetricSpec("column", "steps"), MetricSpec("python", "own_difficulty:lines")):
            work = partial(row_difficulty, spec, config.data, once, 1)
            yield line(f"{{{spec.kind}: ...}}", 1, size, measure(work))


def head() -> list[str]:
    """What was measured where."""
    return [
        "# Difficulties without a model",
        "",
        f"{date.today()}, {platform.machine()}, {num_cores()} CPU cores, load average "
        f"{os.getloadavg()[0]:.1f}; GSM8K's training rows. Lengths are known without the text.",
        "",
        "| metric | processes | MB of text | seconds | CPU seconds | MB per CPU second |",
        "|---|---|---|---|---|---|",
    ]


def line(metric: str, workers: int, megabytes: float, seconds: tuple[float, float]) -> str:
    """One line of the table."""
    speed = megabytes / seconds[1]
    shown = f"{speed:.1f}" if speed < 10_000 else "over 10,000"
    cells = (metric, workers, f"{megabytes:.1f}", f"{seconds[0]:.3f}", f"{seconds[1]:.3f}", shown)
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
