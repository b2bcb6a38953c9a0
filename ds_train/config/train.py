"""The `train` section: batch, length, optimizer, learning-rate schedule; Hugging Face names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ds_train.config.base import Count, Fraction, Natural, Section, Span
from ds_train.units import Duration, parse_count, parse_duration


def _parse_warmup(value: object) -> int | float | Duration:
    """Steps (whole), share of the run (a float under 1), or a duration such as '10M tokens'."""
    if isinstance(value, float) and 0 <= value < 1:
        return value
    if isinstance(value, str) and any(unit in value for unit in ("token", "step", "epoch")):
        duration = parse_duration(value)
        return int(duration.amount) if duration.unit == "steps" else duration
    count = parse_count(value)
    if count < 0:
        raise ValueError(f"{value!r} must not be negative")
    return count


def _dump_warmup(value: int | float | Duration) -> int | float | str:
    return str(value) if isinstance(value, Duration) else value


Warmup = Annotated[
    int | float | Duration, BeforeValidator(_parse_warmup), PlainSerializer(_dump_warmup)
]


class EarlyStoppingConfig(Section):
    """End the run when evaluations no longer get better; its best checkpoint is what counts."""

    patience: Count = 3
    """Evaluations in a row without an improvement after which the run ends."""

    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A change of at most this is no improvement."""

    metric: Literal["loss", "perplexity", "bits_per_byte", "token_accuracy", "rank_accuracy"] = (
        "loss"
    )
    """What must improve; it also decides which checkpoint is the best."""


class UnfreezeConfig(Section):
    """Gradual unfreezing: the last layers train first, the others join from the top down."""

    every: Span
    """After how long more layers join: `1 epoch`, `200 steps`."""

    layers: Count = 1
    """Layers that train at the start (with all that follows them), and that join each time; the
    embeddings join last."""


class RollbackConfig(Section):
    """What a run does about a step that diverged, instead of ending: it goes back to the last
    checkpoint and on without that step's rows, whose samples are listed in quarantine.json."""

    attempts: Count = 3
    """Rollbacks in the whole run; the divergence after these ends it."""

    spike: Annotated[float, Field(gt=1)] | None = None
    """A loss above this times the median of the `window` steps before it counts as diverged too;
    only what is not finite does when left out. A curriculum's loss may rise for good reasons."""

    window: Annotated[int, Field(ge=3)] = 32
    """Steps whose median is compared with; there is no spike before so many are made."""

    steps: Count = 1
    """Steps whose rows go into quarantine: the bad one and those right before it."""


class TrainConfig(Section):
    """One optimizer run. `global_batch_size` counts rows per optimizer step over all ranks."""

    global_batch_size: Count | None = None
    """Rows per optimizer step over all ranks; or give gradient_accumulation_steps."""

    per_device_train_batch_size: Count = 1
    """Rows that one device holds at once (micro-batch)."""

    per_device_eval_batch_size: Count | None = None
    """Rows per device in evaluation; the training one when left out."""

    gradient_accumulation_steps: Count | None = None
    """Micro-batches per optimizer step, instead of global_batch_size."""

    allow_empty_rows: bool = False
    """Where global_batch_size does not divide over the ranks, fill up with empty rows instead of
    refusing: the steps stay what they are on any number of ranks."""

    max_steps: Count | None = None
    """Stop after so many optimizer steps."""

    num_train_epochs: Annotated[float, Field(gt=0)] | None = None
    """Stop after so many passes over the data."""

    max_tokens: Count | None = None
    """Stop after so many tokens (padding not counted)."""

    learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    """Peak learning rate."""

    lr_scheduler_type: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Shape after the warm-up; `wsd` stays, then falls linearly in the last decay_fraction."""

    warmup_steps: Warmup = 0
    """Steps (10), share of the run (0.03), or tokens ('10M tokens') of linear warm-up."""

    min_lr_ratio: Fraction = 0.0
    """Final learning rate over the peak."""

    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """wsd: share of the run in which the rate falls."""

    optim: Literal["adamw", "adafactor"] = "adamw"
    """Optimizer."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay; biases, norms and other vectors are spared."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of gradients."""

    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of squared gradients."""

    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator of the update."""

    l2_sp: Annotated[float, Field(gt=0)] | None = None
    """L2-SP (Li et al., ICML 2018): adds l2_sp / 2 x the squared distance to the pretrained weights
    to the loss of every step, against forgetting. `loss` in metrics.jsonl stays that of the data;
    so does the gradient norm, and what is clipped."""

    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Each layer learns at this times the rate of the one above it; the output layer at the full
    rate, the embeddings slowest."""

    unfreeze: UnfreezeConfig | None = None
    """Gradual unfreezing, from the last layer down."""

    early_stopping: EarlyStoppingConfig | None = None
    """End before the length given, when evaluations no longer get better."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the global gradient norm to this; 0 does not clip."""

    rollback: RollbackConfig | None = None
    """Go back to the last checkpoint when a step diverges; the run ends there when left out."""

    seed: Natural = 0
    """Seeds data order, initialisation and dropout."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        lengths = [self.max_steps, self.num_train_epochs, self.max_tokens]
        if sum(value is not None for value in lengths) != 1:
            raise ValueError("give exactly one of max_steps, num_train_epochs, max_tokens")
        if self.global_batch_size is not None and self.gradient_accumulation_steps is not None:
            raise ValueError("give global_batch_size or gradient_accumulation_steps, not both")
        return self
