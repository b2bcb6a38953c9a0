"""Progress: plain lines word for word, a bar only in a terminal, nothing when asked for."""

from __future__ import annotations

import io
import os
import termios
from dataclasses import replace

import pytest

from ds_train.config.report import ReportConfig
from ds_train.report.progress import Progress, evaluation_line, step_line
from ds_train.report.record import EvaluationRecord, StepRecord

STEP = StepRecord(
    step=120,
    loss=1.2344,
    grad_norm=0.523,
    learning_rate=9.81e-4,
    tokens=4096,
    supervised_tokens=2000,
    total_tokens=491_520,
    seconds=0.1,
    tokens_per_second=12_345.4,
    peak_memory_bytes=1,
)
EVALUATION = EvaluationRecord(
    step=1200,
    loss=0.5,
    perplexity=1.6487,
    token_accuracy=0.875,
    tokens=10,
    seconds=1.0,
    best=True,
)


class Terminal(io.StringIO):
    """One end of a pseudo-terminal for its size; what is written stays here."""

    def __init__(self, lines: int = 40) -> None:
        super().__init__()
        self._far, self._near = os.openpty()
        termios.tcsetwinsize(self._near, (lines, 120))

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._near

    def close(self) -> None:
        os.close(self._far)
        os.close(self._near)
        super().close()


def test_a_terminal_without_lines_gets_plain_ones() -> None:
    stream = Terminal(lines=0)
    Progress(ReportConfig(log_every=1), 10, stream=stream).show(replace(STEP, step=1))
    assert stream.getvalue().startswith("step 1/10  loss")


def test_step_line_word_for_word() -> None:
    assert step_line(STEP, 2000, 200.0) == (
        "step 120/2,000  loss 1.234  lr 9.8e-04  grad_norm 0.52  12,345 tokens/s  3 min 20 s left"
    )


def test_an_update_that_fp16_skips_is_said() -> None:
    assert step_line(replace(STEP, grad_norm=float("inf")), 2000, None) == (
        "step 120/2,000  loss 1.234  lr 9.8e-04  grad_norm inf (fp16 overflow, no update)  "
        "12,345 tokens/s"
    )


def test_after_the_last_step_no_time_is_left_to_speak_of() -> None:
    assert step_line(STEP, 120, 0.0) == (
        "step 120/120  loss 1.234  lr 9.8e-04  grad_norm 0.52  12,345 tokens/s"
    )


def test_evaluation_line_word_for_word() -> None:
    assert evaluation_line(EVALUATION) == (
        "evaluation after step 1,200  loss 0.500  perplexity 1.65  token accuracy 87.5%"
        "  (best so far)"
    )


def shown(config: ReportConfig, stream: io.StringIO, num_steps: int = 25) -> str:
    progress = Progress(config, total_steps=num_steps, stream=stream)
    for step in range(1, num_steps + 1):
        progress.show(replace(STEP, step=step))
    progress.show(EVALUATION)
    progress.close()
    return stream.getvalue()


def test_plain_lines_come_every_log_every_steps_and_at_both_ends() -> None:
    lines = shown(ReportConfig(log_every=10), io.StringIO()).splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1/25", "10/25", "20/25", "25/25"]
    assert lines[-1].startswith("evaluation after step 1,200")


def test_time_left_is_that_of_the_steps_still_to_come() -> None:
    lines = shown(ReportConfig(log_every=10), io.StringIO()).splitlines()
    assert "left" not in lines[0]
    assert lines[1].endswith("1.5 s left")
    assert "left" not in lines[3]


def test_a_resumed_run_counts_only_its_own_steps() -> None:
    stream = io.StringIO()
    progress = Progress(ReportConfig(log_every=1), total_steps=110, start_step=100, stream=stream)
    for step in (101, 102):
        progress.show(replace(STEP, step=step, seconds=2.0))
    assert stream.getvalue().splitlines()[-1].endswith("16 s left")


def test_a_terminal_gets_a_bar_with_loss_and_speed() -> None:
    text = shown(ReportConfig(), Terminal())
    assert "25/25" in text
    assert "loss 1.234" in text
    assert "12,345 tokens/s" in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_none_shows_nothing(stream: io.StringIO) -> None:
    assert shown(ReportConfig(progress="none"), stream) == ""
