"""What a run shows while it goes on: a bar in a terminal, plain lines elsewhere, or nothing.

    step 120/2,000  loss 1.234  lr 9.8e-04  grad_norm 0.52  12,345 tokens/s  3 min 20 s left

Time left comes from the mean of this process's own steps, the first left out (it pays for warm-up).
"""

from __future__ import annotations

import math
import os
import sys
from typing import TextIO

from tqdm import tqdm

from ds_train.config.report import ReportConfig
from ds_train.report.communication import CommunicationRecord
from ds_train.report.record import (
    EvaluationRecord,
    Record,
    RollbackRecord,
    StepRecord,
    TaskRecord,
)
from ds_train.units import format_seconds


class Progress:
    """Shows records as they come. Only rank 0 has one."""

    def __init__(
        self,
        config: ReportConfig,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._style = _style(config.progress, self._stream)
        self._log_every = config.log_every
        self._total_steps = total_steps
        self._seconds = 0.0
        self._num_steps = 0
        self._bar: tqdm | None = None
        if self._style == "bar":
            self._bar = tqdm(
                total=total_steps, initial=start_step, unit="step", file=self._stream, leave=True
            )

    def show(self, record: Record) -> None:
        """Show one record, where its turn has come."""
        if isinstance(record, EvaluationRecord):
            self.say(evaluation_line(record))
            return
        if isinstance(record, TaskRecord):
            self.say(task_line(record))
            return
        if isinstance(record, RollbackRecord):
            self.say(rollback_line(record))
            return
        if isinstance(record, CommunicationRecord):
            return  # the run says at its end what all of them come to
        left_seconds = self._left(record)
        if self._bar is not None:
            self._bar.set_postfix_str(_bar_text(record), refresh=False)
            self._bar.update(record.step - self._bar.n)
        elif self._style == "plain" and self._is_due(record.step):
            self.say(step_line(record, self._total_steps, left_seconds))

    def say(self, text: str) -> None:
        """A line beside the steps, e.g. that a checkpoint was saved."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._style == "plain":
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()

    def _is_due(self, step: int) -> bool:
        return step % self._log_every == 0 or step in (1, self._total_steps)

    def _left(self, record: StepRecord) -> float | None:
        """Seconds left, or None as long as only one step has been made."""
        self._num_steps += 1
        if self._num_steps == 1:
            return None
        self._seconds += record.seconds
        return self._seconds / (self._num_steps - 1) * (self._total_steps - record.step)


def _style(wanted: str, stream: TextIO) -> str:
    if wanted == "auto":
        return "bar" if _has_screen(stream) else "plain"
    return wanted


def _has_screen(stream: TextIO) -> bool:
    """A terminal with lines; one without (of `script`, or a container) would show no bar."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:
        return False


def _bar_text(record: StepRecord) -> str:
    return f"loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s"


def step_line(record: StepRecord, total_steps: int, left_seconds: float | None) -> str:
    """One step as a plain line."""
    parts = [
        f"step {record.step:,}/{total_steps:,}",
        f"loss {record.loss:.3f}",
        f"lr {record.learning_rate:.1e}",
        # only fp16 goes on after one that is not finite: it skips the update
        f"grad_norm {record.grad_norm:.2f}"
        + ("" if math.isfinite(record.grad_norm) else " (fp16 overflow, no update)"),
        f"{record.tokens_per_second:,.0f} tokens/s",
    ]
    if left_seconds is not None and record.step < total_steps:
        parts.append(f"{format_seconds(left_seconds)} left")
    return "  ".join(parts)


def evaluation_line(record: EvaluationRecord) -> str:
    """One evaluation as a plain line."""
    best = "  (best so far)" if record.best else ""
    if record.rank_accuracy is not None:
        best = f"  rank accuracy {record.rank_accuracy:.1%}{best}"
    return (
        f"evaluation after step {record.step:,}  loss {record.loss:.3f}  "
        f"perplexity {record.perplexity:,.2f}  token accuracy {record.token_accuracy:.1%}{best}"
    )


def task_line(record: TaskRecord) -> str:
    """One evaluation task as a plain line, standard errors left out."""
    shots = "" if record.shots < 0 else f"{record.shots} shots, "
    numbers = [
        f"{key.removesuffix(',none')} {value:.4f}"
        for key, value in record.metrics.items()
        if "_stderr," not in key
    ]
    where = f"{record.task} after step {record.step:,}  "
    return f"{where}{shots}seed {record.seed}  {'  '.join(numbers)}"


def rollback_line(record: RollbackRecord) -> str:
    """One line about a rollback."""
    return (
        f"rollback {record.number}: step {record.diverged_step:,} had {record.reason}; goes on "
        f"after step {record.step:,} without its {record.samples:,} samples"
    )
