"""What a run shows the model: how many tokens of each sample, and of each source.

The same sums are made from the plan before the run, and from the batches that each rank has
trained on during it; the ranks' sums add up. A sample's exposure is its tokens shown over its
length, so that one that a row length cuts counts for what is left of it. Samples are grouped into
tenths by difficulty; where they are scored again during the run, what a step shows counts to the
tenths of the difficulty that it was drawn by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.curriculum.pool import Floats, difficulty_order
from ds_train.data.epochs import Drawn
from ds_train.data.mix import Ints
from ds_train.data.order import StepPlan
from ds_train.data.store import TokenStore


class Exposure:
    """Sums that grow as steps are made."""

    def __init__(self, store: TokenStore, plan: StepPlan, num_sources: int) -> None:
        self._store, self._plan = store, plan
        self.of_segments: Ints = np.zeros((num_segments(plan), store.num_samples), dtype=np.int64)
        """[segments, N] tokens of each sample; a step counts to the segment in which it begins."""
        self.of_stages: Ints = np.zeros((num_stages(plan), num_sources), dtype=np.int64)
        """[stages, sources] tokens; a step counts to the stage in which it begins."""

    def add(self, step: int, samples: Ints, tokens: Ints) -> None:
        """Some or all samples of a step (or pieces of them) were shown; `tokens` of each."""
        segment = stage = 0
        if len(self.of_stages) > 1 or len(self.of_segments) > 1:
            drawn = drawn_at(self._plan, step)
            segment, stage = drawn.segment, drawn.stage
        np.add.at(self.of_segments[segment], samples, tokens)
        np.add.at(self.of_stages[stage], self._store.sources[samples], tokens)

    @property
    def of_samples(self) -> Ints:
        """[N] tokens of each sample."""
        whole: Ints = self.of_segments.sum(axis=0)
        return whole

    def times(self, tokens: Ints) -> NDArray[np.float64]:
        """[num_examples] how often each was shown, in any rendering; tokens: [N] of each sample."""
        shown: NDArray[np.float64] = tokens / self._store.lengths
        examples = self._store.examples
        if examples is None or not examples.has_renderings:
            return shown
        return np.add.reduceat(shown, examples.starts[:-1])

    def add_planned(self, steps: Iterable[int]) -> None:
        """What the plan has for these steps."""
        for step in steps:
            self.add(step, *self._plan.parts(step))


def num_stages(plan: StepPlan) -> int:
    """Stages of the run's mixture; 1 without one."""
    shares = getattr(plan.row_plan.blocks, "shares", None)
    return 1 if shares is None else len(shares.by_stage)


def num_segments(plan: StepPlan) -> int:
    """Stretches of the run with one difficulty each; 1 where it is not measured again."""
    segments = getattr(plan.row_plan.blocks, "segments", None)
    return 1 if segments is None else 1 + len(segments.steps)


def drawn_at(plan: StepPlan, step: int) -> Drawn:
    """What the first row of a step is drawn from; without a curriculum all samples."""
    rows = plan.row_plan
    drawn = rows.block(rows.locate(plan.first_row(step))[0]).drawn
    return drawn or Drawn(progress=0.0, competence=1.0, pools=())


@dataclass(frozen=True)
class Deciles:
    """Tenths of the samples by difficulty; of fewer than ten samples some are empty."""

    of_sample: NDArray[np.uint8]
    """[N] 0 for the easiest tenth .. 9 for the hardest."""

    @classmethod
    def of(cls, values: Floats) -> Deciles:
        """Tenths by rank; equal samples are divided by a hash."""
        order = difficulty_order(values, len(values), seed=0, name="deciles")
        deciles = np.empty(len(values), dtype=np.uint8)
        deciles[order] = np.arange(len(values)) * 10 // len(values)
        return cls(deciles)

    def mean(self, values: NDArray[Any]) -> list[float | None]:
        """[10] mean over each tenth; None where it is empty."""
        sums = np.bincount(self.of_sample, weights=values, minlength=10)
        sizes = np.bincount(self.of_sample, minlength=10)
        pairs = zip(sums.tolist(), sizes.tolist(), strict=True)
        return [total / size if size else None for total, size in pairs]


def exposure_facts(
    exposure: Exposure, store: TokenStore, deciles: Sequence[Deciles], names: tuple[str, ...]
) -> dict[str, Any]:
    """The sums in the form in which they are written to curriculum.json.

    `store`: with one sample of each labelled example, which is what is counted then.

    `deciles`: of each segment whose difficulties are known; none without difficulties. Samples that
    were never shown have no segment: they are counted by the last known difficulty.
    """
    of_samples = exposure.of_samples
    times = exposure.times(of_samples)
    unseen = times == 0
    facts: dict[str, Any] = {
        "tokens": int(of_samples.sum()),
        "passes": float(times.mean()),
        "unseen_share": float(unseen.mean()),
        "most_often": float(times.max()),
    }
    if deciles:
        by_segment = [
            one.mean(exposure.times(tokens))
            for one, tokens in zip(deciles, exposure.of_segments, strict=False)
        ]
        facts["exposure_by_decile"] = [_sum(of_tenth) for of_tenth in zip(*by_segment, strict=True)]
        facts["unseen_by_decile"] = deciles[-1].mean(unseen)
        if len(exposure.of_segments) > 1:
            facts["segments"] = [
                {"tokens": int(tokens.sum()), "exposure_by_decile": by_decile}
                for tokens, by_decile in zip(exposure.of_segments, by_segment, strict=False)
            ]
    sizes = np.bincount(store.sources, minlength=len(names))
    shown = np.bincount(store.sources, weights=times, minlength=len(names))
    by_source = exposure.of_stages.sum(axis=0)
    facts["sources"] = {
        name: {
            "share_of_tokens": _share(by_source[index], facts["tokens"]),
            "passes": float(shown[index] / sizes[index]),
        }
        for index, name in enumerate(names)
        if sizes[index]
    }
    return facts


def stage_facts(
    exposure: Exposure, asked: list[NDArray[np.float64]], members: Ints, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Of each stage: shares of the tokens asked for and given; `members`: source of each share."""
    return [
        {
            "tokens": int(tokens.sum()),
            "asked": {names[s]: float(share) for s, share in zip(members, shares, strict=True)},
            "given": {names[s]: _share(tokens[s], tokens.sum()) for s in members},
        }
        for tokens, shares in zip(exposure.of_stages, asked, strict=True)
    ]


def _sum(values: Sequence[float | None]) -> float | None:
    """Sum over segments; a tenth that is empty in one is empty in all."""
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
