"""The report of a curriculum or a mixture: predicted by `ds-train data`, measured by the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.curriculum.blocks import DrawnBlocks
from ds_train.curriculum.exposure import (
    Deciles,
    Exposure,
    drawn_at,
    exposure_facts,
    num_stages,
    stage_facts,
)
from ds_train.curriculum.refresh import fingerprints_of, segments_of
from ds_train.curriculum.scores import DifficultyScores
from ds_train.data.divide import PreparedData
from ds_train.data.order import StepPlan

Facts = dict[str, Any]
_TRACED_STEPS = 200
_TRIED_BLOCKS = 64


def has_report(config: RunConfig) -> bool:
    """Whether the recipe has something to report on."""
    return config.curriculum is not None or config.data.mixture is not None


class Reporting:
    """Makes the report of one run from counts of what was drawn."""

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        plan: StepPlan,
        scores: DifficultyScores | None,
    ) -> None:
        self._config, self._plan, self._scores = config, plan, scores
        self._store, self._prepared = prepared.train, prepared.of_examples
        self._total_steps = plan.total_steps(config.train)
        self._tenths: list[Deciles] = []

    @property
    def _segments(self) -> list[DifficultyScores]:
        """Difficulties of the run's segments, as far as they exist; empty without any."""
        if self._scores is None:
            return []
        if (segments := segments_of(self._plan)) is None:
            return [self._scores]
        return [one.scores for one in segments.known if one.scores is not None]

    @property
    def _known_steps(self) -> int:
        """Steps whose samples are known: all of them, but before the last scoring of a run."""
        segments = segments_of(self._plan)
        known = None if segments is None else segments.next_step
        return self._total_steps if known is None else known

    def _deciles(self) -> list[Deciles]:
        """Of each segment."""
        for scores in self._segments[len(self._tenths) :]:
            self._tenths.append(Deciles.of(scores.values))
        return self._tenths

    def new_exposure(self) -> Exposure:
        """Counts of nothing yet."""
        return Exposure(self._store, self._plan, len(self._prepared.source_names))

    def predicted(self) -> Facts:
        """The whole report, before the run; where samples are scored again, up to there."""
        exposure = self.new_exposure()
        exposure.add_planned(range(self._known_steps))
        facts = {**self._common(), "predicted": self._counted(exposure)}
        return facts | ({"packing": self._packing()} if self._config.data.packing else {})

    def measured(self, exposure: Exposure, steps_from_plan: int) -> Facts:
        """The whole report, after the run; `exposure`: of all ranks together.

        Steps before a resume were not seen by this process: they are counted from the plan.
        """
        facts = self.predicted()
        facts["measured"] = {
            "steps": self._total_steps - steps_from_plan,
            "steps_counted_from_the_plan": steps_from_plan,
            **self._counted(exposure),
        }
        of_plan = facts["predicted"]
        facts["measured_equals_predicted"] = all(
            facts["measured"][key] == value for key, value in of_plan.items()
        )
        return facts

    def _counted(self, exposure: Exposure) -> Facts:
        names = self._prepared.source_names
        facts = exposure_facts(exposure, self._prepared.train, self._deciles(), names)
        shares = getattr(self._plan.row_plan.blocks, "shares", None)
        if shares is not None:
            members = np.unique(self._prepared.train.sources)
            facts["stages"] = stage_facts(exposure, shares.by_stage, members, names)
        return facts

    def _common(self) -> Facts:
        curriculum, blocks = self._config.curriculum, self._plan.row_plan.blocks
        facts: Facts = {
            "order": curriculum.order if curriculum is not None else "uniform",
            "num_samples": self._prepared.train.num_samples,
            "total_steps": self._total_steps,
            "data_fingerprint": self._prepared.fingerprint,
        }
        if self._scores is not None:
            facts["metric"] = self._scores.metric
            facts["difficulty_fingerprint"] = self._scores.fingerprint
        facts |= self._scored_again()
        if isinstance(blocks, DrawnBlocks):
            if blocks.growing is None:
                facts["block_samples"] = blocks.sizes.usual
            else:  # its blocks have as many as the length of rows wants
                facts["tokens_cut_off"] = self._plan.dropped_before(self._known_steps)
        return facts | {"steps": list(self._trace())}

    def _scored_again(self) -> Facts:
        """Where the model scores the samples during the run, and what came of it so far."""
        if (segments := segments_of(self._plan)) is None:
            return {}
        facts: Facts = {
            "scored_again_after_steps": list(segments.steps),
            "difficulty_fingerprints": fingerprints_of(segments),
        }
        if self._known_steps < self._total_steps:
            facts["known_steps"] = self._known_steps
        return facts

    def _trace(self) -> Iterator[Facts]:
        """What steps are drawn from: evenly spread ones of a long run."""
        number = min(self._known_steps, _TRACED_STEPS)
        spread = np.linspace(0, self._known_steps - 1, number).round().astype(int)
        for step in np.unique(spread).tolist():
            drawn, samples = drawn_at(self._plan, step), self._plan.sample_ids(step)
            pools = drawn.pools or (self._prepared.train.num_samples,)
            facts: Facts = {
                "step": step + 1,
                "tokens_before": self._plan.tokens_before(step),
                "competence": drawn.competence,
                "pool": sum(pools),
                "pools": list(pools),
            }
            if num_stages(self._plan) > 1:
                facts["stage"] = drawn.stage + 1
            if drawn.row_length is not None:
                facts["row_length"] = drawn.row_length
            if self._segments and len(samples):
                values = self._segments[drawn.segment].values
                labelled = self._store.examples
                examples = samples if labelled is None else labelled.example[samples]
                facts["mean_difficulty"] = float(values[examples].mean())
            yield facts

    def _packing(self) -> Facts:
        """How full rows are, and how far packing moved samples from where they were drawn."""
        rows, plan = self._plan.row_plan, self._plan
        num_rows = plan.first_row(self._known_steps)
        last = rows.locate(num_rows - 1)[0]
        tokens = plan.tokens_before(self._known_steps)
        facts: Facts = {"full": tokens / max(1, self._room(num_rows))}
        if isinstance(rows.blocks, DrawnBlocks):
            tried = np.unique(np.linspace(0, last, min(last + 1, _TRIED_BLOCKS)).astype(int))
            moved = [rows.blocks.moved(int(number), rows.start(int(number))) for number in tried]
            all_moved = np.concatenate(moved)
            facts["moved_mean"] = float(all_moved.mean()) if all_moved.size else 0.0
            facts["moved_at_most"] = int(all_moved.max(initial=0))
        return facts

    def _room(self, num_rows: int) -> int:
        """Tokens that so many rows could hold."""
        stream, longest = self._plan.row_plan, self._config.data.max_length
        growing = getattr(stream.blocks, "growing", None)
        if growing is None or not growing.shortens_rows:
            return num_rows * longest
        room = number = 0
        while (first := stream.start(number).rows) < num_rows:
            drawn = stream.block(number).drawn
            assert drawn is not None and drawn.row_length is not None
            room += (min(num_rows, stream.start(number + 1).rows) - first) * drawn.row_length
            number += 1
        return room
