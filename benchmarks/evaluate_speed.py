"""How fast a multiple-choice task is evaluated, against lm_eval's own HFLM in the same process.

1,000 questions of BANKING77 with four answers each (the right label and three others), without
demonstrations and with two; stories260K in fp32 on the CPU, the same number of threads for both.
HFLM is given each of several batch sizes on 100 questions first, and measured with its best one;
ours takes what it takes by itself. Runs alternate, the order turns each round, and a round's ratio
is of the two runs that stood beside each other. Of each run the whole evaluation is timed
(contexts built by lm_eval, tokens, model, metrics; ours with templates compiled once, as
`ds-train evaluate` has them), and within it what the model class does. CPU
seconds say more than a clock on a machine that does other work too. Results have to be equal:
metrics exactly, summed log-likelihoods within 1e-3 nats.

usage: python benchmarks/evaluate_speed.py [RESULT.md]      (needs the shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from ds_train.engine.ranks import Ranks
from ds_train.evaluate.scorer import RequestScorer, readable_tokens
from ds_train.evaluate.task_list import open_tasks
from ds_train.evaluate.task_model import TaskModel
from ds_train.evaluate.task_templates import templates_compiled_once
from ds_train.model.head import LanguageModel

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
MODEL = SHARED / "models" / "stories260K" / "hf"
NUM_QUESTIONS = int(os.environ.get("QUESTIONS", "1000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
BATCH_SIZES = (8, 16, 32, 64)
TUNED_ON = 100
TASK = """\
task: banking
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "Question: {{text}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@dataclass(frozen=True)
class Timing:
    """Seconds of one evaluation, and of the model class within it."""

    wall: float
    cpu: float
    model_wall: float
    model_cpu: float


def write_task(folder: Path) -> None:
    """The task's YAML and its two files."""
    draw = random.Random(0)
    for split in ("train", "test"):
        with (SHARED / "data" / "banking77" / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["category"] for row in rows})
        chosen = draw.sample(rows, NUM_QUESTIONS)
        with (folder / f"{split}.jsonl").open("w") as file:
            for row in chosen:
                others = draw.sample([name for name in names if name != row["category"]], 3)
                choices = draw.sample([row["category"], *others], 4)
                choices = [choice.replace("_", " ").rstrip("?") for choice in choices]
                label = choices.index(row["category"].replace("_", " ").rstrip("?"))
                file.write(json.dumps({"text": row["text"], "choices": choices, "label": label}))
                file.write("\n")
    (folder / "banking.yaml").write_text(TASK)


def run(model: Any, tasks: dict[str, Any], shots: int, limit: int | None) -> tuple[Any, Timing]:
    """One evaluation of the task, with lm_eval's own drawing."""
    task = tasks["tasks"]["banking"]
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    inside = [0.0, 0.0]
    answer: Callable[..., Any] = type(model).loglikelihood.__get__(model)

    def timed(requests: list[Any]) -> Any:
        began = time.perf_counter(), time.process_time()
        found = answer(requests)
        inside[0] += time.perf_counter() - began[0]
        inside[1] += time.process_time() - began[1]
        return found

    model.loglikelihood = timed
    began = time.perf_counter(), time.process_time()
    with templates_compiled_once() if isinstance(model, TaskModel) else nullcontext():
        found = evaluate(lm=model, task_dict=tasks, limit=limit, bootstrap_iters=1000)
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return found, Timing(wall, cpu, *inside)


def check_equal(ours: Any, theirs: Any) -> float:
    """The largest difference of a summed log-likelihood; the metrics must be the same numbers."""
    assert ours["results"] == theirs["results"], (ours["results"], theirs["results"])
    largest = 0.0
    pairs = zip(ours["samples"]["banking"], theirs["samples"]["banking"], strict=True)
    for mine, other in pairs:
        assert mine["arguments"] == other["arguments"]
        for a, b in zip(mine["resps"], other["resps"], strict=True):
            largest = max(largest, abs(a[0][0] - b[0][0]))
            assert a[0][1] == b[0][1]
    assert largest < 1e-3, largest
    return largest


def best_batch_size(harness: Any, tasks: dict[str, Any], shots: int) -> int:
    """The batch size with which HFLM needs the fewest CPU seconds on some of the questions."""
    seconds = {}
    for size in BATCH_SIZES:
        harness.batch_size_per_gpu = size
        seconds[size] = run(harness, tasks, shots, TUNED_ON)[1].model_cpu
    return min(seconds, key=seconds.__getitem__)


def measure(ours: Any, harness: Any, tasks: dict[str, Any], shots: int) -> list[str]:
    """Table rows of one number of demonstrations."""
    size = harness.batch_size_per_gpu = best_batch_size(harness, tasks, shots)
    run(ours, tasks, shots, TUNED_ON)
    rounds: list[tuple[Timing, Timing]] = []
    largest = 0.0
    for number in range(ROUNDS):
        order = [ours, harness] if number % 2 == 0 else [harness, ours]
        done = {id(model): run(model, tasks, shots, None) for model in order}
        mine, other = done[id(ours)], done[id(harness)]
        largest = max(largest, check_equal(mine[0], other[0]))
        rounds.append((mine[1], other[1]))
        print(f"{shots} shots, round {number + 1}: {mine[1]} {other[1]}", file=sys.stderr)
    lines = []
    for what, field in (("whole evaluation", ""), ("model class", "model_")):
        cells = []
        for unit in ("wall", "cpu"):
            name = f"{field}{unit}"
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in rounds]
            cells += [
                statistics.median(a for a, _ in pairs),
                statistics.median(b for _, b in pairs),
            ]
            cells.append(statistics.median(b / a for a, b in pairs))
        numbers = " | ".join(f"{value:.2f}" for value in cells)
        lines.append(f"| {shots} | {what} | {numbers} | {size} | {largest:.1e} |")
    return lines


def main() -> None:
    """Print the table, or write it."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval() for _ in range(2)
    ]
    longest = readable_tokens(models[0], tokenizer)
    scorer = RequestScorer(LanguageModel(models[0]), Ranks(0, 0, 1), max_length=longest)
    ours = TaskModel(scorer, tokenizer)
    harness = HFLM(pretrained=models[1], tokenizer=tokenizer, batch_size=8, device="cpu")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        write_task(Path(name))
        tasks = open_tasks(["banking"], name)
        rows = [line for shots in (0, 2) for line in measure(ours, harness, tasks, shots)]
    head = "| shots | what | s, ours | s, HFLM | ratio | CPU s, ours | CPU s, HFLM | ratio "
    text = f"""\
# Evaluation of a multiple-choice task, against lm_eval's HFLM

{date.today()}, {platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads,
load average {load:.1f} at the start; torch {torch.__version__}, lm_eval {lm_eval.__version__}.
{NUM_QUESTIONS:,} questions of BANKING77 with four answers, stories260K, fp32; medians of {ROUNDS}
interleaved rounds, ratios round by round. Accuracies and `is_greedy` were equal in every round; the
last column is the largest difference of a summed log-likelihood in nats. HFLM has the batch size
that was its fastest. Measured by `python benchmarks/evaluate_speed.py`.

{head}| HFLM's batch | difference |
|---|---|---|---|---|---|---|---|---|---|
"""
    text += "\n".join(rows) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
