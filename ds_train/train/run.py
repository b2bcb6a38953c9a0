"""A run that is ready to make its next step: everything that stays the same while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.rehearse import rehearse_save
from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.fewshot import LossesConfig
from ds_train.config.run import RunConfig
from ds_train.curriculum.report import Reporting
from ds_train.data.batch import Batch, collate, eval_batches, step_batches
from ds_train.data.candidate_batch import collate_candidates
from ds_train.data.mix import Ints
from ds_train.data.order import StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.evaluate.ranking import rank_examples
from ds_train.evaluate.scorer import RequestScorer
from ds_train.fewshot.build import episodes_section, evaluation_episodes
from ds_train.fewshot.candidates import num_gold_tokens
from ds_train.model.adapter_files import write_adapter
from ds_train.paths import RunPaths
from ds_train.plan.batch import BatchPlan
from ds_train.plan.disk import checkpoints_held
from ds_train.train.objective import ChoiceObjective, Objective, TokenObjective


@dataclass(frozen=True)
class Run:
    """A run that is ready to make its next step."""

    config: RunConfig
    paths: RunPaths
    ranks: Ranks
    data: PreparedData
    plan: StepPlan
    batch: BatchPlan
    engine: Engine
    reporting: Reporting | None
    """Makes the report of a curriculum or a mixture; None without one."""
    start: CheckpointFacts
    """Where it begins: step 0, or the facts of the checkpoint it goes on from."""
    total_steps: int
    pad_token_id: int
    flatten: bool
    """The attention implementation wants documents one after another, without padding."""
    initial: dict[str, Tensor]
    """PiSSA's first A and B; empty otherwise."""

    def build_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step; none, on any rank, if all its rows are hidden."""
        if self.plan.num_supervised(step) == 0:
            return []
        batches = step_batches(
            self.data.train,
            self.plan.rows(step),
            rank=self.ranks.dp_rank,
            dp_size=self.ranks.dp_size,
            micro_batch_size=self.batch.micro_batch_size,
            packing=self.config.data.packing,
            make=collate if self.losses is None else collate_candidates,
            **self.layout,
        )
        return [self.engine.share(batch) for batch in batches]

    @property
    def losses(self) -> LossesConfig | None:
        """Losses over candidate answers; None where every supervised token counts the same."""
        return None if self.config.fewshot is None else self.config.fewshot.losses

    def objective(self, step: int) -> Objective:
        """What a step minimises."""
        if self.losses is None:
            return TokenObjective(self.plan.num_supervised(step))
        rows = [row for row in self.plan.rows(step) if len(row)]
        return ChoiceObjective(self.losses, len(rows), num_gold_tokens(self.data.train, rows))

    def build_validation(self) -> Iterator[Batch]:
        """This rank's share of the validation rows, one micro-batch after the other."""
        held_out = self.data.evaluated
        assert held_out is not None
        train = self.config.train
        batches = eval_batches(
            held_out,
            rank=self.ranks.dp_rank,
            dp_size=self.ranks.dp_size,
            micro_batch_size=train.per_device_eval_batch_size or train.per_device_train_batch_size,
            packing=self.config.data.packing and self._evaluation_episodes is None,
            max_rows=self.config.evaluate.max_rows,
            rows=self._evaluation_episodes,
            **self.layout,
        )
        return (self.engine.share(batch) for batch in batches)

    @cached_property
    def _evaluation_episodes(self) -> list[Ints] | None:
        """Rows of the last of `fewshot.episodes.shots`; None without episodes."""
        held_out = self.data.evaluated
        if held_out is None or episodes_section(self.config) is None:
            return None
        *_, last = evaluation_episodes(self.config, self.data, held_out).values()
        return last.rows

    def rank(self) -> dict[str, Any]:
        """Rank classification of the held-out examples; a collective call."""
        store = self.data.held_out
        assert store is not None
        return rank_examples(self._scorer, store, max_examples=self.config.evaluate.max_rows)

    @cached_property
    def _scorer(self) -> RequestScorer:
        return RequestScorer(self.engine, self.ranks, max_length=self.config.data.max_length)

    @property
    def layout(self) -> dict[str, Any]:
        """How `collate` is to lay out rows for this model."""
        return {
            "pad_token_id": self.pad_token_id,
            "flatten": self.flatten,
            "max_length": self.config.data.max_length,
            "with_positions": self.config.adapter.method not in VIRTUAL_TOKEN_METHODS,
        }

    @property
    def write_extra(self) -> Callable[[Path, dict[str, Tensor]], None] | None:
        """Writes the adapter in PEFT's format beside the state; None without an adapter."""
        model: Any = self.engine.module.model
        if not hasattr(model, "peft_config"):
            return None
        return lambda folder, trained: write_adapter(model, trained, self.initial, folder)

    def rehearse_save(self, say: Callable[[str], Any]) -> None:
        """Find out now whether checkpoints can be written, if the recipe wants it."""
        if not self.config.checkpoint.rehearse:
            return
        num_kept = checkpoints_held(self.config, is_evaluated=self.data.evaluated is not None)
        rehearse_save(self.paths, self.engine, self.write_extra, num_kept=num_kept, say=say)
